"""Keys and values of a batch at fixed addresses, in transformers' own interface of a cache."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, StaticLayer


def _keep_prompt(kept: torch.Tensor, new: torch.Tensor, seen: int) -> None:
    """States of prompts at the beginning of rows; behind them zeros, as what is not finite would reach the sums."""
    rows, _, prompt, _ = new.shape
    kept[:rows, :, :prompt] = new
    kept[:rows, :, prompt:seen] = 0


def _keep_token(kept: torch.Tensor, new: torch.Tensor, slot: torch.Tensor) -> None:
    """States of one token a row at a slot ``(1,)``."""
    kept[: len(new)].index_copy_(2, slot, new)


_FUNCTIONS = _keep_prompt, _keep_token
#: The same as operators of torch's: in compiled code they write in place, where what they consist of copies all slots.
_OPERATORS = (
    torch.library.custom_op(
        "fcit::keep_prompt",
        _keep_prompt,
        mutates_args=("kept",),
        schema="(Tensor(a!) kept, Tensor new, SymInt seen) -> ()",
    ),
    torch.library.custom_op(
        "fcit::keep_token",
        _keep_token,
        mutates_args=("kept",),
        schema="(Tensor(a!) kept, Tensor new, Tensor slot) -> ()",
    ),
)


def _buffer(states: torch.Tensor, rows: int, room: int) -> torch.Tensor:
    """Zeros ``(rows, heads, slots, width)`` for states like these.

    The heads of a slot lie side by side, as projections give them, so that whole slots are copied.
    """
    return states.new_zeros(rows, room, states.shape[1], states.shape[3]).transpose(1, 2)


class Slots(StaticLayer):
    """Keys and values of one layer, a slot for every token of a row.

    Unlike transformers' layer it is larger than a batch, so that batch after batch uses the same memory, a prompt
    attends to itself only, and a step reads no slots beyond those in use.
    """

    is_compileable = False  # of interest to transformers' generate alone

    def __init__(self, owner: KeyValues) -> None:
        super().__init__(max_cache_len=0)
        self._owner = owner
        #: Keys and values ``(rows, heads, slots, width)``; none before the first prompt.
        self.parts: tuple[torch.Tensor, ...] = ()
        self._like: tuple[torch.Tensor, ...] = ()

    def reserve(self) -> None:
        """Buffers as the last ones, of the size that the owner has now: none before the first prompt."""
        self.parts = tuple(_buffer(like, self._owner.rows, self._owner.room) for like in self._like)

    def release(self) -> None:
        """Give the memory back."""
        self.parts = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the states of a prompt or of one token a row; returns what the layer attends to."""
        owner, states = self._owner, (key_states, value_states)
        if not self.parts:
            self._like = tuple(s.new_empty(0, s.shape[1], 0, s.shape[3]) for s in states)
            self.reserve()
        keep_prompt, keep_token = _OPERATORS if torch.compiler.is_compiling() else _FUNCTIONS
        keys, values = self.parts
        if owner.prompt:
            keep_prompt(keys, key_states, owner.seen)
            keep_prompt(values, value_states, owner.seen)
            return states
        slot = owner.slot.to(keys.device)
        keep_token(keys, key_states, slot)
        keep_token(values, value_states, slot)
        used = key_states.shape[0]  # not its len, which compiled code would be made for
        return keys[:used, :, : owner.seen], values[:used, :, : owner.seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of a prompt, which sees itself; masks of steps are the decoder's own."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Slots before the tokens of a prompt."""
        return 0


class KeyValues:
    """The layers of a model.

    Attributes:
        rows: of the buffers.
        room: slots of a row of the buffers.
        prompt: slots that a prompt is written to; 0 in a step, which writes one token.
        seen: slots that are in use.
        slot: the one that a step writes to ``(1,)``.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        self.rows = self.room = self.prompt = self.seen = 0
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self._layers = [Slots(self) for _ in range(layers)]
        self.cache = Cache(layers=self._layers)

    @property
    def bytes(self) -> int:
        """Memory of the buffers."""
        return sum(part.nbytes for layer in self._layers for part in layer.parts)

    def reserve(self, rows: int, room: int, spare: float = 0.0) -> bool:
        """Room for a batch, and for those before it if it is not too much; whether the buffers stay where they are.

        Batches of many short and of few long rows in turn would otherwise move the buffers every time.

        Args:
            spare: bytes by which the buffers may grow for that; below 0 they must not be larger than the batch needs.
        """
        wanted, kept = (rows, room), (self.rows, self.room)
        both = max(rows, self.rows), max(room, self.room)
        if both != wanted and self.bytes * (both[0] * both[1] / (self.rows * self.room) - 1) <= spare:
            wanted = both
        if wanted == kept:
            return True
        self.release()
        self.rows, self.room = wanted
        try:
            for layer in self._layers:
                layer.reserve()
        except BaseException:  # memory ran out: with the buffers of some layers alone nothing can be decoded
            self.release()
            raise
        return False

    def move(self, free: torch.Tensor, moved: torch.Tensor) -> None:
        """Copy rows ``moved`` into the places of rows ``free``."""
        for layer in self._layers:
            for kept in layer.parts:
                to, source = free.to(kept.device), moved.to(kept.device)
                kept[to, :, : self.seen] = kept[source, :, : self.seen]

    def release(self) -> None:
        """Give the memory of the buffers back."""
        self.rows = self.room = 0
        for layer in self._layers:
            layer.release()
