"""A greedy decoder over a model's own layers: static keys and values, rows leave the batch when they end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Hashable
from typing import Any

import torch

from fcit.models.decoding.capture import Capture, Step
from fcit.models.decoding.rows import RowBuffers, Rows
from fcit.models.decoding.slots import KeyValues
from fcit.models.decoding.watching import Watch

FULL, SLIDING = "full_attention", "sliding_attention"
#: Implementations of attention that take a mask of the decoder's own.
_ATTENTION = ("sdpa", "eager")
#: Rows that have ended leave the batch when they are this share of it.
_LEAVE = 0.25
#: Captured steps: rows of a batch are 1, 2, 3, 4, 6, 8, 12, ..., slots multiples of this.
_ALIGNED = 64
#: Signatures of which captured steps are kept: batches that need few and many subspaces come in turn.
_SIGNATURES = 6


def layer_kinds(config: Any) -> list[str]:
    """What each layer of a language model attends to, as transformers names it."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [SLIDING if getattr(config, "sliding_window", None) else FULL] * config.num_hidden_layers
    return list(kinds)


def unsuitable(language: Any) -> str | None:
    """Why a language model cannot be decoded here; None if it can."""
    if language.config._attn_implementation not in _ATTENTION:
        return f"its attention is {language.config._attn_implementation}, not {' or '.join(_ATTENTION)}"
    strange = sorted(set(layer_kinds(language.config)) - {FULL, SLIDING})
    if strange:
        return f"it has layers of {', '.join(strange)}"
    return None


