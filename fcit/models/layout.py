"""What a method trains: plain LoRA factors, factors behind token gates, or a pool of soft prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: The module between vision tower and language model, which may be trained beside the subspaces: LLaVA's and
#: Qwen-VL's (:mod:`fcit.models.families`).
PROJECTORS = ("multi_modal_projector", "merger")
#: Names of a prompt pool's tensors, ``(pool, length, width)`` and ``(pool, identity width)``.
PROMPTS = "prompt_pool.prompts"
KEYS = "prompt_pool.keys"


def is_projector(name: str) -> bool:
    """Whether a tensor belongs to the projector and not to a subspace's adapter."""
    return not set(PROJECTORS).isdisjoint(name.split("."))


def projector_of(names: Iterable[str]) -> str | None:
    """What the module is called that these tensors hold a projector for; None if they hold none."""
    found = {part for name in names for part in name.split(".") if part in PROJECTORS}
    return next(iter(sorted(found)), None)


@dataclass(frozen=True)
class Layout:
    """Shape of a subspace.

    ``experts`` > 0: the rank is divided among so many experts, weighted token by token by a gate
    ``W_g (experts, d_in)`` in every adapted layer. ``pool`` > 0: no LoRA but ``pool`` soft prompts of
    ``length`` tokens, each with a key as wide as the method's ``identity`` features.
    """

    experts: int = 0
    pool: int = 0
    length: int = 0
    identity: str = "text"
