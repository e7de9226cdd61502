"""Differential privacy of records as the server sees it: how often clients train, and what that has spent.

The noise is the clients' (``clients/worker/private.py``). What is computed here follows from the configuration and from
the numbers of records that clients report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fcit.config import RunConfig
from fcit.config.kinds import epochs_of
from fcit.data.stream import Stream
from fcit.federation.messages import ClientUpdate
from fcit.methods.base import Method, Pair
from fcit.privacy import accountant
from fcit.privacy.record_accountant import Steps, epsilon, noise_of, rate_of, steps_of
from fcit.privacy.record_ledger import RecordLedger
from server import descriptions, token_privacy
from server.participants import Slot, slots_of_round

#: What epsilon says nothing about; in ``results.json`` and in the report.
NOT_COVERED = (
    "how many records a client has, which also decides how many steps it takes and with what sampling rate",
    "how long a training takes, and that it failed",
    "answers and scores of evaluations at sites",
    "what a site trains under another run, unless its SITE.yaml has a max_record_epsilon",
)


class RecordPrivacy:
    """The accounts of a run with ``privacy.record_dp``.

    Args:
        ledger: of a run that goes on; a new one otherwise.

    Raises:
        ConfigError: dp-accounting is not installed.
    """

    def __init__(self, config: RunConfig, stream: Stream, method: Method, ledger: RecordLedger | None) -> None:
        accountant.require("privacy.record_dp: 'on'")
        self.config, self._stream = config, stream
        self.ledger = ledger or RecordLedger()
        rounds = [(stage, r) for stage in range(stream.stage_count) for r in range(method.rounds(stage))]
        slots = [slot for at in rounds for slot in slots_of_round(config, stream, method, *at)]
        self._planned = Counter(name for slot in slots for name in records_of(slot))

    def planned(self, slot: Slot) -> int:
        """How often the client trains on the records of a participation in the whole run."""
        return max(self._planned[name] for name in records_of(slot))

    def count(self, slots: list[Slot], heads: Mapping[Pair, ClientUpdate], declared: Mapping[str, int]) -> None:
        """Note the round's participations, whether their update was accepted or not.

        Args:
            heads: the accepted updates.
            declared: records of shards that are known from elsewhere, by ``client/shard``.
        """
        for slot in slots:
            head = heads.get(slot.pair)
            known = declared.get(f"{slot.client}/{slot.shard}") if head is None else head.examples
            steps = self._steps(slot, known) if known else self._worst(slot)
            for name in records_of(slot):
                self.ledger.add(name, steps)

    def _worst(self, slot: Slot) -> Steps:
        """The steps of a client that never said how many records it has: those that spend most.

        Fewer records are in more of a client's batches, more records in more batches that can have drawn them several
        times; which of both spends more depends on the noise. Looked at are one batch of records, and one record more
        than 1, 2, 4, ... batches, which takes a step more.
        """
        most = descriptions.most_records(self.config, self._stream, slot.client, slot.tasks)
        size, privacy = self.config.training.batch_size, self.config.privacy
        counts = [min(most, size)]
        if privacy.record_epsilon is None:  # else the noise follows the number, and epsilon is the same
            counts += [size * 2**k + 1 for k in range(most.bit_length()) if size * 2**k < most]

        def spent(steps: Steps) -> float:
            return epsilon([steps._replace(number=steps.number * self.planned(slot))], privacy.record_delta).pld

        candidates = [self._steps(slot, count) for count in counts]
        return max(candidates, key=spent) if len(candidates) > 1 else candidates[0]

    def _steps(self, slot: Slot, records: int) -> Steps:
        training = self.config.training
        epochs = epochs_of(training.epochs, slot.tasks)
        rate, count = rate_of(records, training.batch_size), steps_of(records, training.batch_size, epochs)
        return Steps(noise_of(self.config.privacy, rate, count, self.planned(slot)), rate, count)

    def end_stage(self) -> None:
        """Note what was spent by the end of a stage."""
        self.ledger.stages.append(self.so_far()["epsilon"])

    def plan(self) -> dict[str, Any]:
        """For the event at the start of the run: what was asked for, and how often records are trained on at most."""
        privacy = self.config.privacy
        return {
            "noise_multiplier": privacy.record_noise_multiplier,
            "epsilon": privacy.record_epsilon,
            "delta": privacy.record_delta,
            "clip": privacy.record_clip,
            "trainings": max(self._planned.values()),
        }

    def so_far(self) -> dict[str, Any]:
        """For the event of a round: the largest epsilon of any record."""
        delta = self.config.privacy.record_delta
        return {"epsilon": _shown(self.ledger.epsilon(delta).pld), "delta": delta}

    def spent(self) -> dict[str, Any]:
        """For ``results.json``: the largest epsilon of any record, after each stage, and of each client."""
        privacy, spent = self.config.privacy, self.ledger.spent
        multipliers = [multiplier for steps in spent.values() for multiplier, _, _ in steps]
        clients: dict[str, list[str]] = {}
        for name in spent:
            clients.setdefault(name.partition("/")[0], []).append(name)
        return {
            "unit": "record",
            "adjacency": "one record added or removed",
            "amplification": "each batch is a Poisson sample by the client's secret",
            "delta": privacy.record_delta,
            "clip": privacy.record_clip,
            "noise_multiplier": _shown(min(multipliers, default=0.0)),
            "public_noise": privacy.reproducible_noise,
            **self._epsilon(list(spent)),
            "after_stages": self.ledger.stages,
            "clients": {
                client: {
                    **self._epsilon(names),
                    "noise_multiplier": _shown(min(multiplier for name in names for multiplier, _, _ in spent[name])),
                    "steps": sum(count for name in names for _, _, count in spent[name]),
                }
                for client, names in sorted(clients.items(), key=lambda item: int(item[0]))
            },
            "not_covered": [token_privacy.beside_records(self.config), *NOT_COVERED],
        }

    def _epsilon(self, names: list[str]) -> dict[str, float]:
        bounds = self.ledger.epsilon(self.config.privacy.record_delta, names)
        return {"epsilon": _shown(bounds.pld), "epsilon_rdp": _shown(bounds.rdp)}


def records_of(slot: Slot) -> list[str]:
    """Names of the records of a participation, by task; those of a client whose tasks it alone knows have one name."""
    return [f"{slot.client}/{task}" for task in slot.tasks] or [f"{slot.client}/"]


def _shown(value: float) -> float:
    return float(f"{value:.6g}")
