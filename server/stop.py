"""A request to stop, which the server notices while it waits."""

from __future__ import annotations

import time

from fcit.errors import StopRequested

_SLICE = 0.2  # longest sleep in seconds before a request is looked for


class Stop:
    """A signal handler leaves its request here; code that waits looks for it."""

    def __init__(self) -> None:
        self.request: StopRequested | None = None

    def check(self) -> None:
        """Raise the request, if there is one.

        Raises:
            StopRequested: there is a request.
        """
        if self.request is not None:
            raise self.request

    def pause(self, seconds: float) -> None:
        """Sleep, unless a request comes.

        Raises:
            StopRequested: there is a request.
        """
        end = time.monotonic() + seconds
        self.check()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE))
            self.check()
