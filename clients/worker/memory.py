"""Memory of a client between its orders: replay buffers, control variates and the like.

It stays where the client's data are, under the run folder in a simulation, in the site's own folder
when deployed, and never travels. An order names the version it expects, and a version counts only
once the server has committed its round: after a crash both sides go on from the same point. The version before that
one stays, too: the server's newest checkpoint may turn out damaged, and the one before it names the earlier version.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fcit.errors import ConfigError, MemoryLost, Refused, RunError
from fcit.federation.messages import NAME
from fcit.io import trees
from fcit.io.files import read_json, read_tensors, write_json, write_tensors
from fcit.io.trees import Tensors
from fcit.privacy.secret import kept


def _checked(*names: str) -> None:
    """Check names from the server, which become file names.

    Raises:
        RunError: a name could lead out of the folder.
    """
    for name in names:
        if not NAME.fullmatch(name):
            raise RunError(f"{name!r}: not a name that the client's memory takes (letters, digits, '_', '.' and '-')")


#: Versions are named by :func:`fcit.federation.messages.memory_version`.
_VERSION = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")


def _moment(version: str) -> tuple[int, int]:
    """Stage and round of a version, by which versions are ordered; of another name a moment before all."""
    match = _VERSION.fullmatch(version)
    return (int(match[1]), int(match[2])) if match else (-1, -1)


class ClientMemory:
    """Memories of the clients of one run, one folder each.

    Args:
        root: folder of all clients' memories; None if none is configured.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root

    def read_only(self) -> ClientMemory:
        """The same memories, of which :meth:`save` keeps nothing."""
        return _ReadOnly(self._root)

    @property
    def root(self) -> Path:
        """The folder.

        Raises:
            ConfigError: clients are to keep something and no folder is configured.
        """
        if self._root is None:
            raise ConfigError(
                "client-memory: clients of this run keep something; name a folder in Flower's node "
                "configuration (at a site) or run configuration (in a simulation)"
            )
        return self._root

    def load(self, client: int, version: str) -> dict[str, Any]:
        """The memory of ``client`` as of ``version`` (empty text: nothing yet).

        The newest version before it stays on the disk, all others are removed.

        Raises:
            MemoryLost: that version is not here, or cannot be read.
            RunError: no name for a version.
        """
        folder = self.root / str(client)
        _checked(*([version] if version else []))
        if folder.is_dir():
            known = (file.stem for file in folder.glob("*.json"))
            earlier = (name for name in known if _moment(name) < _moment(version))
            kept = {version, max(earlier, key=_moment, default=version)}
            for file in folder.iterdir():
                if file.is_file() and file.name.split(".")[0] not in kept:
                    file.unlink(missing_ok=True)
        if not version:
            return {}
        try:
            plain = read_json(folder / f"{version}.json")
            value = trees.restore(plain, read_tensors(folder / f"{version}.safetensors"))
        except RunError as error:
            raise MemoryLost(f"client {client}: memory {version!r} is lost ({error})") from None
        if not isinstance(value, dict):
            raise MemoryLost(f"{folder / version}: not a client's memory")
        return value

    def save(self, client: int, version: str, memory: dict[str, Any]) -> None:
        """Write a new version beside the one the server knows."""
        plain, tensors = trees.flatten(memory)
        folder = self.root / str(client)
        write_tensors(folder / f"{version}.safetensors", tensors)
        write_json(folder / f"{version}.json", plain)

    def constants(
        self, client: int, wanted: list[str], sent: Tensors, keep: Collection[str] = ()
    ) -> dict[str, Tensors]:
        """The groups ``wanted``: those just ``sent`` (``group/name``) are kept, the others were kept before.

        Groups that are neither wanted nor in ``keep`` are removed: no later order names them without sending them.

        Raises:
            ConfigError: as :attr:`root`, if any is wanted.
            MemoryLost: a group was neither sent nor is it here.
            RunError: no name for a group.
        """
        if self._root is None and not wanted:
            return {}
        folder = self.root / str(client) / "constants"
        _checked(*wanted, *(name.partition("/")[0] for name in sent))
        new: dict[str, Tensors] = {}
        for name, tensor in sent.items():
            group, _, rest = name.partition("/")
            new.setdefault(group, {})[rest] = tensor
        self._replace(folder, new, {*wanted, *keep})
        try:
            return {g: new[g] if g in new else read_tensors(folder / f"{g}.safetensors") for g in wanted}
        except RunError as error:
            raise MemoryLost(f"client {client}: constants it was sent before are lost ({error})") from None

    def _replace(self, folder: Path, new: dict[str, Tensors], kept: set[str]) -> None:
        """Write ``new`` groups of constants, and remove those that are not to be ``kept``."""
        for file in folder.glob("*.safetensors"):
            if file.stem not in kept:
                file.unlink(missing_ok=True)
        for group, tensors in new.items():
            write_tensors(folder / f"{group}.safetensors", tensors)

    def secret(self, client: int) -> bytes:
        """The secret that a client's noise and batches come from (``privacy.record_dp``, ``token_*``), made when
        first needed.

        Raises:
            RunError: it is damaged.
        """
        return kept(self.root / str(client) / "records" / "noise.key")

    def hold(self, client: int, name: str, value: float) -> None:
        """Hold the server to a value of the first order: noise of two sizes on one sum would leave less of it.

        Raises:
            Refused: it was another. RunError: the file is damaged.
        """
        file = self.root / str(client) / "records" / f"{name}.json"
        first = read_json(file) if file.is_file() else value
        if first != value:
            raise Refused(
                f"privacy: {name} is {value:.6g} in this order and was {first} in an earlier one of this run; start "
                "another run for another value"
            )
        if not file.is_file():
            write_json(file, value)

    def size(self, client: int) -> int:
        """Bytes of a client's newest version and constants, without those kept for a server that goes back; 0 where no
        folder is configured."""
        if self._root is None:
            return 0
        folder = self.root / str(client)
        files = [*folder.glob("constants/*")]
        newest = max((file.stem for file in folder.glob("*.json")), key=_moment, default=None)
        if newest is not None:
            files += folder.glob(f"{newest}.*")
        return sum(file.stat().st_size for file in files)


class _ReadOnly(ClientMemory):
    """Memories for a training that leaves no trace."""

    def save(self, client: int, version: str, memory: dict[str, Any]) -> None:
        """Keep nothing."""

    def _replace(self, folder: Path, new: dict[str, Tensors], kept: set[str]) -> None:
        """Keep nothing, and leave what is kept."""
