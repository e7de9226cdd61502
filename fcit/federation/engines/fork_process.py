"""What the processes of the fork engine do: the first one, and the workers that are forked from it."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import struct
import sys
import traceback
from typing import NoReturn

from fcit.errors import FCITError
from fcit.federation.engines import frames
from fcit.federation.engines.worker import Order, Worker

#: Requests to the first process, each with a process id; START comes with the descriptor of the worker's socket.
START, END = b"s", b"e"
REQUEST, REPLY = struct.Struct("<cq"), struct.Struct("<q")

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def nursery(worker: Worker, control: socket.socket, link: socket.socket, server: int) -> NoReturn:
    """Carry out one order, then fork workers whenever the server's process asks for one, until it closes the control.

    Args:
        server: process id of the server's process, with which this one ends.
    """
    try:
        _begin(server)
        import torch

        torch.set_num_threads(1)  # a parallel region of several would leave OpenMP waiting in all that is forked later
        if _serve(worker, link):
            gc.freeze()  # collections in workers would write to every page and so copy it
            _fork_on_request(worker, control, link)
    except BaseException:  # noqa: BLE001  (nothing of it may reach the frames of the server, of which this is a copy)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _begin(parent: int) -> None:
    """End with the parent, leave requests to stop to the server, write to the process's own streams.

    Signals often go to the whole process group; the server ends its processes once it has heard.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended in between
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # a progress bar replaces them by its own


def _fork_on_request(worker: Worker, control: socket.socket, link: socket.socket) -> None:
    link.close()
    living: set[int] = set()
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 1, socket.MSG_WAITALL)
        if len(request) < REQUEST.size:
            break
        what, pid = REQUEST.unpack(request)
        if what == START:
            parent = os.getpid()
            number = os.fork()
            if number == 0:
                control.close()
                _worker(worker, socket.socket(fileno=descriptors[0]), parent)
            os.close(descriptors[0])
            living.add(number)
        else:
            living.discard(pid)
            number = _end(pid)
        control.sendall(REPLY.pack(number))
    for pid in living:
        _end(pid)


def _end(pid: int) -> int:
    """Kill a worker, which may have ended before; returns its exit code, or minus the signal that killed it."""
    os.kill(pid, signal.SIGKILL)  # until it has been waited for, its number is not given to another process
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _worker(worker: Worker, link: socket.socket, parent: int) -> NoReturn:
    try:
        _begin(parent)
        while _serve(worker, link):
            pass
    except BaseException:  # noqa: BLE001  (as above)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _serve(worker: Worker, link: socket.socket) -> bool:
    """Carry out one order; False if there is none to come."""
    try:
        fields, arrays = frames.receive(link)
    except EOFError:
        return False
    try:
        outcome = worker.work(Order(**fields, arrays=arrays))
    except FCITError as error:
        frames.send(link, {"kind": "fatal", "name": type(error).__name__, "text": str(error)}, {})
        return False
    sys.stdout.flush()  # else what a client printed would be lost, or be in the memory of every process forked later
    frames.send(link, {"kind": outcome.kind, "text": outcome.text}, outcome.arrays)
    return True
