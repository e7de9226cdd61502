"""The format of exported subspaces: peft folders, identity tokens and the routing that mixes them.

A run folder keeps them under ``adapters/``, ``fcit export`` writes them elsewhere. Both
contain ``routing.json`` and ``tokens.safetensors``; :class:`Portable` reads either and validates both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from fcit.config.checks import sentences
from fcit.config.kinds import BatchSize, Decoder, Way
from fcit.config.schema import Adapter, Backbone, Section
from fcit.errors import ConfigError, DataError, RunError
from fcit.io import bounded
from fcit.io.files import read_json, read_tensors, write_json, write_tensors
from fcit.io.trees import Tensors
from fcit.models.layout import is_projector
from fcit.models.saving import BARE, PEFT

Policy = Literal["shared", "frozen", "per_subspace"]

ROUTING = "routing.json"
TOKENS = "tokens.safetensors"
SUBSPACES = "subspaces"
#: Maximum of bytes; far more than names, a few options and one line per subspace need.
MAX_ROUTING = 2**24
#: Valid names of subspaces, which are names of folders.
NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)


class Routing(Section):
    """``routing.json``: everything needed to answer, except tensors.

    A default is what runs did before there was the key, not what they do now; files have all keys.
    """

    format: Literal[1] = Field(1, description="raised when older readers could not understand it")
    method: dict[str, Any] = Field(description="the method that mixes, with its options (mix rule, temperature)")
    subspaces: list[str] = Field(description="in the order of every mix")
    knowledge: dict[str, Any] = Field(description="what the method knows about them, beside tokens.safetensors")
    projector: Policy = Field(description="whose projector acts")
    adapter: Adapter
    backbone: Backbone
    hashes: dict[str, str] = Field(description="of the backbone, its tokenizer, image processor and identity encoder")
    max_new_tokens: int = Field(ge=1, description="longest answer that the run allowed")
    pictures: Way = Field("official", description="how the run's pictures became pixels (data.pictures)")
    batch_size: BatchSize = Field(description="questions answered at a time; the run's, for the same bits")
    by_length: bool = Field(False, description="whether a stretch is put into batches by length (evaluation.by_length)")
    batches_per_order: int = Field(
        4, ge=1, description="batches of a stretch, whose questions are sorted together (evaluation.batches_per_order)"
    )
    decoder: Decoder = Field("transformers", description="who decoded the run's answers (evaluation.decoder)")
    mixture: Literal["float32", "backbone"] = Field(
        "float32", description="number format of the run's subspaces when they answered (evaluation.mixture)"
    )
    stage: int = Field(ge=0, description="stages of the run that were finished")
    trained_on: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="records that each subspace was trained on in all rounds, by data set"
    )
    formats: dict[str, str] = Field(
        default_factory=dict, description="line that ended a data set's instructions, which routing has seen"
    )


def projector_policy(subspaces: list[Tensors], shared: Tensors, configured: Policy) -> Policy:
    """The projector policy by the tensors of a run; a method may give each subspace its own projector.

    Args:
        configured: ``adapter.projector``.

    Raises:
        RunError: a projector was trained that was to be frozen, or none that was to be trained.
    """
    policy: Policy = "frozen"
    if any(is_projector(name) for name in shared):
        policy = "shared"
    elif any(is_projector(name) for subspace in subspaces for name in subspace):
        policy = "per_subspace"
    if subspaces and (policy == "frozen") != (configured == "frozen"):
        raise RunError(
            f"adapter.projector: {configured!r}, but the tensors of the run say {policy!r}: the tensors of a projector "
            "are not told from those of the adapters (fcit/models/layout.py)"
        )
    return policy


def write(folder: Path, routing: Routing, tokens: Tensors) -> None:
    """Write ``routing.json`` and the tensors that belong to it.

    Raises:
        DiskFull: there is no room.
    """
    write_tensors(folder / TOKENS, tokens)
    write_json(folder / ROUTING, routing.model_dump(mode="json"))


@dataclass(frozen=True)
class Portable:
    """A folder of subspaces of any origin: an export, or a run folder.

    ``home`` contains ``routing.json``, ``subspaces`` one folder for each subspace.
    """

    home: Path
    subspaces: Path
    routing: Routing

    @classmethod
    def open(cls, path: Path) -> Portable:
        """Open an export, or a run folder's adapters.

        Raises:
            ConfigError: ``path`` is neither. DataError: its ``routing.json`` is damaged.
        """
        if (path / ROUTING).is_file():
            return cls(path, path / SUBSPACES, _read_routing(path / ROUTING))
        if not (path / "config.yaml").is_file():
            raise ConfigError(
                f"{path}: neither a folder made by `fcit export` (no {ROUTING}) nor a run folder (no config.yaml); "
                "`fcit export RUN --to DIR` makes one"
            )
        if (path / "adapters" / ROUTING).is_file():
            return cls(path / "adapters", path / "adapters", _read_routing(path / "adapters" / ROUTING))
        if not (path / "results.json").is_file():
            raise ConfigError(f"{path}: the run has not finished; `fcit resume {path}` goes on")
        if "clients_by_stage" in read_json(path / "results.json"):
            raise ConfigError(
                f"{path}: its clients answer with factors of their own (factors), which stay with them; there is no "
                "adapter to answer with"
            )
        raise ConfigError(
            f"{path}: no adapters/{ROUTING}, which older versions did not write; `fcit run {path}/config.yaml` "
            "runs it again"
        )

    def tensors(self, name: str) -> Tensors:
        """A subspace (with its projector, if trained) by peft's saved names, float32.

        Raises:
            DataError: its file is missing, damaged or holds anything but finite float32 arrays.
        """
        folder = self.subspaces / name
        file = folder / (PEFT if (folder / PEFT).is_file() else BARE)
        tensors = _read(file)
        wrong = [n for n, t in tensors.items() if t.dtype != np.float32 or not np.isfinite(t).all()]
        if wrong or not tensors:
            problem = f"{bounded.shown(wrong[0])} is not made of finite float32 numbers" if wrong else "no tensor in it"
            raise DataError(f"{file}: {problem}; export the run again")
        return tensors

    def known(self) -> Tensors:
        """The method's knowledge in tensors, e.g. identity tokens ``(E, d)``.

        Raises:
            DataError: the file is missing or damaged.
        """
        return _read(self.home / TOKENS)

    def split(self) -> tuple[list[Tensors], Tensors]:
        """Subspaces in the order of every mix, and the projector they share (empty if there is none).

        Raises:
            DataError: a file is damaged, or projectors that should be one differ.
        """
        whole = [self.tensors(name) for name in self.routing.subspaces]
        if self.routing.projector != "shared":
            return whole, {}
        shared = {n: t for n, t in whole[0].items() if is_projector(n)} if whole else {}
        for name, tensors in zip(self.routing.subspaces, whole, strict=True):
            if not all(n in tensors and np.array_equal(tensors[n], t) for n, t in shared.items()):
                raise DataError(
                    f"{self.subspaces / name}: its projector is not that of {self.routing.subspaces[0]!r}, but "
                    f"{ROUTING} says projector: shared; write per_subspace there if each is to keep its own"
                )
        return [{n: t for n, t in tensors.items() if not is_projector(n)} for tensors in whole], shared


def _read(file: Path) -> Tensors:
    try:
        return read_tensors(file)
    except RunError as error:
        raise DataError(f"{error}; export the run again") from None


def _read_routing(file: Path) -> Routing:
    try:
        raw = bounded.parse_json(bounded.read_text(file, MAX_ROUTING), unique=True)
        problem = bounded.depth_problem(raw)
        if problem:
            raise ValueError(problem)
        routing = Routing.model_validate(raw)
        bad = [name for name in routing.subspaces if not NAME.fullmatch(name)]
        if bad or len(set(routing.subspaces)) < len(routing.subspaces):
            raise ValueError("subspaces: must be different names of letters, digits, '_', '.' and '-', as folders are")
        return routing
    except ValidationError as error:
        raise DataError(f"{file}: damaged or of another version ({'; '.join(sentences(error, Routing)[:5])})") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: damaged ({error}); export the run again") from None
