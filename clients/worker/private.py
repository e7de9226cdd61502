"""DP-SGD in a client's local training (``privacy.record_dp``).

Abadi et al., "Deep learning with differential privacy" (2016, arXiv 1607.00133), algorithm 1, with the client's AdamW
in place of plain descent. In step t, with n records, the sampling rate q = batch_size / n and L = q n:

    1. every record enters the batch with probability q, independently of all others
    2. g_i <- gradient of record i's loss, clipped to the norm C over all tensors that are trained
    3. g <- (sum_i g_i + N(0, (z C)^2 I)) / L

A record is a whole conversation, its loss the mean over all of its answer tokens. What depends on parameters alone (a
method's penalty, the optimiser's corrections) is added afterwards and needs no noise.

Batches and noise come from the client's own secret: from the seed, which the server knows, it could compute both. They
belong to the very order, with what the client keeps for it, and noise to the very sum too: the same order done again is
the same release, and another order an independent one. The client holds the server to both, and to how often it said it
would train on these records: :mod:`clients.worker.record_trainings`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import nn

from clients.worker.micro_batches import LossOf, Sessions, parts
from clients.worker.record_trainings import RecordTrainings
from fcit.config import RunConfig
from fcit.config.kinds import epochs_of
from fcit.errors import Refused
from fcit.federation.messages import CONSTANT, TrainOrder
from fcit.io import trees
from fcit.models.record_gradients import ClippedSum, RecordGradients
from fcit.privacy.noise import Noise
from fcit.privacy.record_accountant import Steps, noise_of, rate_of, steps_of

#: Trainings on the same records in a run; with more, the accountant's grid would be too coarse for their noise.
MOST_TRAININGS = 10_000


class Private:
    """The private steps of one local training.

    Args:
        secret: of the client.
        records: number of records of the shard.
        kept: the client's memory, a tree of JSON values and arrays, and its groups of constants.

    Raises:
        Refused: more trainings are announced than noise is computed for.

    Attributes:
        steps: what the training spends of every record's epsilon.
        seed: of the global generators: with masks of dropout from the public seed, a record would move those of all
            records after it.
    """

    def __init__(
        self,
        config: RunConfig,
        order: TrainOrder,
        secret: bytes,
        records: int,
        kept: tuple[dict[str, Any], dict[str, trees.Tensors]] | None = None,
    ) -> None:
        if not 0 <= order.participations <= MOST_TRAININGS:
            raise Refused(
                f"participations: {order.participations} trainings on the same records are announced; noise is "
                f"computed for up to {MOST_TRAININGS}"
            )
        training, self._privacy = config.training, config.privacy
        # With public noise, runs that differ in their engine alone have the same bits.
        ignored = ("tensors", "run", "keep", *(["config"] if config.privacy.reproducible_noise else []))
        self.records, self._noise, self._order = records, Noise(secret), _mark(order, ignored, *(kept or ({}, {})))
        self._config, self._announced, self._sums = config, order.participations, hashlib.sha256()
        epochs = epochs_of(training.epochs, order.tasks)
        rate, count = rate_of(records, training.batch_size), steps_of(records, training.batch_size, epochs)
        self.steps = Steps(noise_of(config.privacy, rate, count, order.participations), rate, count)
        self.seed = self._noise.seed(self._order, "generators")
        # In 16 bits a record's gradient would be rounded otherwise, by a percent of it, with other records beside it.
        self._together = training.checkpointing is not True and config.backbone.dtype == "float32"
        self._done = 0

    def begin(self, trainings: RecordTrainings, origins: Sequence[str]) -> None:
        """Count this training; raises as :meth:`RecordTrainings.begin`."""
        trainings.begin(self._order, self._config, origins, self._announced)

    def end(self, trainings: RecordTrainings) -> None:
        """Called before anything is sent; raises as :meth:`RecordTrainings.end`."""
        trainings.end(self._order, self._sums.hexdigest())

    def batches(self) -> list[list[int]]:
        """A Poisson sample of the records for each step; any may be empty."""
        return [
            self._noise.chosen(self.records, self.steps.rate, self._order, "batch", step)
            for step in range(self.steps.number)
        ]

    def backward(
        self,
        parameters: Iterable[nn.Parameter],
        sessions: Sessions,
        batch: list[int],
        loss_of: LossOf,
        micro_batch: int | None = None,
        passing: object = None,
    ) -> float:
        """The noisy mean gradient of a batch, as the parameters'; returns the loss, 0 of an empty batch.

        In the place of :func:`clients.worker.micro_batches.backward`; layers are not compiled.

        Args:
            parameters: what is trained.
            loss_of: the loss of records of the shard, by their indices, without penalty.
            micro_batch: records passed through the model at a time at most.
        """
        examples, trained = sessions[0].examples, list(parameters)
        gradients = RecordGradients(sessions[0].backbone, trained, self._together)
        summed, total = ClippedSum(trained, self._privacy.record_clip), 0.0
        for part in parts(examples, batch, micro_batch if gradients.together else 1) if batch else []:
            for view in sessions:
                view.batch = part
            learnt = [examples[i].learnt for i in part]
            loss, each = gradients.of(loss_of, part, learnt)
            summed.add(each)
            total += loss * sum(learnt)
        for view in sessions:
            view.batch = batch
        for parameter, mean in zip(trained, self._noisy(summed), strict=True):
            parameter.grad = mean.to(parameter.dtype)
        self._done += 1
        return total / max(1, sum(examples[i].learnt for i in batch))

    @staticmethod
    def add(penalty: Any) -> None:
        """Add the gradient of a term of the parameters alone; a method without has 0."""
        if isinstance(penalty, torch.Tensor) and penalty.requires_grad:
            penalty.backward()

    def _noisy(self, summed: ClippedSum) -> list[torch.Tensor]:
        sums = [total.cpu().numpy() for total in summed.sums]
        mark = hashlib.sha256()
        for value in sums:
            mark.update(value.tobytes())
        self._sums.update(mark.digest())
        owner, scale = (self._order, "noise", self._done, mark.hexdigest()), self.steps.multiplier * summed.clip
        expected = self.steps.rate * self.records
        means = []
        for number, (total, value) in enumerate(zip(summed.sums, sums, strict=True)):
            noisy = value + scale * self._noise.normal(value.shape, *owner, number)
            means.append(torch.as_tensor(noisy / expected).to(total.device))
        return means


def _mark(order: TrainOrder, ignored: Collection[str], memory: Any, constants: dict[str, trees.Tensors]) -> str:
    """A hash of all that an order's training depends on: its fields but some, its tensors, and what the client keeps.

    Constants count as they are kept: whether the order had to bring them makes no other order of it. Nor does the
    session of secure aggregation in which it is done.
    """
    plain = {field.name: getattr(order, field.name) for field in fields(TrainOrder) if field.name not in ignored}
    plain["kept"], arrays = trees.flatten(memory)
    given = {f"order/{n}": t for n, t in order.tensors.items() if not n.startswith(CONSTANT)}
    fixed = {f"{CONSTANT}{group}/{n}": t for group, tensors in constants.items() for n, t in tensors.items()}
    mark = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in sorted((given | fixed | {f"memory/{n}": t for n, t in arrays.items()}).items()):
        mark.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        mark.update(np.ascontiguousarray(tensor).tobytes())
    return mark.hexdigest()
