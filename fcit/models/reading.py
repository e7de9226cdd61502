"""What hooks on the language model know of the batch that passes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from fcit.models.decoding.rows import Rows

#: Numbers ``(B, E)`` for the subspaces, from embeddings ``(B, L, d)`` and which of their places count ``(B, L)`` bool.
Weigh = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Reading:
    """A batch as hooks see it: whole records, or prompts first and then the tokens of their answers one by one.

    What is decided about a question is decided from its own tokens while they pass through the model, and kept for the
    answer. So an answer comes from one model from its first token to its last, a record is learnt by the model that
    will answer its question, and no question depends on the batch.

    Attributes:
        rows: tensors with a row for each question.
        question: ``(B, L)`` bool, the places of each row's question, up to the first token that is learnt; None while
            answers go on.
        decides: whether hooks decide anything.
        kept: name and shape, for one question, of what hooks decide: ``rows`` holds such tensors for them to fill in
            while prompts are read, and has none while records are.
        weigh: rows that follow from the embeddings, before any layer sees them; None: none do.
        anew: whether they follow from each token of an answer by itself, too.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.question: torch.Tensor | None = None
        self.decides = False
        self.kept: dict[str, tuple[int, ...]] = {}
        self.weigh: Callable[[torch.Tensor, torch.Tensor], Rows] | None = None
        self.anew = False

    @contextmanager
    def records(self, embeds: torch.Tensor, question: torch.Tensor) -> Iterator[None]:
        """In the body, records with these embeddings pass through the model."""
        with self._seen(self.rows, question):
            self._look(embeds, question)
            yield

    @contextmanager
    def prompts(self, embeds: torch.Tensor, question: torch.Tensor, language: Any) -> Iterator[None]:
        """In the body, ``language`` sees prompts with these embeddings first, and then what follows token by token."""
        handles = []
        with self._seen(self.rows, question):
            for name, shape in self.kept.items():
                self.rows[name] = torch.zeros(len(embeds), *shape, device=embeds.device)
            self._look(embeds, question)
            if self.decides:
                handles.append(language.register_forward_hook(self._end))
            if self.weigh is not None and self.anew:
                handles.append(language.register_forward_pre_hook(self._again, with_kwargs=True))
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def for_checkpoints(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of a layer's forward pass and of its second one, which comes when the batch has passed."""
        return nullcontext(), self._seen(dict(self.rows), self.question)

    @contextmanager
    def given(self, name: str, values: torch.Tensor) -> Iterator[None]:
        """In the body, hooks find these values of the questions ``(B, ...)`` under a name."""
        self.rows[name] = values
        try:
            yield
        finally:
            self.rows.pop(name, None)

    @contextmanager
    def weighed(self, weigh: Callable[[torch.Tensor, torch.Tensor], Rows], anew: bool = False) -> Iterator[None]:
        """In the body, rows follow from embeddings (:attr:`weigh`, :attr:`anew`)."""
        self.weigh, self.anew = weigh, anew
        try:
            yield
        finally:
            self.weigh, self.anew = None, False

    @contextmanager
    def _seen(self, rows: Rows, question: torch.Tensor | None) -> Iterator[None]:
        before = dict(self.rows), self.question
        self._put(dict(rows), question)
        try:
            yield
        finally:
            self._put(*before)

    def _put(self, rows: Rows, question: torch.Tensor | None) -> None:
        self.rows.clear()  # others hold this very dictionary
        self.rows.update(rows)
        self.question = question

    def _look(self, embeds: torch.Tensor, places: torch.Tensor) -> None:
        if self.weigh is not None:
            self.rows.update(self.weigh(embeds, places))

    def _end(self, *seen: Any) -> None:
        """The prompts have passed."""
        self.question = None

    def _again(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        """Rows of the newest tokens, where those of the prompts lie."""
        embeds = inputs["inputs_embeds"]
        if self.question is None and self.weigh is not None:
            for name, values in self.weigh(embeds, embeds.new_ones(embeds.shape[:2], dtype=torch.bool)).items():
                self.rows[name].copy_(values)


def asked(mask: torch.Tensor, learnt: torch.Tensor) -> torch.Tensor:
    """The places ``(B, L)`` of each row's question: tokens before the first learnt one.

    Args:
        mask: ``(B, L)``, 1 where there is a token.
        learnt: ``(B, L)`` bool.
    """
    return (mask > 0) & (learnt.cumsum(dim=1) == 0)


def average(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The mean ``(B, d)`` of states ``(B, L, d)`` over the places ``(B, L)`` that count."""
    counted = places.to(states.device)
    shares = counted / counted.sum(dim=1, keepdim=True)
    return torch.bmm(shares.to(states)[:, None], states)[:, 0]


def largest(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The maximum ``(B, d)`` of states ``(B, L, d)`` over the places ``(B, L)`` that count, number by number."""
    return states.masked_fill(~places.to(states.device)[..., None], -torch.inf).amax(dim=1)
