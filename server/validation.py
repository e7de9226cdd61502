"""Checks every update before it can touch the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fcit.config import RunConfig, Training
from fcit.config.kinds import epochs_of
from fcit.federation.messages import NAME, PREFIXES, ClientUpdate, TrainOrder
from fcit.fedopt.base import PIECE
from fcit.io.threads import by_stretches

FACTOR = 10.0  # an update may be this many times the running median norm per step
QUIET = 20  # accepted updates before the norm rule is active
WINDOW = 500  # accepted updates the median looks back on
#: Values that only end in tables are held to ranges that a real client can have.
MOST_SECONDS, MOST_BYTES, MOST_LOSS, MOST_WORDS, LONGEST = 1e7, 1e13, 1e6, 8, 40
BETAS = (0.9, 0.999)  # torch's defaults for AdamW, which clients train with
REASON = 2000  # characters of a reason that are kept


def short(reason: str) -> str:
    """A reason as events keep it: text from a client in it may be of any length.

    What is too long loses its middle: the sentence stands first, the line that raised it last in its traceback.
    """
    if len(reason) <= REASON:
        return reason
    half = REASON // 2
    return f"{reason[:half]}\n... ({len(reason)} characters)\n{reason[-half:]}"


@lru_cache(maxsize=256)
def reach(steps: int) -> float:
    """How far a number can move in so many steps of AdamW, in units of the learning rate.

    Step t moves it by lr m_t / sqrt(v_t), m_t and v_t corrected for their start at zero. Whatever the
    gradients, Cauchy and Schwarz give with r = b1^2 / b2:

        |m_t| / sqrt(v_t) <= sqrt((1-b1)^2 / (1-b2) (1 - r^t) / (1 - r)) sqrt(1 - b2^t) / (1 - b1^t)

    which is 1 for the first step, 1.04 for the tenth, 2.2 for the hundredth and never more than 7.3.
    """
    b1, b2 = BETAS
    r = b1**2 / b2
    t = np.arange(1, min(steps, 10_000) + 1, dtype=np.float64)
    bounds = np.sqrt((1 - b1) ** 2 / (1 - b2) * (1 - r**t) / (1 - r)) * np.sqrt(1 - b2**t) / (1 - b1**t)
    return float(bounds.sum() + max(0, steps - len(t)) * 7.3)


class Marks(NamedTuple):
    """What is noted of an accepted update, for later ones to be judged by; None where nothing is.

    Attributes:
        norm: how far it moved per sqrt(step) and unit of the learning rate.
        walked: how far what it still owes may reach.
    """

    norm: float | None
    walked: float | None


@dataclass
class Validator:
    """Judges updates of a round; the norm rule looks at accepted updates of earlier rounds only.

    The norm is taken per sqrt(optimiser steps): Adam's steps are of bounded size and largely
    uncorrelated in direction, so honest updates of long and short local epochs are comparable.

    Args:
        training: where given, no number may have moved further than AdamW can walk; leave it out for
            methods and optimisers that move parameters themselves.
        most: records a shard may claim where nothing better is known.
        by_others: whether the norm rule applies. With differential privacy it does not: what is accepted of one client
            would depend on the others, and clipping bounds every update anyway.
        settings: of the training in a round of a stage, if they are not always ``batch_size``, ``epochs`` and ``lr``.
        late: share of an update's way that may come with later ones (:attr:`fcit.federation.thin.Thin.late`).
        owed: how far that is at most, by "client/subspace", in the stage at hand; added to in place.
    """

    batch_size: int = 16
    epochs: int | list[int] = 1  # a list has one number for each task
    lr: float = 1.0
    history: list[float] = field(default_factory=list)
    training: Training | None = None
    most: int = 1_000_000
    by_others: bool = True
    settings: Callable[[int, int], Training] | None = None
    late: float = 0.0
    owed: dict[str, float] = field(default_factory=dict)
    _walked: dict[tuple[int, str], float] = field(default_factory=dict)  # by client and subspace, in this round
    _round: dict[tuple[int, str], float] = field(default_factory=dict)
    _sizes: dict[int, tuple[np.ndarray, float]] = field(default_factory=dict)  # by identity, which the array keeps

    @classmethod
    def of(
        cls,
        config: RunConfig,
        bounded_by_adamw: bool,
        norms: Sequence[float],
        settings: Callable[[int, int], Training] | None = None,
        late: tuple[float, dict[str, float]] | None = None,
    ) -> Validator:
        """The validator of a run.

        Args:
            bounded_by_adamw: whether only AdamW moves the clients' parameters.
            norms: of the updates accepted so far.
            settings: of the training in a round of a stage; default: always those of the configuration.
            late: :attr:`late` and :attr:`owed`; default: every update comes whole.
        """
        training = config.training
        share, owed = late or (0.0, {})
        return cls(
            batch_size=training.batch_size,
            epochs=training.epochs,
            lr=training.lr,
            history=list(norms),
            training=training if bounded_by_adamw else None,
            most=config.federation.max_records,
            by_others=not config.privacy.on,
            settings=settings,
            late=share,
            owed=owed,
        )

    def reject_reason(
        self,
        order: TrainOrder,
        update: ClientUpdate,
        declared: int | None,
        extra: dict[str, tuple[int, ...]] | None = None,
        more: Callable[[ClientUpdate], str | None] | None = None,
    ) -> str | None:
        """Why the update is rejected, or None.

        Args:
            declared: the client's shard size if known.
            extra: names (with their prefix) and shapes of the method's and the optimiser's own tensors.
            more: the method's and the optimiser's reason, called for an update of the right form.
        """
        reason = self._reason(order, update, declared, extra, more)
        if reason is not None:
            self._walked.pop((order.client, order.subspace), None)
        return reason

    def _reason(
        self,
        order: TrainOrder,
        update: ClientUpdate,
        declared: int | None,
        extra: dict[str, tuple[int, ...]] | None,
        more: Callable[[ClientUpdate], str | None] | None,
    ) -> str | None:
        reason = (
            _another_order(order, update)
            or _other_tensors(order, update, extra or {})
            or self._absurd(order, update, self.most if declared is None else declared)
            or self._too_far(order, update, moved := _moved(order, update))
            or (more(update) if more is not None else None)
        )
        if reason is not None or not self.by_others or order.measure:  # who only measures moves nothing
            return reason
        norm = float(np.sqrt(sum(one.square for one in moved.values())) / np.sqrt(update.steps)) / self._pace(order)
        median = float(np.median(self.history)) if len(self.history) >= QUIET else math.inf
        if norm > FACTOR * median:
            return f"moves {norm:.3g} per step^0.5, over {FACTOR:.0f} times the median {median:.3g} of accepted updates"
        if norm:  # an epoch of one step at rate 0 (training.schedule: trainer) is no measure for others
            self._round[update.client, update.shard] = norm
        return None

    def _absurd(self, order: TrainOrder, update: ClientUpdate, most: int) -> str | None:
        """Claims that cannot be."""
        problem = cost_problem(update.seconds, update.kept, update.how)
        if problem is not None:
            return problem
        if update.examples < 1 or not abs(update.loss) <= MOST_LOSS:
            return f"claims {update.examples} records and a loss of {update.loss}"
        if update.examples > most:
            return f"claims {update.examples} records, its shard has {most}"
        if not 0 <= update.skipped <= self.most:
            return f"claims {update.skipped} records that could not be used"
        # In integers: as floats, counts near the largest possible would overflow.
        own = self._own(order)
        epochs, batch_size = (own.epochs, own.batch_size) if own else (self.epochs, self.batch_size)
        steps = -(-update.examples * epochs_of(epochs, order.tasks) // batch_size)
        steps = 0 if order.measure else steps
        if update.steps != steps:
            return f"claims {update.steps} steps for {update.examples} records, the configuration makes {steps}"
        return None

    def _too_far(self, order: TrainOrder, update: ClientUpdate, moved: dict[str, _Moved]) -> str | None:
        """Whether some number moved further than the optimiser can have walked."""
        if self.training is None:
            return None
        training = self._own(order) or self.training
        walk = training.lr * reach(update.steps)
        late = self.owed.get(f"{order.client}/{order.subspace}", 0.0)
        longest = 0.0
        for name, old in order.trained.items():
            size = self._size(old)
            decay = min(1.0, training.lr * training.weight_decay * update.steps) * (size + walk)
            # An update is the difference to the order as it was read; int8 rounds to 1 / 254 of the largest.
            slack = (size + walk) / 64
            far, longest = moved[name].most, max(longest, walk + decay + slack)
            if far > walk + decay + slack + late:
                return f"{name} moved by {far:.3g}, AdamW cannot walk over {walk + late:.3g} in {update.steps} steps"
        if self.late:
            self._walked[order.client, order.subspace] = self.late * longest
        return None

    def _own(self, order: TrainOrder) -> Training | None:
        """The settings of an order's round, where rounds may have their own."""
        return self.settings(order.stage, order.round) if self.settings else None

    def _pace(self, order: TrainOrder) -> float:
        """The learning rate of an order's round in units of the run's, by which norms are comparable."""
        own = self._own(order)
        return own.lr / self.lr if own else 1.0

    def _size(self, old: np.ndarray) -> float:
        """The largest number of a tensor of the server; the orders of a round share their tensors."""
        if id(old) not in self._sizes:
            self._sizes[id(old)] = old, _most(old)
        return self._sizes[id(old)][1]

    def marks(self, update: ClientUpdate) -> Marks:
        """What was noted of an update that was accepted in this round."""
        norm = self._round.get((update.client, update.shard))
        return Marks(norm, self._walked.get((update.client, update.subspace)))

    def recall(self, update: ClientUpdate, marks: Marks) -> None:
        """Note again what :meth:`marks` was of an update that an earlier process of this run accepted."""
        if marks.norm is not None:
            self._round[update.client, update.shard] = marks.norm
        if marks.walked is not None:
            self._walked[update.client, update.subspace] = marks.walked

    def close_round(self) -> None:
        """The round is committed: its accepted norms join the history, in client order."""
        self.history += [self._round[pair] for pair in sorted(self._round)]
        self.history = self.history[-WINDOW:]
        for (client, subspace), walked in sorted(self._walked.items()):
            key = f"{client}/{subspace}"
            self.owed[key] = self.owed.get(key, 0.0) + walked
        for of_round in (self._round, self._walked, self._sizes):
            of_round.clear()


