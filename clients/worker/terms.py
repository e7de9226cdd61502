"""How an order is done where it is done: simulated, or at a site that has its own mind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clients.worker.micro_batches import MicroBatches
from fcit.config import RunConfig


@dataclass(frozen=True)
class Terms:
    """How a site does an order, beside what the configuration says.

    The default is a simulated client, which gives everything it is asked for.
    """

    min_records: int = 1
    at_site: bool = False

    def how(self, config: RunConfig, used: MicroBatches | None = None) -> dict[str, Any]:
        """What is told with an update about the way it was computed; nothing in a plain simulation.

        Args:
            config: as it was done here (:func:`clients.site.policy.limited`).
            used: what ``micro_batch: auto`` came to.
        """
        training = config.training
        told: dict[str, Any] = {"dtype": config.backbone.dtype} if self.at_site else {}
        if self.at_site or training.micro_batch is not None or training.checkpointing:
            told |= {"micro_batch": training.micro_batch, "checkpointing": training.checkpointing}
        if used is not None and training.micro_batch == "auto":
            told |= {"micro_batch": used.size or training.batch_size, "halved": used.halved}
        return told
