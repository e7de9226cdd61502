"""What a method trains: plain LoRA factors, factors behind token gates, or a pool of soft prompts."""

from __future__ import annotations

from dataclasses import dataclass

#: Names of a prompt pool's tensors, ``(pool, length, width)`` and ``(pool, identity width)``.
PROMPTS = "prompt_pool.prompts"
KEYS = "prompt_pool.keys"


@dataclass(frozen=True)
class Layout:
    """Shape of a subspace.

    ``experts`` > 0: the rank is divided among so many experts, weighted token by token by a gate
    ``W_g (experts, d_in)`` in every adapted layer. ``pool`` > 0: no LoRA but ``pool`` soft prompts of
    ``length`` tokens, each with a key.
    """

    experts: int = 0
    pool: int = 0
    length: int = 0
