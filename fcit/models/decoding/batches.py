"""Which questions are answered together: by length, and as many as fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from fcit.config.schema import Evaluation
from fcit.data.collate import Encoded
from fcit.errors import FCITError
from fcit.models.decoding.answering import Answering
from fcit.models.memory import free, is_out_of_memory


class Batches:
    """Cuts questions into batches; ``evaluation.batch_size: auto`` is halved when memory runs out.

    Before that, the memory that answering keeps from batch to batch is given back and the size tried once more. A size
    that memory ran out with then is not tried again in the process.

    Args:
        workers: processes that share a GPU.
    """

    def __init__(self, settings: Evaluation, answering: Answering, workers: int = 1) -> None:
        self.settings, self.answering, self.workers = settings, answering, workers
        self._most: int | None = None

    def answered(
        self,
        examples: Sequence[Encoded],
        limit: int,
        answer: Callable[[list[int]], list[str]],
        questions: int | None = None,
    ) -> list[str]:
        """Answers to all questions, in their order.

        Args:
            limit: tokens of the longest answer.
            answer: answers the questions at these places.
            questions: of the test set whose part these are; None: they are all.

        Raises:
            FCITError: ``answer`` returned another number of texts. MemoryError, RuntimeError: what it raised; with
                ``auto`` that memory ran out only if one question alone does not fit.
        """
        lengths = [len(example.tokens) for example in examples]
        order = list(range(len(examples)))
        if self.settings.by_length:  # the longest first: what does not fit is known at once
            order.sort(key=lambda place: -lengths[place])
        texts, auto = [""] * len(order), self.settings.batch_size == "auto"
        done = 0
        while done < len(order):
            size = self._size(lengths[order[done]], limit)
            rows = order[done : done + size]
            kept = auto and self.answering.keeps
            whole = len(rows) == size and self.answering.compiles(self.settings.compile, questions or len(order))
            try:
                with self.answering.compiled() if whole else nullcontext():
                    answers: list[str] | None = answer(rows)
            except (RuntimeError, MemoryError) as error:
                if not (auto and (kept or len(rows) > 1) and is_out_of_memory(error)):
                    raise
                answers = None
            if answers is None:  # out of the except clause: until here the error held what did not fit
                self.answering.release()
                free()
                if not kept:
                    self._halve(len(rows))
                continue
            if len(answers) != len(rows):
                raise FCITError(f"answer: must return a text for each of {len(rows)} questions, got {len(answers)}")
            for row, text in zip(rows, answers, strict=True):
                texts[row] = text
            done += len(rows)
        return texts

    def _size(self, length: int, limit: int) -> int:
        if self.settings.batch_size != "auto":
            return self.settings.batch_size
        fitting = self.answering.at_once(length, limit, self.settings.at_once, self.workers)
        return min(fitting, self._most or fitting)

    def _halve(self, tried: int) -> None:
        self._most = tried // 2
        logging.getLogger(__name__).warning(
            "evaluation.batch_size: auto: memory ran out with %d questions at a time, going on with %d",
            tried,
            self._most,
        )