def bucket(count: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not less than ``count``."""
    power = 1 << max(0, (count - 1).bit_length())
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


class Greedy:
    """Decodes batches of one language model.

    Args:
        language: the model without its output layer.
        rows: tensors with a row for each question, which hooks on the model read.
        capture: makes a step on fixed addresses faster; None: steps run as they are, on exactly the rows and slots
            in use.
        spare: bytes that are free beside prompts of so many rows and tokens, for buffers larger than a batch needs.
    """

    def __init__(
        self,
        language: Any,
        rows: Rows,
        capture: Capture | None = None,
        spare: Callable[[int, int], float] = lambda rows, length: 0.0,
    ) -> None:
        self._language, self.capture, self._spare = language, capture, spare
        self._rows = RowBuffers(rows)
        config = language.config
        self._kinds = set(layer_kinds(config))
        self._window: int = getattr(config, "sliding_window", None) or 0
        self._eager = config._attn_implementation == "eager"
        parameters = inspect.signature(language.forward).parameters
        self._cached = "cache" if "cache" in parameters else "past_key_values"  # its name before transformers 5.24
        self._device = language.get_input_embeddings().weight.device
        self._kept = KeyValues(config.num_hidden_layers, self._device)
        #: Captured steps by rows and slots, for each signature; the one in use comes last.
        self._steps: dict[Hashable, dict[tuple[int, int], Step]] = {}
        self._ids = self._place = self._visible = torch.empty(0)

    @property
    def takes_padding_last(self) -> bool:
        """Whether prompts may be padded after their last token.

        Then attention needs no mask while prompts are read. A sliding window, however, is counted in slots, of which
        those of padding would be some.
        """
        return self._kinds == {FULL}

    @property
    def bytes(self) -> int:
        """Memory that keys and values hold from batch to batch."""
        return self._kept.bytes

    def release(self) -> None:
        """Give the memory of keys, values and captured steps back."""
        self._steps.clear()
        self._kept.release()

    def __call__(
        self,
        prompts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        head: Callable[[torch.Tensor], torch.Tensor],
        new: int,
        ends: Collection[int],
        signature: Hashable = None,
        watch: Watch | None = None,
        last: bool = False,
    ) -> list[list[int]]:
        """The most probable tokens of each row, up to an end token (included) or ``new``.

        Args:
            prompts: embeddings ``(B, L, d)``, mask ``(B, L)`` and positions ``(B, L)`` or ``(3, B, L)`` of padded rows.
            head: the output layer.
            new: tokens of the longest answer.
            ends: tokens that end an answer.
            signature: of everything that a step reads, except what this object and ``rows`` hold; captured steps
                serve whenever it is the same.
            watch: follows the answers, and may end them.
            last: padding comes last, see :attr:`takes_padding_last`; else first.
        """
        embeds, mask, positions = prompts
        count, length = mask.shape
        rows, room = count, length + new
        if self.capture is not None:
            rows, room = bucket(count), -(-room // _ALIGNED) * _ALIGNED
        with self._rows.lent(count, rows):
            self._reserve(rows, room, signature, self._spare(rows, length))
            self._rows.narrow(count)
            batch = _Batch(self._prefill(embeds, mask, positions, head, room, last), ends, watch)
            for number in range(1, new):
                if not batch.going:
                    break
                rows = self._leave(batch, rows)
                self._rows.narrow(rows)
                self._step(rows, room if self.capture else length + number, head)
                batch.add(self._ids[: len(batch.order), 0].tolist())
        return batch.answers

    def _reserve(self, rows: int, room: int, signature: Hashable, spare: float) -> None:
        kept = self._kept
        if not kept.reserve(rows, -(-room // _ALIGNED) * _ALIGNED, spare):
            self._steps.clear()
            self._ids, self._place = (
                torch.zeros(kept.rows, 1, dtype=torch.long, device=self._device) for _ in range(2)
            )
            self._visible = torch.zeros(kept.rows, 1, 1, kept.room, dtype=torch.bool, device=self._device)
        whole = (signature, self._rows.addresses)
        self._steps[whole] = self._steps.pop(whole, {})
        while len(self._steps) > _SIGNATURES:
            del self._steps[next(iter(self._steps))]

    def _prefill(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        room: int,
        last: bool,
    ) -> list[int]:
        """Prompts into the cache; the first token of each row."""
        count, length = mask.shape
        self._kept.prompt, self._kept.seen = length, room if self.capture else length
        output = self._language(
            inputs_embeds=embeds,
            attention_mask=torch.ones_like(mask) if last else mask,  # no token sees padding after it
            position_ids=positions,
            use_cache=True,
            **{self._cached: self._kept.cache},
        )
        self._kept.prompt = 0
        self._kept.slot.fill_(length)
        self._ids.zero_()
        self._place.zero_()
        self._visible.zero_()
        states = output.last_hidden_state
        ends = (mask.sum(dim=1, keepdim=True) - 1).to(states.device)
        final = states.take_along_dim(ends[..., None], dim=1) if last else states[:, -1:]
        self._ids[:count] = head(final).float().argmax(-1)
        place = positions if positions.ndim == 2 else positions.amax(0)
        self._place[:count] = place.amax(1, keepdim=True) + 1
        self._visible[:count, 0, 0, :length] = mask.bool()
        return self._ids[:count, 0].tolist()

    def _leave(self, batch: _Batch, rows: int) -> int:
        """Rows to go on with; those that have ended leave if that is worth it."""
        wanted = batch.going
        if self.capture is not None:
            wanted = bucket(wanted)
        if wanted > (1 - _LEAVE) * rows:
            return rows
        free, moved = batch.narrow(wanted)
        if free:
            to, source = (torch.tensor(places, device=self._device) for places in (free, moved))
            for kept in (self._ids, self._place, self._visible):
                kept[to] = kept[source]
            self._kept.move(to, source)
            self._rows.move(to, source)
        return wanted

    def _step(self, rows: int, seen: int, head: Callable[[torch.Tensor], torch.Tensor]) -> None:
        def step() -> None:
            self._kept.seen = seen
            visible = self._visible[:rows, ..., :seen]
            visible.index_fill_(3, self._kept.slot, True)
            output = self._language(
                inputs_embeds=self._language.get_input_embeddings()(self._ids[:rows]),
                attention_mask=self._masks(visible),
                position_ids=self._place[:rows],
                use_cache=True,
                **{self._cached: self._kept.cache},
            )
            self._ids[:rows] = head(output.last_hidden_state).float().argmax(-1)
            self._place[:rows] += 1
            self._kept.slot.add_(1)

        if self.capture is None:
            step()
            return
        key, steps = (rows, seen), next(reversed(self._steps.values()))
        if key not in steps:
            steps[key] = self.capture(step)
        steps[key]()

    def _masks(self, visible: torch.Tensor) -> Any:
        """The mask of a step in the form that the layers take, or one for each kind of layer."""
        forms = {}
        if FULL in self._kinds:
            forms[FULL] = self._form(visible)
        if SLIDING in self._kinds:
            near = torch.arange(visible.shape[-1], device=visible.device) > self._kept.slot - self._window
            forms[SLIDING] = self._form(visible & near)
        return forms if len(forms) > 1 else next(iter(forms.values()))

    def _form(self, visible: torch.Tensor) -> torch.Tensor:
        if not self._eager:
            return visible
        dtype = self._language.get_input_embeddings().weight.dtype
        return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


class _Batch:
    """The answers so far, and which place of the batch each question has."""

    def __init__(self, first: list[int], ends: Collection[int], watch: Watch | None) -> None:
        self._ends, self._watch = ends, watch
        self.answers: list[list[int]] = [[] for _ in first]
        #: The question at each place; at some it may have ended.
        self.order = list(range(len(first)))
        self._ended = [False] * len(first)
        self.add(first)

    @property
    def going(self) -> int:
        """Questions whose answers have not ended."""
        return len(self._ended) - sum(self._ended)

    def add(self, tokens: list[int]) -> None:
        """The next token at each place."""
        for question, token in zip(self.order, tokens, strict=True):
            if not self._ended[question]:
                answer = self.answers[question]
                answer.append(token)
                over = self._watch is not None and self._watch(question, answer)
                self._ended[question] = over or token in self._ends

    def narrow(self, places: int) -> tuple[list[int], list[int]]:
        """Bring questions that go on to the first ``places``; returns places that are free and those moved there."""
        free = [place for place, q in enumerate(self.order[:places]) if self._ended[q]]
        moved = [place for place, q in enumerate(self.order) if place >= places and not self._ended[q]]
        free = free[: len(moved)]
        for to, source in zip(free, moved, strict=True):
            self.order[to] = self.order[source]
        del self.order[places:]
        return free, moved
