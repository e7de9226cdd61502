"""What a method trains: plain LoRA factors, factors behind gates or a key, or a pool of soft prompts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: What peft's names of trained tensors begin with.
PREFIX = "base_model.model."
#: In the names of LoRA factors A ``(rank, d_in)`` and B ``(d_out, rank)``, and of gates (:meth:`Layout.gates`).
A, B, GATE = ".lora_A.", ".lora_B.", ".lora_gate."
#: Names of a prompt pool's tensors, ``(pool, length, width)`` and ``(pool, identity width)``.
PROMPTS = "prompt_pool.prompts"
KEYS = "prompt_pool.keys"
#: What the names of the tensors begin with that map prompts into the space of identity features.
MAP = "prompt_map."
#: What the names of a subspace's key and of the network in front of it begin with (:meth:`Layout.key`).
ROUTING = "routing."


def is_factor(name: str) -> bool:
    """Whether a trained tensor is a LoRA factor."""
    return A in name or B in name


def is_projector(name: str) -> bool:
    """Whether a trained tensor belongs to the projector, the module between vision tower and language model.

    Whatever peft trains that is no factor and no gate is the projector: no name of a module is needed, so that this
    holds for every family of models.
    """
    return name.startswith(PREFIX) and not is_factor(name) and GATE not in name


def last_block(names: Iterable[str]) -> set[str]:
    """The names of layers or tensors in the last block of the language model; all if no name has a number.

    Blocks are numbered by the first number among the parts of a name.
    """
    numbers = {name: next((int(part) for part in name.split(".") if part.isdigit()), -1) for name in names}
    last = max(numbers.values(), default=-1)
    return {name for name, number in numbers.items() if number == last}


def left_out(names: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Zeros for the layers that a subspace has left out, because it changes nothing in them.

    Args:
        names: of its tensors. Factors of which only the other one is here are no such layer's.
        shapes: of a whole subspace.
    """
    pairs = [(n, n.replace(A, B)) for n in shapes if A in n]
    lacking = [n for pair in pairs if not any(n in names for n in pair) for n in pair if n in shapes]
    return {n: np.zeros(shapes[n], np.float32) for n in lacking}


@dataclass(frozen=True)
class Layout:
    """Shape of a subspace.

    ``experts`` > 0: the rank is divided among so many experts, weighted by a ``gate`` in every adapted layer:
    ``token``, a softmax for every token (with ``top`` > 0 only its so many largest weights act, and are not rescaled,
    so that the gate learns); ``halves``, two mixtures whose routers decide once for a question
    (:mod:`fcit.models.halves`); ``dead-halves``, the same with routers that learn nothing and decide anew at every
    token of an answer. ``pool`` > 0: no LoRA but ``pool`` soft prompts of ``length`` tokens, each with a key as wide as
    the method's ``identity`` features; with ``mapped`` no keys, but a network of two linear layers from a token to such
    a feature. ``routed``: the layers in which a question's mix acts; ``last``: in those of the last block only, all
    subspaces have weight one elsewhere. ``keyed`` > 0: a subspace has a key as wide as a token, behind a network of so
    many hidden numbers.
    """

    experts: int = 0
    top: int = 0
    gate: Literal["token", "halves", "dead-halves"] = "token"
    keyed: int = 0
    pool: int = 0
    length: int = 0
    identity: str = "text"
    routed: Literal["all", "last"] = "all"
    mapped: bool = False

    @property
    def decides(self) -> bool:
        """Whether something is decided about a question as a whole (:mod:`fcit.models.reading`)."""
        return bool(self.keyed or self.gate != "token")

    def problem(self, rank: int) -> str | None:
        """Why ``adapter.rank`` does not fit, in one sentence, or None."""
        if not self.experts or rank % self.experts == 0:
            return None
        nearest = max(1, round(rank / self.experts)) * self.experts
        return (
            f"adapter.rank: {rank} cannot be divided among {self.experts} experts; choose a multiple of "
            f"{self.experts}, e.g. {nearest}"
        )

    def prompts(self, width: int, features: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors of a pool of soft prompts.

        Args:
            width: of a token.
            features: width of an identity feature.
        """
        shapes: dict[str, tuple[int, ...]] = {PROMPTS: (self.pool, self.length, width)}
        if not self.mapped:
            return {KEYS: (self.pool, features), **shapes}
        for number, wide in ((0, width), (2, features)):
            shapes |= {f"{MAP}{number}.weight": (wide, width), f"{MAP}{number}.bias": (wide,)}
        return shapes

    def gates(self, d_in: int, d_out: int, features: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the gates of one layer, by the last part of their names.

        Args:
            d_in: width of the layer's input.
            d_out: width of its output.
            features: width of an identity feature.
        """
        if not self.experts:
            return {}
        if self.gate == "token":
            return {"weight": (self.experts, d_in)}
        half = self.experts // 2
        return {"visual": (half, d_in), "instruction": (half, features), "fusion": (2, d_out)}

    def key(self, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes of a subspace's key, and of the two linear layers and the norm in front of it, for tokens so wide."""
        if not self.keyed:
            return {}
        shapes = {"key": (width,), "down": (self.keyed, width), "up": (width, self.keyed)}
        shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
        return {f"{ROUTING}{name}": shape for name, shape in shapes.items()}
