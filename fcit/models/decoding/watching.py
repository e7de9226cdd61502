"""Following answers while they are decoded, and ending single ones."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

#: Called after each token of a row's answer with the row and the answer's tokens; True ends the answer there.
Watch = Callable[[int, list[int]], bool]


class _Watched(StoppingCriteria):
    """A watch as transformers' ``generate`` calls it: after each step, with all tokens of all rows."""

    def __init__(self, watch: Watch, ends: Collection[int]) -> None:
        self._watch, self._ends = watch, ends
        self._ended: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows end ``(B,)``; those that ended before are followed by padding and not looked at."""
        for row, tokens in enumerate(input_ids.tolist()):
            if row not in self._ended and (self._watch(row, tokens) or tokens[-1] in self._ends):
                self._ended.add(row)
        return torch.tensor([row in self._ended for row in range(len(input_ids))], device=input_ids.device)


def stopping(watch: Watch | None, ends: Collection[int]) -> StoppingCriteriaList:
    """What ends answers beside end tokens and the limit, for ``generate`` of a prompt of embeddings."""
    return StoppingCriteriaList([] if watch is None else [_Watched(watch, ends)])
