"""The door: a reverse proxy (nginx) by which sites reach Flower's Fleet API and nothing else.

Flower 1.41 and 1.42 serve Control, Fleet and Runtime API on one port; the open edition does not
authenticate users of the Control API. So the SuperLink listens on loopback, and nginx passes on the few paths that a
registered SuperNode needs, from those that name the key of a site, in bodies of bounded size. Flower itself then checks
the node's signature.
"""

from __future__ import annotations

import base64
import os
import pwd
import shutil
import sys
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from jinja2 import Environment, PackageLoader, StrictUndefined

from fcit.deploy.deployment import Deployment
from fcit.deploy.steps import PUBLIC, DeployError, Steps
from fcit.errors import ConfigError

#: Paths that a SuperNode with a registered key calls, and the largest body of each. Registration is not one of them:
#: the operator does that. A push of messages lists the objects of one reply, some 70 bytes each: 64 kB are 900 of them,
#: or 4 GB. An object is one of the parts of 5 MiB that Flower cuts arrays into, or the JSON head of a reply (at most
#: ``codec.HEAD_OF_REPLY``). Everything else is a few numbers and a hash.
FLEET_PATHS = {
    f"/v1/fleet/{name}": size
    for name, size in {
        "activate-node": "8k",
        "deactivate-node": "8k",
        "send-node-heartbeat": "8k",
        "pull-messages": "8k",
        "push-messages": "64k",
        "get-run": "8k",
        "get-fab": "8k",
        "pull-object": "8k",
        "push-object": "9m",
        "confirm-message-received": "8k",
    }.items()
}
LOG, KEPT = 16 * 2**20, 4  # bytes of a log of nginx before it is put aside, and how many of those are kept


def filled(template: str, **values: Any) -> str:
    """A file of ``fcit/deploy/templates`` with its values."""
    environment = Environment(
        loader=PackageLoader("fcit.deploy"), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    return environment.get_template(template).render(**values)


def write(deployment: Deployment, steps: Steps) -> None:
    """Write nginx.conf and the systemd unit that starts SuperLink and door."""
    steps.folder(deployment.nginx.parent)
    text = filled(
        "nginx.conf",
        folder=deployment.nginx.parent,
        sites=_admitted(deployment),
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
    """The nginx program; Debian installs it outside ordinary users' PATH.

    Raises:
        DeployError: it is not installed.
    """
    program = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if program is None:
        raise DeployError("nginx is not installed: the door needs it (Debian: apt install nginx-light)")
    return program


def command(deployment: Deployment) -> list[str]:
    """The command of the door; it stays in the foreground."""
    return [nginx(), "-e", str(deployment.nginx.parent / "error.log"), "-c", str(deployment.nginx)]


def check(deployment: Deployment, steps: Steps) -> None:
    """Have nginx read its configuration and the files that this names.

    Raises:
        DeployError: it would not start; quotes the line at fault.
    """
    steps.run(*command(deployment), "-t")


# ---------------------------------------------------------------------- whom it lets in


def identity(key: Path) -> str:
    """By this a SuperNode names its key in every request (flwr 1.41 and 1.42): base64 of the key as PEM.

    Raises:
        ConfigError: the file holds no public key of the kind that Flower takes.
    """
    try:
        public = load_ssh_public_key(key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{key}: not an OpenSSH public key ({error}); ask the site for its site.key.pub") from None
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{key}: Flower takes keys of kind ecdsa only (`ssh-keygen -t ecdsa -b 384 -f site.key`)")
    return base64.b64encode(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).decode()


def admit(deployment: Deployment, steps: Steps) -> list[str]:
    """Write the list of keys that the door lets in, those of all sites that the operator has a public key of.

    Flower decides which of them are registered. A door that is up reads a list that has changed at once.

    Returns:
        a sentence for each file that is not a site's key; it is left out.
    """
    admitted: dict[str, str] = {}
    problems = [
        f"{file}: a site's key is named after its client number (0.pub, 1.pub, ...); rename it or move it away"
        for file in deployment.strays()
    ]
    for name in deployment.sites():
        file = deployment.public_key(name)
        try:
            first = admitted.setdefault(identity(file), name)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if first != name:  # two lines for one key would keep nginx from starting
            problems.append(f"{file}: the same key as that of site {first}; a site's key is its own")
    file, text = _admitted(deployment), "".join(f'"{key}" {name};\n' for key, name in admitted.items())
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        steps.write(file, text)
        if _is_up(deployment):
            steps.run(*command(deployment), "-s", "reload")
    return problems


def _is_up(deployment: Deployment) -> bool:
    """Whether nginx runs with this configuration; a number that a crash has left behind may be another process's."""
    try:
        number = int((deployment.nginx.parent / "nginx.pid").read_text())
        return str(deployment.nginx).encode() in Path(f"/proc/{number}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


def _admitted(deployment: Deployment) -> Path:
    return deployment.nginx.with_name("sites.map")


# ---------------------------------------------------------------------- its logs


def rotate(deployment: Deployment) -> None:
    """Put logs aside that have grown.

    They are copied and cut, as logrotate's ``copytruncate`` does: nginx appends, so it need not open them anew, which
    its worker could not do where a superuser runs the door.

    Raises:
        OSError: there is no room for a copy, say; all are as they were.
    """
    for name in ("access.log", "error.log"):
        file = deployment.nginx.with_name(name)
        if not file.is_file() or file.stat().st_size < LOG:
            continue
        copy = file.with_name(f"{name}.copy")
        try:
            shutil.copyfile(file, copy)
        except OSError:
            copy.unlink(missing_ok=True)
            raise
        for number in range(KEPT, 1, -1):
            newer = file.with_name(f"{name}.{number - 1}")
            if newer.is_file():
                newer.replace(file.with_name(f"{name}.{number}"))
        copy.replace(file.with_name(f"{name}.1"))
        os.truncate(file, 0)
