"""The folder of a deployment: its paths, and the few facts from which everything else follows."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from fcit.errors import ConfigError
from fcit.io import bounded
from fcit.io.files import read_json, write_json
from fcit.runs.environment import flower_environment

#: Name of the operator's connection in ``operator/config.toml``.
CONNECTION = "operator"
_FACTS = "deployment.yaml"


@dataclass(frozen=True)
class Deployment:
    """A deployment.

    Attributes:
        path: its folder.
        host: name or address by which sites reach the door.
        port: the door's port.
        bind: address that the door listens on.
        superlink_port: loopback port of the SuperLink.
    """

    path: Path
    host: str
    port: int = 9092
    bind: str = "0.0.0.0"
    superlink_port: int = 9091

    @classmethod
    def plan(cls, path: Path, host: str, port: int, bind: str | None, superlink_port: int) -> Deployment:
        """The facts of a new deployment, checked.

        Raises:
            ConfigError: every mistake found.
        """
        problems = []
        path = path.resolve()
        if not re.fullmatch(r"[\w./+@-]+", str(path)):
            problems.append(f"DIR {str(path)!r}: only letters, digits and ._+@-/ (it goes into nginx.conf)")
        address = _address(host)
        if address is None and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", host):
            problems.append(f"--host {host!r}: must be a host name or an IP address, without a port")
        if bind is not None and _address(bind) is None:
            problems.append(f"--bind {bind!r}: must be an IP address of this machine, 0.0.0.0 for all")
        for name, number in (("--port", port), ("--superlink-port", superlink_port)):
            if not 1 <= number <= 65535:
                problems.append(f"{name} {number}: must be 1 to 65535")
        if port == superlink_port:
            problems.append(f"--port and --superlink-port are both {port}: must be different")
        if problems:
            raise ConfigError(problems, "fcit deploy init")
        return cls(path, host, port, bind or (host if address is not None else "0.0.0.0"), superlink_port)

    @classmethod
    def open(cls, path: Path) -> Deployment:
        """Read the folder of a deployment.

        Raises:
            ConfigError: there is none.
        """
        file = path / _FACTS
        if not file.is_file():
            raise ConfigError(f"{path}: not the folder of a deployment; `fcit deploy init {path} --host ...` makes one")
        facts = bounded.read_yaml(file)
        kinds = {"host": str, "port": int, "bind": str, "superlink_port": int}
        if not isinstance(facts, dict) or {key: type(value) for key, value in facts.items()} != kinds:
            raise ConfigError(f"{file}: must hold host, port, bind and superlink_port as `fcit deploy init` wrote them")
        return cls.plan(path, **facts)

    def facts(self) -> str:
        """The text that :meth:`open` reads."""
        values = {key: value for key, value in asdict(self).items() if key != "path"}
        return yaml.safe_dump(values, sort_keys=False)

    @property
    def file(self) -> Path:
        """The file with the facts."""
        return self.path / _FACTS

    @property
    def names(self) -> str:
        """subjectAltName of the server certificate: the door's name, and loopback for the SuperLink behind it."""
        own = f"IP:{self.host}" if _address(self.host) else f"DNS:{self.host}"
        rest = [name for name in ("DNS:localhost", "IP:127.0.0.1") if name != own]
        return ",".join([own, *rest])

    @property
    def door(self) -> str:
        """host:port as sites write it."""
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def listen(self) -> str:
        """address:port as nginx writes it."""
        return f"{_bracketed(self.bind)}:{self.port}"

    @property
    def ca(self) -> Path:
        """Certificate of the operator's authority; every site gets it."""
        return self.path / "tls" / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Key of the authority: makes server certificates, needed for nothing else."""
        return self.path / "authority" / "ca.key"

    @property
    def certificate(self) -> Path:
        """Certificate of door and SuperLink."""
        return self.path / "tls" / "server.crt"

    @property
    def certificate_key(self) -> Path:
        """Its key."""
        return self.path / "tls" / "server.key"

    @property
    def nginx(self) -> Path:
        """Configuration of the door."""
        return self.path / "door" / "nginx.conf"

    @property
    def app(self) -> Path:
        """The Flower app that `flwr run` submits."""
        return self.path / "app"

    @property
    def home(self) -> Path:
        """FLWR_HOME of the operator's `flwr`."""
        return self.path / "operator"

    def public_key(self, name: str) -> Path:
        """Public key of a site."""
        return self.home / "keys" / f"{name}.pub"

    def site(self, name: str) -> Path:
        """Folder to hand over to a site."""
        return self.path / "sites" / name

    def sites(self) -> list[str]:
        """Names of all sites a key exists of, in order."""
        return sorted((file.stem for file in self._keys() if is_site_name(file.stem)), key=int)

    def strays(self) -> list[Path]:
        """Files among the sites' keys that are not named after a client number."""
        return [file for file in self._keys() if not is_site_name(file.stem)]

    def _keys(self) -> list[Path]:
        return sorted((self.home / "keys").glob("*.pub"))

    def remembered(self, kind: str) -> dict[str, str]:
        """The operator's ``nodes`` (site to node id) or ``runs`` (Flower's run id to run folder)."""
        file = self.home / f"{kind}.json"
        return dict(read_json(file)) if file.is_file() else {}

    def remember(self, kind: str, values: dict[str, str]) -> None:
        """Save the operator's ``nodes`` or ``runs``."""
        write_json(self.home / f"{kind}.json", values)

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of every Flower process of this deployment; programs installed beside fcit come first."""
        environment = flower_environment(home)
        programs = str(Path(sys.executable).parent)
        return {**environment, "PATH": os.pathsep.join([programs, environment.get("PATH", os.defpath)])}


def is_site_name(name: str) -> bool:
    """Whether a site can have this name: a client number as Python writes it."""
    return re.fullmatch(r"0|[1-9][0-9]{0,8}", name) is not None


def parsed(text: str) -> dict[str, Any]:
    """The JSON object a command printed; empty where it printed something else."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
