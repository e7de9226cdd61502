"""Before a site's SuperNode starts, the one before it is signed off, if it has ended without doing so itself.

The SuperLink (flwr 1.41 and 1.42) takes a SuperNode that was killed for online for up to a minute, and lets in no other
one with its key meanwhile. Who has the key may sign it off; this does, and becomes Flower's own process then.

With `clients/site/executor.py` this is where Flower's private parts are touched on the client's side; a test says
which. ``python -m clients.site.signoff SUPERLINK CA KEY NODE.json COMMAND...`` is started by `fcit client start`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fcit.errors import RunError
from fcit.io.files import read_json, write_json

#: How a SuperNode prints under which number the SuperLink has let it in.
_ADMITTED = re.compile(r"SuperNode ID: (\d+)$")


def admitted(lines: Iterable[str]) -> int | None:
    """The node that a SuperNode says it is, from its lines of output; None if it has not been let in yet."""
    found = (match for line in lines if (match := _ADMITTED.search(line)))
    return next((int(match[1]) for match in found), None)


def remember(file: Path, node: int) -> None:
    """Keep the number of the node that is to be signed off if its SuperNode does not do so.

    Raises:
        DiskFull: no room.
        OSError: it cannot be written for another reason.
    """
    write_json(file, {"node": node}, durable=False)


def remembered(file: Path) -> int | None:
    """The node that was let in last; None if that is not known."""
    if not file.is_file():
        return None
    with suppress(RunError, KeyError, TypeError, ValueError):  # a power cut has left it empty: then a minute passes
        return int(read_json(file)["node"])
    return None


def sign_off(superlink: str, ca: str, key: str, node: int) -> bool:
    """Tell the SuperLink that this site's SuperNode has ended; whether that was news to it.

    Why it cannot be told (door, clock, key) is left to the SuperNode to find out and say.
    """
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest  # slow to import, and not needed at a first start
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    try:
        private = load_ssh_private_key(Path(key).read_bytes(), None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            return False
        signed = NodeAuthHttpInterceptor(private, private.public_key())
        with FleetHttpClient.from_server_address(superlink, False, ca, [signed]) as client:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node))
    except (OSError, ValueError, UnsupportedAlgorithm, httpx.HTTPError, httpx.InvalidURL):
        return False
    return True


def main(arguments: list[str]) -> None:
    """Sign off, then become the process of the command."""
    superlink, ca, key, file, *command = arguments
    node = remembered(Path(file))
    if node is not None and sign_off(superlink, ca, key, node):
        print(f"node {node} had not signed off; the SuperLink knows now that its SuperNode has ended", flush=True)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
