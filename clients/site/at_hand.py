"""Whether a site has an order at hand; a file says so, also after the executor that did it was killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class AtHand:
    """The mark of an order that is being done.

    On a full or read-only disk it is not kept: if an order is lost then, the server hears of it a minute later.

    Args:
        folder: the site's own.
        say: is told once when the mark cannot be changed.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._file, self._say, self._failed = folder / "order", say, False

    def begin(self) -> None:
        """An order is being done."""
        with self._told():
            self._file.touch(mode=0o600)

    def end(self) -> None:
        """None is, any more."""
        with self._told():
            self._file.unlink(missing_ok=True)

    def __bool__(self) -> bool:
        return self._file.exists()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._failed:
                self._say(f"whether an order is at hand is not written down: {error}")
            self._failed = True
