"""The door: a reverse proxy that lets sites reach Flower's Fleet API and nothing else.

Flower 1.41 and 1.42 serve Control, Fleet and Runtime API on one port; the open edition asks nobody who uses the
Control API to say who they are. So the SuperLink listens on loopback, and nginx passes on the few paths that a
registered SuperNode needs. Flower itself then checks the node's signature.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fcit.deploy.deployment import Deployment
from fcit.deploy.steps import PUBLIC, DeployError, Steps

#: What a SuperNode with a registered key calls. Registering itself is not among it: the operator does that.
FLEET_PATHS = tuple(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)


def filled(template: str, **values: Any) -> str:
    """A file of ``fcit/deploy/templates`` with its values."""
    environment = Environment(
        loader=PackageLoader("fcit.deploy"), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    return environment.get_template(template).render(**values)


def write(deployment: Deployment, steps: Steps) -> None:
    """Write nginx.conf and the unit that starts SuperLink and door."""
    steps.folder(deployment.nginx.parent)
    text = filled(
        "nginx.conf",
        folder=deployment.nginx.parent,
        listen=deployment.listen,
        paths=FLEET_PATHS,
        ca=deployment.ca,
        superlink_port=deployment.superlink_port,
        certificate=deployment.certificate,
        certificate_key=deployment.certificate_key,
    )
    steps.write(deployment.nginx, text)
    unit = filled(
        "fcit-server.service",
        path=deployment.path,
        port=deployment.port,
        user=pwd.getpwuid(os.getuid()).pw_name,
        fcit=Path(sys.executable).with_name("fcit"),
    )
    steps.write(deployment.path / "fcit-server.service", unit, PUBLIC)


def nginx() -> str:
    """The nginx program; Debian keeps it where ordinary users have no path to.

    Raises:
        DeployError: it is not installed.
    """
    program = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if program is None:
        raise DeployError("nginx is not installed: the door needs it (Debian: apt install nginx-light)")
    return program


def command(deployment: Deployment) -> list[str]:
    """The command that is the door; it stays in the foreground."""
    return [nginx(), "-e", str(deployment.nginx.parent / "error.log"), "-c", str(deployment.nginx)]
