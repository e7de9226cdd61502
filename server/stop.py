"""Being asked to stop, heard while the server waits."""

from __future__ import annotations

import time

from fcit.errors import StopRequested

_SLICE = 0.2  # seconds asleep before somebody's wish to stop is looked for


class Stop:
    """A signal handler leaves its request here; whoever waits looks for it."""

    def __init__(self) -> None:
        self.request: StopRequested | None = None

    def check(self) -> None:
        """Raise what was asked for, if anything.

        Raises:
            StopRequested: somebody asked.
        """
        if self.request is not None:
            raise self.request

    def pause(self, seconds: float) -> None:
        """Sleep, but not through a request.

        Raises:
            StopRequested: somebody asked.
        """
        end = time.monotonic() + seconds
        self.check()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE))
            self.check()
