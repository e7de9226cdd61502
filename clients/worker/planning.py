"""How the records of an order pass through the model, decided before its first step by what a GPU has room for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from clients.worker.micro_batches import MicroBatches
from fcit.config import RunConfig
from fcit.data.collate import Encoded
from fcit.models import estimate
from fcit.models.backbone import Backbone
from fcit.models.estimate import GAPS, Lengths, Memory
from fcit.models.shapes import Shape, shape_of


class Planning:
    """Decides ``training.checkpointing: auto`` and where ``training.micro_batch: auto`` begins.

    On a GPU by the estimate of `fcit doctor` for the longest record of the order and by the memory that is free at
    the moment. On a CPU nothing is computed twice, and the whole batch comes first: main memory is shared with
    everything else, so what is free says little.
    """

    def __init__(self, config: RunConfig, backbone: Backbone) -> None:
        self.config, self.backbone = config, backbone

    @cached_property
    def _shape(self) -> Shape:
        return shape_of(self.config.backbone, self.config.adapter.targets)

    def begin(self, examples: Sequence[Encoded], micro: MicroBatches) -> RunConfig:
        """Begin an order on these records: sets how many records ``micro`` takes at most.

        Returns:
            The configuration with ``checkpointing`` decided.
        """
        training = self.config.training
        if self.backbone.device.type == "cpu" or "auto" not in (training.checkpointing, training.micro_batch):
            micro.begin(None)
            return estimate.checkpointing(self.config, training.checkpointing is True)
        lengths = self._lengths(examples)
        config = estimate.planned(self.config, self._shape, 0, self._fits, lengths)
        micro.begin(estimate.largest_micro(config, self._shape, 0, self._fits, lengths) or 1)
        return config

    def _lengths(self, examples: Sequence[Encoded]) -> Lengths:
        longest, answer = max(examples, key=lambda e: len(e.tokens)), max(e.learnt for e in examples)
        images = longest.tokens.count(self.backbone.encoder.image_token)
        return Lengths(len(longest.tokens) - answer - images, answer, images)  # together the longest record

    def _fits(self, memory: Memory) -> bool:
        """Whether training fits into what is free: not allocated, and of a shared GPU no more than a worker's share.

        The room of several GPUs over which a model is spread counts together.
        """
        room = sum(map(self._free, self.backbone.devices))
        return sum(memory.training.values()) * (1 + GAPS) <= room

    def _free(self, device: torch.device) -> float:
        free, total = torch.cuda.mem_get_info(device)
        allocated = torch.cuda.memory_allocated(device)
        free += torch.cuda.memory_reserved(device) - allocated
        return min(free, total / estimate.workers_per_gpu(self.config) - allocated)
