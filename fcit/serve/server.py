"""Starting and stopping the server: address, key, signals."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn

from fcit.errors import ConfigError
from fcit.export.assistant import Assistant
from fcit.serve.app import Service, application
from fcit.serve.limits import READING, Limits

#: Variable of the environment with the key, where an option would show it to all users of the machine.
KEY = "FCIT_API_KEY"


def listening(host: str, port: int, key: str) -> socket.socket:
    """The socket to serve on.

    Raises:
        ConfigError: it cannot be had, or others could reach a server without a key.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not key and not ipaddress.ip_address(str(address[0])).is_loopback:
            raise ConfigError(
                f"--host: {host!r} lets other machines ask, which needs a key; set {KEY} (or --api-key), or leave "
                "--host out"
            )
        return socket.create_server((str(address[0]), port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host, --port: cannot listen on {host}:{port} ({error}); choose another port") from None


def serve(assistant: Assistant, name: str, place: socket.socket, images: Path | None, limits: Limits, key: str) -> None:
    """Answer until SIGINT or SIGTERM; requests that were taken in are answered first.

    A second SIGINT ends it at once.
    """
    with TemporaryDirectory(prefix="fcit-serve-") as scratch:
        service = Service(assistant, name, Path(scratch), images, limits, key)
        config = uvicorn.Config(
            application(service),
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            # A backstop behind the queue: connections beyond it get a plain 503.
            limit_concurrency=4 * (limits.waiting + assistant.at_once + READING),
            timeout_graceful_shutdown=int(limits.seconds) + 5,
        )
        server = uvicorn.Server(config)
        # uvicorn raises the signal that stopped it again when it is done; this is the end that was asked for.
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            _announce(service, place)
            server.run(sockets=[place])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _announce(service: Service, place: socket.socket) -> None:
    host, port = place.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"serving:  http://{shown}:{port}/v1   (Ctrl-C ends it)", flush=True)
    print(f"models:   {', '.join(service.models)}", flush=True)
    print(f"images:   data: URLs{f', files below {service.images}' if service.images else ''}", flush=True)


def key_of(option: str | None) -> str:
    """The key that requests have to name; empty: none.

    Raises:
        ConfigError: a key that no header can hold.
    """
    key = os.environ.get(KEY, "") if option is None else option
    if not key and option is not None:
        raise ConfigError("--api-key: is empty; leave it out to serve this machine only")
    if any(not 32 < ord(letter) < 127 for letter in key):
        raise ConfigError(f"--api-key, {KEY}: a key is made of visible ASCII characters without blanks")
    if option is not None:
        print(f"fcit: --api-key is shown to all users of this machine (ps); {KEY} is not", file=sys.stderr)
    return key
