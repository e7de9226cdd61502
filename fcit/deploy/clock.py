"""A site's clock beside that of the operator's door, by the Date header of an answer of the door.

A SuperNode signs the time with every call. The SuperLink (flwr 1.41 and 1.42) refuses one that is more than five
seconds in its future or 305 in its past, and a SuperNode that is refused ends with code 0 and no word of why.
"""

from __future__ import annotations

import email.utils
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

AHEAD, BEHIND = 5.0, 300.0  # seconds that a site's clock may differ from the SuperLink's
_NOTED = 2.0  # seconds of difference from which it is spoken of although it does no harm yet
_TIMEOUT = 10.0
_HEAD = 8192  # bytes of an answer's head that are read


def told(secure: ssl.SSLSocket, host: str) -> float:
    """Seconds by which this machine's clock is ahead of the one at the other end of a fresh TLS connection.

    The header counts whole seconds: what is returned is right within one second and the time the answer took.

    Raises:
        OSError: the connection broke.
        ValueError: no HTTP answer with a date.
    """
    sent = time.time()
    secure.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii"))
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _HEAD and (piece := secure.recv(_HEAD)):
        head += piece
    received = time.time()
    for line in head.decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "date":
            date = email.utils.parsedate_to_datetime(value.strip())
            return (sent + received) / 2 - (date.timestamp() + 0.5)
    raise ValueError("the answer has no Date header")


def ahead(address: str, ca: str) -> float:
    """Seconds by which this machine's clock is ahead of the door's; the door's certificate must be in force.

    Args:
        address: host:port of the door.
        ca: file with the certificate of the operator's authority.

    Raises:
        OSError: the door cannot be reached, or is not the operator's.
        ValueError: it tells no time.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    with connection(host, int(port), ca, host) as secure:
        return told(secure, host)


@contextmanager
def connection(address: str, port: int, ca: str | Path, name: str) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to whoever has a certificate of the operator's authority for ``name``.

    Raises:
        OSError: nobody answers there, or without such a certificate.
    """
    context = ssl.create_default_context(cafile=ca)
    with (
        socket.create_connection((address, port), timeout=_TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        yield secure


def problem(seconds: float) -> str | None:
    """Why a site whose clock is so far ahead is refused; None if it is not."""
    if -BEHIND < seconds < AHEAD:
        return None
    return (
        f"this machine's clock is {difference(seconds)} the door's; a site more than {AHEAD:.0f} s ahead or "
        f"{BEHIND:.0f} s behind is refused. Set the clock (`timedatectl set-ntp true`), or ask the operator to"
    )


def difference(seconds: float) -> str:
    """The difference in words."""
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"


def noticeable(seconds: float) -> bool:
    """Whether a difference is worth a word."""
    return abs(seconds) >= _NOTED


class Watch:
    """Compares the clocks now and then, without anybody waiting for it.

    Args:
        compare: returns seconds, or raises OSError or ValueError.
        every: seconds between two comparisons.
        soon: seconds between two comparisons where something has gone wrong.
    """

    def __init__(self, compare: Callable[[], float], every: float = 600.0, soon: float = 30.0) -> None:
        self.compare, self.every, self.soon = compare, every, soon
        self.ahead: float | None = None  # seconds; None while it is not known
        self._thread: threading.Thread | None = None
        self._last = float("-inf")

    def look(self, urgent: bool = False) -> None:
        """Begin a comparison if it is time for one."""
        running = self._thread is not None and self._thread.is_alive()
        if running or time.monotonic() - self._last < (self.soon if urgent else self.every):
            return
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._compare, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the comparison that is being made."""
        if self._thread is not None:
            self._thread.join()

    def _compare(self) -> None:
        try:
            self.ahead = self.compare()
        except (OSError, ValueError):  # the SuperNode's own attempts say why the door is not reached
            self.ahead = None
