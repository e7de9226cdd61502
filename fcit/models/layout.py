"""What a method trains: plain LoRA factors, factors behind token gates, or a pool of soft prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

#: What peft's names of trained tensors begin with.
PREFIX = "base_model.model."
#: In the names of LoRA factors A ``(rank, d_in)`` and B ``(d_out, rank)``, and of token gates ``(experts, d_in)``.
A, B, GATE = ".lora_A.", ".lora_B.", ".lora_gate."
#: Names of a prompt pool's tensors, ``(pool, length, width)`` and ``(pool, identity width)``.
PROMPTS = "prompt_pool.prompts"
KEYS = "prompt_pool.keys"
#: What the names of the tensors begin with that map prompts into the space of identity features.
MAP = "prompt_map."


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


@dataclass(frozen=True)
class Layout:
    """Shape of a subspace.

    ``experts`` > 0: the rank is divided among so many experts, weighted token by token by a gate
    ``W_g (experts, d_in)`` in every adapted layer; with ``top`` > 0 only a token's so many largest weights act, and are
    not rescaled, so that the gate learns. ``pool`` > 0: no LoRA but ``pool`` soft prompts of
    ``length`` tokens, each with a key as wide as the method's ``identity`` features; with ``mapped`` no keys, but a
    network of two linear layers from a token to such a feature. ``routed``: the layers in which a
    question's mix acts; ``last``: in those of the last block only, all subspaces have weight one elsewhere.
    """

    experts: int = 0
    top: int = 0
    pool: int = 0
    length: int = 0
    identity: str = "text"
    routed: Literal["all", "last"] = "all"
    mapped: bool = False

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
