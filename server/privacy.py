"""Differential privacy of clients at the server: the mechanism of each round, the secret, and what was spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from fcit.config import RunConfig
from fcit.data.stream import Stream
from fcit.errors import ConfigError, RunError
from fcit.federation.sampling import sample
from fcit.fedopt.aggregator import Aggregator
from fcit.methods.base import Method, ServerState, Update
from fcit.privacy import accountant, clipping
from fcit.privacy.ledger import EVERYONE, Ledger
from fcit.privacy.mechanism import Mechanism
from fcit.privacy.noise import Noise, published
from fcit.privacy.secret import kept
from fcit.runs.folder import RunDir
from server import token_privacy
from server.participants import Slot
from server.sums import Sums

#: What epsilon says nothing about; in ``results.json`` and in the report.
NOT_COVERED = (
    "losses and numbers of records that clients report",
    "answers and scores of evaluations at sites",
    "who took part, which updates were rejected, and times and traffic (also sums of them in results.json)",
)
#: What epsilon of secret sampling depends on besides.
SECRET_ONLY = (
    "events.jsonl, results.json, reports and the terminal: they name or count participants, and epsilon is for those "
    "who see none of them",
)


class Freezes(Protocol):
    """Knows which tensors of a subspace are not trained in the round at hand."""

    def frozen(self, state: ServerState, name: str) -> list[str]:
        """Their names."""


class Privacy:
    """The private part of a run's aggregation.

    Args:
        orders: the orders of the run, by which some tensors are not trained.
        ledger: of a run that goes on; a new one otherwise.
        rounds: number of rounds of a stage; default: ``federation.rounds``.

    Raises:
        ConfigError: dp-accounting is not installed, or ``quantile_noise`` is too small for the noise multiplier.
    """

    def __init__(
        self,
        config: RunConfig,
        stream: Stream,
        orders: Freezes,
        run: RunDir,
        ledger: Ledger | None,
        rounds: Callable[[int], int] | None = None,
    ) -> None:
        accountant.require()
        self.config, self._orders, self._run = config, orders, run
        self._rounds = rounds or (lambda stage: config.federation.rounds)
        self._planned = self._releases(stream.stage_count)
        self.ledger = ledger or Ledger(self._multiplier(), config.privacy.clip)
        self._on_updates = self.ledger.multiplier
        if config.privacy.clip_quantile is not None:
            try:
                self._on_updates = clipping.on_updates(self.ledger.multiplier, self._count_noise)
            except ValueError as error:
                raise ConfigError(f"privacy.{error}; raise it, or leave it out") from None

    def _releases(self, stages: int) -> int:
        """Releases that count: those of the client that takes part most often or, if that is secret, all."""
        federation, seed = self.config.federation, self.config.seed
        rounds = [(stage, round_) for stage in range(stages) for round_ in range(self._rounds(stage))]
        if self.config.privacy.secret:
            return len(rounds)
        return max(Counter(client for at in rounds for client in sample(federation, seed, *at)).values())

    def _multiplier(self) -> float:
        """The noise multiplier, as configured or computed from epsilon for the releases of the whole run."""
        privacy = self.config.privacy
        if privacy.epsilon is not None:
            return accountant.multiplier_for(privacy.epsilon, privacy.delta, self._planned, self._rate)
        assert privacy.noise_multiplier is not None  # one of both is given (fcit.config.privacy_checks)
        return privacy.noise_multiplier

    # ------------------------------------------------------------------ who takes part

    @property
    def _rate(self) -> float:
        """Probability that a client takes part in a round, as far as anyone but the server knows."""
        federation = self.config.federation
        return federation.clients_per_round / federation.clients if self.config.privacy.secret else 1.0

    def drawn(self, stage: int, round_: int) -> list[int] | None:
        """The participants of a round, if the server draws them in secret: every client by itself, ascending.

        Poisson sampling, as the bounds of :mod:`fcit.privacy.accountant` assume: there may be none, or all. That one
        client takes part tells nothing of another, which a number fixed in advance would.
        """
        if not self.config.privacy.secret:
            return None
        return Noise(self._secret()).chosen(self.config.federation.clients, self._rate, "sampling", stage, round_)

    def moved(self, method: Method, state: ServerState, slots: list[Slot]) -> list[str]:
        """The subspaces that a round releases: those of its participants or, if these are secret, that of the stage.

        Raises:
            RunError: participants are secret and train different subspaces.
        """
        names = {state.assigned[slot.pair] for slot in slots}
        if self.config.privacy.secret:
            common = method.common(state.stage)
            if common is None or names - {common}:
                raise RunError(
                    f"privacy.sampling: method {method.name} gives clients the subspaces {', '.join(sorted(names))}, "
                    f"and its common() says {common!r}; which of them move would show who took part"
                )
            names = {common}
        return sorted(names)

    # ------------------------------------------------------------------ a round

    def aggregate(
        self,
        method: Method,
        state: ServerState,
        slots: list[Slot],
        updates: Iterable[Update],
        aggregator: Aggregator,
    ) -> None:
        """Let the method aggregate clipped updates of weight one; a home without any gets its noise, too.

        Whether a client's update was accepted depends on its data; that its subspace moves must not.

        Raises:
            RunError: the secret is lost, or the method aggregates a home twice.
        """
        names = self.moved(method, state, slots)
        mechanism = aggregator.mechanism = self._mechanism(state, names)
        try:
            method.aggregate(state, self._clipped(mechanism, state, updates), aggregator)
            for home in mechanism.homes:
                if home not in mechanism.released:
                    self._noise_alone(home, state, aggregator)
        except ValueError as error:
            raise RunError(f"privacy.client_dp: method {method.name}: {error}") from None
        if self.config.privacy.secret:
            self.ledger.count(EVERYONE, mechanism.homes)
        else:
            for slot in slots:
                self.ledger.count(slot.client, self._homes(state, [state.assigned[slot.pair]]))
        self._follow(mechanism)

    @staticmethod
    def _clipped(mechanism: Mechanism, state: ServerState, updates: Iterable[Update]) -> Iterator[Update]:
        """Clipped updates, which all weigh one.

        In sums they were clipped by their clients; a sum goes on as one update that moved as far as its members
        together.
        """
        if isinstance(updates, Sums):
            mechanism.count(updates.unclipped, updates.clients)
        for update in updates:
            old = {**state.shared, **state.subspaces[update.subspace]}
            if isinstance(updates, Sums):
                moved = {n: np.asarray(old[n] + update.examples * (t - old[n])) for n, t in update.tensors.items()}
            else:
                moved = mechanism.clipped(update.tensors, old)
            yield replace(update, tensors=moved, examples=1)

    @staticmethod
    def _noise_alone(home: str, state: ServerState, aggregator: Aggregator) -> None:
        shared = home == "shared"
        old, owner = (state.shared, home) if shared else (state.subspaces[home], f"subspace-{home}")
        new = aggregator.group(home, old, state.optimizers.setdefault(owner, {})).result()
        if shared:
            state.shared = new
        else:
            state.subspaces[home] = new

    def _mechanism(self, state: ServerState, names: list[str]) -> Mechanism:
        federation, ledger = self.config.federation, self.ledger
        homes = self._homes(state, names)
        owner = state.stage, state.round
        noise = Noise(self._secret())
        return Mechanism(ledger.clip, self._on_updates, federation.clients_per_round, homes, noise, owner)

    def _homes(self, state: ServerState, names: list[str]) -> dict[str, list[str]]:
        """The tensors that are trained by who trains these subspaces, by home."""
        homes = {}
        for name in names:
            tensors = state.subspaces[name]
            frozen = self._orders.frozen(state, name)
            homes[name] = [tensor for tensor in tensors if tensor not in frozen]
        return homes | ({"shared": list(state.shared)} if state.shared and homes else {})

    @property
    def _count_noise(self) -> float:
        privacy, clients = self.config.privacy, self.config.federation.clients_per_round
        return clipping.count_noise(self.ledger.multiplier, clients, privacy.quantile_noise)

    def _follow(self, mechanism: Mechanism) -> None:
        """Set the clipping norm of the next round."""
        privacy = self.config.privacy
        if privacy.clip_quantile is not None:
            share = mechanism.share(self._count_noise)
            self.ledger.clip = clipping.followed(self.ledger.clip, share, privacy.clip_quantile, privacy.clip_rate)

    # ------------------------------------------------------------------ the secret

    def _secret(self) -> bytes:
        """The secret of this run's noise, made before its first round."""
        if self.config.privacy.reproducible_noise:
            return published(self.config.seed)
        file = self._run.noise_key
        if self.ledger.clients and not file.is_file():
            raise RunError(
                f"{file} is missing: the noise of this run was drawn from it, and other noise on a repeated round "
                "would be a second release; put the file back, or start the run anew"
            )
        return kept(file)

    def forget_secret(self) -> None:
        """Remove the secret: after the last round it can only do harm."""
        self._run.noise_key.unlink(missing_ok=True)

    # ------------------------------------------------------------------ what was spent

    def end_stage(self) -> None:
        """Note what was spent by the end of a stage."""
        self.ledger.stages.append(self.ledger.releases())

    def planned(self) -> dict[str, Any]:
        """For the event at the start of the run: epsilon of the whole run, if every round takes place."""
        multiplier = float(f"{self.ledger.multiplier:.6g}")
        return {
            **self._epsilon(self._planned),
            "delta": self.config.privacy.delta,
            "noise_multiplier": multiplier,
            "amplification": self._amplification,
        }

    def so_far(self) -> dict[str, Any]:
        """For the event of a round: epsilon of all rounds so far, and the clipping norm of the next."""
        return {
            "epsilon": self._epsilon(self.ledger.releases())["epsilon"],
            "delta": self.config.privacy.delta,
            "clip": round(self.ledger.clip, 6),
        }

    def _epsilon(self, releases: int) -> dict[str, Any]:
        bounds = accountant.epsilon(self.ledger.multiplier, releases, self.config.privacy.delta, self._rate)
        values = {"epsilon": bounds.pld, "epsilon_rdp": bounds.rdp, "epsilon_replaced": bounds.replaced}
        return {key: float(f"{value:.6g}") for key, value in values.items()} | {"releases": releases}

    @property
    def _amplification(self) -> str:
        if self.config.privacy.secret:
            return f"secret Poisson sampling with probability {self._rate:.4g}"
        return "none: participants follow from the seed"

    def spent(self) -> dict[str, Any]:
        """For ``results.json``: epsilon of the run, after each stage, and what was spent on each subspace."""
        privacy, ledger = self.config.privacy, self.ledger
        return {
            "unit": "client",
            "adjacency": "a client's contribution replaced by zero (epsilon_replaced: by any other)",
            "amplification": self._amplification,
            "delta": privacy.delta,
            "noise_multiplier": float(f"{ledger.multiplier:.6g}"),
            "clip": float(f"{ledger.clip:.6g}"),
            "public_noise": privacy.reproducible_noise,
            **self._epsilon(ledger.releases()),
            "after_stages": [self._epsilon(releases) for releases in ledger.stages],
            "by_subspace": {home: self._epsilon(ledger.releases(home)) for home in ledger.homes},
            "not_covered": [
                token_privacy.beside_clients(self.config),
                *NOT_COVERED,
                *(SECRET_ONLY if privacy.secret else ()),
            ],
        }
