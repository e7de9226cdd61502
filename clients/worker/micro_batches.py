"""A batch in parts: gradients accumulated over micro-batches, and how large those can be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fcit import seeding
from fcit.data.collate import Encoded
from fcit.errors import FCITError
from fcit.methods.base import Session
from fcit.models.compiling import CompiledLayers
from fcit.models.memory import free, is_out_of_memory

Sessions = tuple[Session, Session]
LossOf = Callable[[list[int]], Any]

#: Elements of a method's note that is put back before a batch is tried again; fixed tables are larger.
_SMALL = 2**16


class OutOfMemory(FCITError, MemoryError):
    """A training step needs more memory than there is; a Ray worker to which that happens is replaced."""


def parts(examples: Sequence[Encoded], batch: list[int], micro_batch: int | None) -> list[list[int]]:
    """A batch cut into parts of ``micro_batch`` records, the longest first; one part is the batch as it is."""
    if micro_batch is None or micro_batch >= len(batch):
        return [batch]
    ordered = sorted(batch, key=lambda i: -len(examples[i].tokens))  # stable: the same parts everywhere
    return [ordered[start : start + micro_batch] for start in range(0, len(batch), micro_batch)]


def backward(
    sessions: Sessions,
    batch: list[int],
    loss_of: LossOf,
    micro_batch: int | None = None,
    passing: Callable[[int], AbstractContextManager[Any]] = lambda records: nullcontext(),
    scaled: Callable[[Any], Any] = lambda loss: loss,
) -> float:
    """Gradients of one batch's loss, added to the parameters'; returns the loss.

    With ``micro_batch`` only so many records are passed through the model at a time, the longest first, so that
    rows of a part are padded little and a part that does not fit is the first one. The loss of part i
    counts with n_i / n, its share of the batch's answer tokens, so that a mean over answer tokens is that
    of the whole batch, and a term of the parameters alone, being in every part's loss, counts once:

        L = sum_i (n_i / n) (CE_i + R) = CE + R.

    What a method averages over records (the pull of ``l2p``) or draws for each call (``replay``, as many in all) is
    averaged or drawn within each part instead, and dropout falls differently.

    Args:
        loss_of: the method's loss of records of the shard, by their indices.
        passing: what to enter for the forward and backward pass of so many records.
        scaled: what the backward pass starts from, see :class:`clients.worker.loss_scale.LossScale`.
    """
    for view in sessions:
        view.batch = view.step = batch
    if micro_batch is None or micro_batch >= len(batch):  # one part, as it is
        with passing(len(batch)):
            loss = loss_of(batch)
            scaled(loss).backward()
        return float(loss.detach())
    learnt = {i: sessions[0].examples[i].learnt for i in batch}
    total = 0.0
    for part in parts(sessions[0].examples, batch, micro_batch):
        for view in sessions:
            view.batch = part
        with passing(len(part)):
            loss = loss_of(part) * (sum(learnt[i] for i in part) / sum(learnt[i] for i in batch))
            scaled(loss).backward()
        total += float(loss.detach())
        del loss  # else this part's graph lives on beside the next one's
    for view in sessions:
        view.batch = batch
    return total


class MicroBatches:
    """How many records pass through the model at a time in one process; with ``auto``, the size that has fitted.

    ``auto`` starts with what :meth:`begin` is told, or with the whole batch. When memory runs out the size is halved
    and the batch done again from its beginning: no gradients, random state and small notes of the method as before it,
    so that the result is that of the smaller size alone. The size that worked stays for all that follows in the
    process. A batch in which layers could not be compiled is done again in the same way: compiled for its length alone,
    and where that cannot be either, uncompiled.

    Args:
        setting: ``training.micro_batch``.
        batch_size: records of a whole batch.
        layers: decoder layers, compiled for parts of the full size where ``training.compile`` has installed them.
    """

    def __init__(
        self, setting: int | Literal["auto"] | None, batch_size: int | None = None, layers: CompiledLayers | None = None
    ) -> None:
        self.setting, self.batch_size, self.layers = setting, batch_size, layers
        self.size: int | None = setting if isinstance(setting, int) else None
        self.halved = 0
        self._most: int | None = None  # what memory running out has led to

    def begin(self, most: int | None) -> None:
        """Begin an order; ``auto`` takes at most so many records at a time, and no more than has fitted before."""
        self.halved = 0
        if self.setting == "auto":
            self.size = min((size for size in (most, self._most) if size is not None), default=None)

    def backward(
        self,
        sessions: Sessions,
        batch: list[int],
        loss_of: LossOf,
        parameters: Iterable[nn.Parameter],
        compute: Callable[..., float] = backward,
    ) -> float:
        """:func:`backward`, or what ``compute`` has in its place, with the size that fits.

        The parameters must have no gradients yet.

        Raises:
            OutOfMemory: not even one record fits, or the size is fixed and does not.
        """
        parameters = list(parameters)
        again, notes = seeding.bookmark(), _notes(sessions[0])
        while True:
            try:
                return compute(sessions, batch, loss_of, self.size, self._passing)
            except Exception as error:
                if not self._changed(len(batch), error):
                    raise
            # Out of the except clause: until here the error held the graph that did not fit.
            for parameter in parameters:
                parameter.grad = None
            free()
            again()
            notes()

    def _passing(self, records: int) -> AbstractContextManager[None]:
        """Compiled layers for parts of the one size that nearly all have."""
        sizes = [size for size in (self.size, self.batch_size) if size is not None]
        whole = bool(sizes) and records == min(sizes)
        return self.layers.running() if whole and self.layers is not None else nullcontext()

    def _changed(self, batch: int, error: BaseException) -> bool:
        """Whether something was changed after an error so that the batch can be tried again."""
        if self.layers is not None and self.layers.give_up(error):
            return True
        if not is_out_of_memory(error):
            return False
        if self.setting != "auto":
            tried = min(self.size or batch, batch)
            raise _sentence(f"in a training step with {tried} at a time", self._lower(tried), error) from None
        self._halve(batch, error)
        return True

    def _halve(self, batch: int, error: BaseException) -> None:
        tried = min(self.size or batch, batch)
        if tried == 1:
            raise _sentence("in a training step with one record at a time", self._lower(1), error) from None
        self.size = self._most = tried // 2
        self.halved += 1
        logging.getLogger(__name__).warning(
            "training.micro_batch: auto: memory ran out with %d records at a time, going on with %d", tried, self.size
        )

    def _lower(self, tried: int) -> tuple[str, ...]:
        smaller = () if tried == 1 else (f"training.micro_batch ({self.setting}; or say auto)",)
        return *smaller, "backbone.max_length", "ray.workers per GPU"


@contextmanager
def explained(where: str, *lower: str) -> Iterator[None]:
    """Running out of memory in the body becomes an error that names the settings to lower.

    Raises:
        OutOfMemory: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or isinstance(error, OutOfMemory):
            raise
        raise _sentence(where, lower, error) from None


def _sentence(where: str, lower: Iterable[str], error: BaseException) -> OutOfMemory:
    cause = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
    return OutOfMemory(
        f"memory ran out {where}: {cause}; lower {' or '.join(lower)}, or set training.checkpointing: true or "
        "backbone.quantization: 4bit; `fcit doctor --config FILE` says what fits"
    )


def _notes(session: Session) -> Callable[[], None]:
    """What a method's loss may change as it goes (generators, counters); calling the result puts it back."""
    kept: list[Callable[[], None]] = []
    for note in session.notes.values():
        if isinstance(note, np.random.Generator):
            kept.append(_generator(note))
        elif isinstance(note, torch.Tensor) and note.numel() <= _SMALL:
            kept.append(_tensor(note))

    def restore() -> None:
        for put_back in kept:
            put_back()

    return restore


def _generator(generator: np.random.Generator) -> Callable[[], None]:
    state = generator.bit_generator.state

    def put_back() -> None:
        generator.bit_generator.state = state

    return put_back


def _tensor(tensor: torch.Tensor) -> Callable[[], None]:
    value = tensor.detach().clone()

    def put_back() -> None:
        with torch.no_grad():
            tensor.copy_(value)

    return put_back