class _Moved(NamedTuple):
    """How far an update moved one tensor."""

    most: float  # any of its numbers
    square: float  # of all, in float64


def _moved(order: TrainOrder, update: ClientUpdate) -> dict[str, _Moved]:
    """How far each trained tensor moved; each is read once, in pieces that stay in the cache."""
    new = {name: tensor.reshape(-1) for name, tensor in update.tensors.items() if not name.startswith(PREFIXES)}
    old = {name: order.tensors[name].reshape(-1) for name in new}

    def of(name: str, stretch: slice) -> _Moved:
        after, before = new[name][stretch], old[name][stretch]
        most = square = 0.0
        for first in range(0, len(after), PIECE):
            piece = slice(first, first + PIECE)
            difference = after[piece] - before[piece]
            most = max(most, _most(difference))
            square += float(np.multiply(difference, difference, dtype=np.float64).sum())
        return _Moved(most, square)

    return {
        name: _Moved(max((part.most for part in parts), default=0.0), sum(part.square for part in parts))
        for name, parts in by_stretches(of, new).items()
    }


@np.errstate(over="ignore", invalid="ignore")
def _finite(values: np.ndarray) -> bool:
    """Whether all numbers are finite: what is not reaches the sum, and only a sum that is not is looked into."""
    return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


