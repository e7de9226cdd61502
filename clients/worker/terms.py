"""Settings of the place where an order is done: a simulated client, or a site with limits of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clients.worker.micro_batches import MicroBatches
from clients.worker.record_terms import RecordTerms
from fcit import registry
from fcit.config import RunConfig


@dataclass(frozen=True)
class Terms:
    """A site's own settings beside the configuration.

    The default is a simulated client, which does every order as it is.
    """

    min_records: int = 1
    at_site: bool = False
    rank: int = 0  # largest adapter rank that is trained here, 0 for any
    records: RecordTerms = RecordTerms()  # noqa: RUF009  (frozen)

    def how(
        self, config: RunConfig, used: MicroBatches | None = None, decided: bool = False, overflowed: int = 0
    ) -> dict[str, Any]:
        """How an update was computed, as it is sent with it; empty in a plain simulation.

        Args:
            config: as used here (:func:`clients.site.policy.limited`).
            used: the micro-batches, whose size ``micro_batch: auto`` has found.
            decided: whether ``config`` has a choice of this machine in place of ``checkpointing: auto``.
            overflowed: steps that float16 could not hold the gradients of, and were left out.
        """
        training = config.training
        how: dict[str, Any] = {"dtype": config.backbone.dtype} if self.at_site else {}
        if self.at_site and training.trainer is not None:
            how["trainer"] = registry.label(training.trainer)  # without the site's path
        if self.at_site or training.micro_batch is not None or training.checkpointing or decided:
            how |= {"micro_batch": training.micro_batch, "checkpointing": training.checkpointing}
        if used is not None and training.micro_batch == "auto":
            how |= {"micro_batch": used.size or training.batch_size, "halved": used.halved}
        if used is not None and used.layers is not None and used.layers.used:
            how |= {"compiled": not used.layers.failed, "compile_seconds": round(used.layers.seconds, 1)}
        return how | ({"steps_overflowed": overflowed} if overflowed else {})
