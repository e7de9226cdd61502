"""Orders and outcomes through a socket between two processes of one run: a JSON head, then the tensors' bytes.

Both ends are this program; what a client sent is inside a message, which the server decodes as it does any other.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from flwr.app import Array

_LENGTH = struct.Struct("<Q")
_PIECE = 2**20  # bytes read at a time


def send(link: socket.socket, fields: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Write one frame.

    Raises:
        OSError: the other process has ended.
    """
    about = [[name, a.dtype, list(a.shape), a.stype, len(a.data)] for name, a in arrays.items()]
    head = json.dumps([fields, about]).encode()
    link.sendall(_LENGTH.pack(len(head)) + head)
    for array in arrays.values():
        link.sendall(array.data)


def receive(link: socket.socket) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read one frame.

    Raises:
        EOFError: the other process has ended, perhaps in the middle of it.
    """
    (length,) = _LENGTH.unpack(_exactly(link, _LENGTH.size))
    fields, about = json.loads(_exactly(link, length))
    arrays = {
        name: Array(dtype, tuple(shape), stype, _exactly(link, size)) for name, dtype, shape, stype, size in about
    }
    return fields, arrays


def _exactly(link: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    rest = memoryview(data)
    while rest:
        try:
            got = link.recv_into(rest[:_PIECE])
        except ConnectionError as error:
            raise EOFError(str(error)) from None
        if not got:
            raise EOFError("the other process has ended")
        rest = rest[got:]
    return bytes(data)
