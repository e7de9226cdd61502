"""Whether a site has an order at hand; a file says so, also after the executor that did it was killed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


class AtHand:
    """The mark of an order that is being done.

    Args:
        folder: the site's own.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "order"

    def begin(self) -> None:
        """An order is being done."""
        with suppress(OSError):  # a full disk: if the order is lost, the server hears of it a minute later
            self._file.touch(mode=0o600)

    def end(self) -> None:
        """None is, any more."""
        self._file.unlink(missing_ok=True)

    def __bool__(self) -> bool:
        return self._file.exists()
