"""`fcit deploy init`, `add`, `renew` and `update`: the files of a deployment."""

from __future__ import annotations

from typing import Any

import yaml

from fcit import __version__
from fcit.config.site import Site
from fcit.deploy import app, certificates, door
from fcit.deploy.deployment import CONNECTION, Deployment, is_site_name
from fcit.deploy.steps import PROGRAM, PUBLIC, Steps
from fcit.errors import ConfigError

#: Keys written out in every SITE.yaml; the others are comments in it.
_SET = ("name", "superlink", "ca", "key", "data_root", "apps", "tasks")


def init(deployment: Deployment, clients: int, steps: Steps) -> None:
    """Make the folder of a deployment: authority, certificate, app, door, operator, and a folder for each site.

    Raises:
        ConfigError: the folder is in use, or the number of sites is 0.
        DeployError: openssl, ssh-keygen or flwr fail.
    """
    if clients < 1:
        raise ConfigError(f"--clients {clients}: must be at least 1")
    if deployment.path.exists() and (not deployment.path.is_dir() or any(deployment.path.iterdir())):
        whole = f"`fcit deploy add {deployment.path} NAME` adds a site, another DIR makes another deployment"
        broken = "it has no deployment.yaml: remove it if an init that failed left it, or take another DIR"
        why = whole if deployment.file.is_file() else broken
        raise ConfigError(f"{deployment.path} is not empty and nothing is overwritten; {why}")
    steps.folder(deployment.path)
    certificates.authority(deployment, steps)
    certificates.server(deployment, steps)
    steps.folder(deployment.home)
    steps.write(
        deployment.home / "config.toml",
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{deployment.superlink_port}"\nroot-certificates = "{deployment.ca}"\n',
    )
    for name in ("superlink", "runs", "cache"):
        steps.folder(deployment.path / name)
    door.write(deployment, steps)
    fab = app.write(deployment, steps)
    for number in range(clients):
        _site(deployment, str(number), fab, steps)
    door.admit(deployment, steps)
    # Last: a folder without it is not taken for a deployment.
    steps.write(deployment.file, deployment.facts())
    steps.say(
        f"\nnext: fcit deploy up {deployment.path} (or fcit-server.service), fcit deploy register {deployment.path}, "
        f"and each folder of {deployment.path / 'sites'} to its site"
    )


def add(deployment: Deployment, names: list[str], steps: Steps) -> None:
    """Make the folders of further sites.

    Raises:
        ConfigError: a name is no number, or taken.
    """
    problems = [f"{name!r}: a site's name is its client number, 0 or more" for name in names if not is_site_name(name)]
    for name in names:
        taken = [str(path) for path in (deployment.site(name), deployment.public_key(name)) if path.exists()]
        if taken:
            where = " and ".join(taken)
            problems.append(f"site {name} has a key already; for a new one first unregister it and move away {where}")
    if problems:
        raise ConfigError(problems, "fcit deploy add")
    fab = app.fab_hash(deployment, steps)
    for name in names:
        _site(deployment, name, fab, steps)
    door.admit(deployment, steps)
    steps.say(f"\nnext: fcit deploy register {deployment.path} {' '.join(names)}")


def renew(deployment: Deployment, steps: Steps) -> None:
    """Make a new server certificate; sites notice nothing, as they know the authority."""
    certificates.server(deployment, steps)
    steps.say("\n`fcit deploy up` takes it within seconds if it runs; sites and runs go on")


def update(deployment: Deployment, steps: Steps) -> None:
    """Make app and door anew after an update of fcit; every site has to pin the app's new hash."""
    fab = app.write(deployment, steps)
    door.write(deployment, steps)
    door.admit(deployment, steps)
    steps.say(f'\nnext: each site installs fcit {__version__} too and adds to `apps` in its SITE.yaml:\n  - "{fab}"')


def _site(deployment: Deployment, name: str, fab: str, steps: Steps) -> None:
    """The folder that is handed over to a site."""
    folder = deployment.site(name)
    steps.folder(folder.parent)
    steps.folder(folder)
    certificates.node(deployment, name, steps)
    steps.copy(deployment.ca, folder / "ca.crt", PUBLIC)
    steps.write(folder / "SITE.yaml", site_file(deployment, name, fab))
    steps.write(folder / "start.sh", door.filled("start.sh"), PROGRAM)
    steps.write(folder / "fcit-site.service", door.filled("fcit-site.service", name=name), PUBLIC)
    steps.write(folder / "README.txt", door.filled("README.txt", version=__version__, door=deployment.door), PUBLIC)


def site_file(deployment: Deployment, name: str, fab: str) -> str:
    """Text of a SITE.yaml: the known settings, and every other one with its default and meaning."""
    rest = [
        (key, _default(field.get_default(call_default_factory=True)), field.description or "")
        for key, field in Site.model_fields.items()
        if key not in _SET
    ]
    return door.filled("SITE.yaml", name=name, door=deployment.door, fab=fab, rest=rest)


def _default(value: Any) -> str:
    # As YAML reads it back: 1e-05 without a point would be text.
    return str(yaml.safe_dump(value, default_flow_style=True)).splitlines()[0]
