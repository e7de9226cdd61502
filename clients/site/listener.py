"""Whether it is really this site's SuperNode that answers on loopback, and not another user of the machine.

Flower's SuperNode listens on a TCP port only (1.41 and 1.42 take no Unix socket), and any local user can take that
port before it does. What listens there is asked for orders, and they are done with the site's data. So the kernel is
asked whose socket it is, before each request and again when its answer has come.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from fcit.errors import Refused

_TABLES = {socket.AF_INET: "tcp", socket.AF_INET6: "tcp6"}
_LISTENING = "0A"  # in the column "st" of /proc/net/tcp


def listeners(address: str, port: int, tables: Path = Path("/proc/net")) -> set[int]:
    """User ids of the sockets that connections to an IPv4 address and port may come to.

    Raises:
        OSError: this system does not tell (``/proc/net/tcp``; Linux does).
    """
    takes = {
        _shown(socket.AF_INET, address),
        _shown(socket.AF_INET, "0.0.0.0"),
        _shown(socket.AF_INET6, f"::ffff:{address}"),
        _shown(socket.AF_INET6, "::"),
    }
    found = set()
    for family, table in _TABLES.items():
        file = tables / table
        if family == socket.AF_INET6 and not file.exists():  # a system without IPv6
            continue
        for line in file.read_text().splitlines()[1:]:
            local, state, user = (line.split()[column] for column in (1, 3, 7))
            host, _, number = local.partition(":")
            if state == _LISTENING and host in takes and int(number, 16) == port:
                found.add(int(user))
    return found


def _shown(family: socket.AddressFamily, address: str) -> str:
    """An address as the kernel's tables have it: words of 32 bits in the machine's byte order."""
    packed = socket.inet_pton(family, address)
    return "".join(f"{int.from_bytes(packed[at : at + 4], sys.byteorder):08X}" for at in range(0, len(packed), 4))


class OwnSuperNode:
    """Lets requests through to a SuperNode of this user only; for Flower's HTTP clients.

    Args:
        inner: host:port of the SuperNode, an IPv4 loopback address.
    """

    def __init__(self, inner: str) -> None:
        self._address, _, port = inner.rpartition(":")
        self._port = int(port)

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Send a request and return its answer.

        Raises:
            Refused: another user's process listens on the port.
            httpx.TransportError: none does, so that the SuperNode is not up yet, or not any more.
        """
        self._check()
        response = call_next(context)
        self._check()
        return response

    def _check(self) -> None:
        users = listeners(self._address, self._port)
        if not users:
            raise httpx.ConnectError(f"nothing listens on {self._address}:{self._port}")
        if users != {os.getuid()}:
            holder = ", ".join(map(str, sorted(users)))
            raise Refused(
                f"{self._address}:{self._port} is held by user {holder} of this machine, not by this site's SuperNode "
                f"(user {os.getuid()}); choose another `port` or `address` in SITE.yaml"
            )