def _most(values: np.ndarray) -> float:
    """The largest absolute value; 0 of none."""
    return float(max(values.max(initial=0.0), -values.min(initial=0.0)))


def _another_order(order: TrainOrder, update: ClientUpdate) -> str | None:
    for name in ("stage", "round", "client", "shard", "subspace"):
        got, wanted = getattr(update, name), getattr(order, name)
        if got != wanted:
            return f"{name} is {got!r}, the order says {wanted!r}"
    return None


def _other_tensors(order: TrainOrder, update: ClientUpdate, extra: dict[str, tuple[int, ...]]) -> str | None:
    """Whether the tensors are those of the order, float32 and finite."""
    shapes = {n: t.shape for n, t in order.trained.items()} | extra
    if set(update.tensors) != set(shapes):
        odd = sorted(set(update.tensors) ^ set(shapes))
        return f"tensor names differ from the order's (first: {odd[0][:80]!r})"
    for name, tensor in update.tensors.items():
        if tensor.shape != shapes[name] or tensor.dtype != np.float32:
            return f"{name} is {tensor.dtype}{tensor.shape}, expected float32{shapes[name]}"
    flat = {name: tensor.reshape(-1) for name, tensor in update.tensors.items()}
    finite = by_stretches(lambda name, stretch: _finite(flat[name][stretch]), flat)
    odd = [name for name, good in finite.items() if not all(good)]
    return f"{odd[0]} holds values that are not finite" if odd else None


def cost_problem(seconds: float, kept: int, how: dict[str, Any]) -> str | None:
    """Why what a client says of its cost and of how it trained cannot be, or None; it only ends in tables."""
    if not 0 <= seconds <= MOST_SECONDS or not 0 <= kept <= MOST_BYTES:
        return f"claims {seconds} seconds and {kept} bytes kept"
    if len(how) > MOST_WORDS or not all(_plain(key, value) for key, value in how.items()):
        return "says how it trained in other than a few short words and numbers"
    return None


def _plain(key: str, value: Any) -> bool:
    """A short name with a switch, a moderate number or a short text."""
    if not NAME.fullmatch(key) or len(key) > LONGEST:
        return False
    if isinstance(value, str):
        return len(value) <= LONGEST and value.isprintable()
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= 1e9)
