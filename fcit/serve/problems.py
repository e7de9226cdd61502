"""Why a request is not answered, in the form in which clients of OpenAI expect it."""

from __future__ import annotations

from typing import Any

from fcit.errors import FCITError

INVALID = "invalid_request_error"


class Problem(FCITError):
    """A request that is not answered.

    Args:
        status: of HTTP.
        text: what is wrong, and what is allowed.
        kind: ``type`` of the error; default: by the status.
        param: the field of the request.
        code: for programs.
    """

    def __init__(
        self, status: int, text: str, *, kind: str | None = None, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(text)
        self.status, self.param, self.reason = status, param, code
        self.kind = kind or (INVALID if status < 500 else "server_error")

    @property
    def body(self) -> dict[str, Any]:
        """The body of the reply."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.reason}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the reply."""
        extra = {401: ("WWW-Authenticate", "Bearer"), 429: ("Retry-After", "1")}
        return dict([extra[self.status]]) if self.status in extra else {}


def busy(waiting: int) -> Problem:
    """The queue is full."""
    text = f"{waiting} requests wait already (--max-waiting); try again later"
    return Problem(429, text, kind="rate_limit_error", code="queue_full")


def late(seconds: float) -> Problem:
    """The time of a request is over."""
    return Problem(504, f"no whole answer within {seconds:g} seconds (--max-seconds)", code="deadline")


def broken(error: Exception) -> Problem:
    """The model could not answer."""
    return Problem(500, f"the question could not be answered ({type(error).__name__}); the server's log says more")
