"""The rank that each client trains at, the factors it is sent, and what it cost clients of every rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fcit import registry
from fcit.config import RunConfig
from fcit.config.rank_checks import mixed
from fcit.federation import ranks
from fcit.federation.messages import ClientUpdate
from fcit.fedopt.factors import Separate
from fcit.io.trees import Tensors
from fcit.methods.base import Update
from fcit.models.ranks import cut, rank_of
from server.checkpoint import Progress


class Ranks:
    """The ranks of one run.

    Args:
        progress: of the run; its ``by_rank`` is added to.

    Attributes:
        afforded: the largest rank of sites that have named one, by client; added to by the handshake.
    """

    def __init__(self, config: RunConfig, progress: Progress) -> None:
        self._config, self.progress = config, progress
        self.afforded: dict[int, int] = {}
        self._rule: Separate = registry.resolve("factors", config.factors)()
        self._pruned: dict[int, int] = {}  # in the round at hand
        self._views: dict[tuple[str, str, int], tuple[np.ndarray, np.ndarray]] = {}

    @property
    def mixed(self) -> bool:
        """Whether clients may train at different ranks."""
        return mixed(self._config)

    def of(self, client: int) -> int:
        """The rank of a client; a site's own choice counts within the run's bounds."""
        rank, least = ranks.assigned(self._config, client), self._config.sites.min_rank
        if least is not None:
            rank = max(min(rank, self.afforded.get(client, rank)), least)
        return min(rank, self.progress.ranks.get(str(client), rank))

    def sent(self, home: str, tensors: Tensors, client: int) -> Tensors:
        """The tensors of a subspace at a client's rank.

        Equal tensors at one rank are the same objects for all clients, so that messages share their bytes.

        Args:
            home: name of the subspace.
        """
        if not self.mixed:
            return tensors
        return {name: self._view(home, name, tensor, self.of(client)) for name, tensor in tensors.items()}

    def _view(self, home: str, name: str, tensor: np.ndarray, rank: int) -> np.ndarray:
        whole, view = self._views.get((home, name, rank), (None, tensor))
        if whole is not tensor:
            view = cut(name, tensor, rank)
            self._views[home, name, rank] = tensor, view
        return view

    def pruned(self, updates: Iterable[Update], subspaces: Mapping[str, Tensors]) -> Iterable[Update]:
        """The updates of a round, cut to the rank that their client goes on with.

        Args:
            subspaces: those that their orders were made from, by name.
        """
        return self._cut(updates, dict(subspaces)) if self._rule.prunes and self.mixed else updates

    def _cut(self, updates: Iterable[Update], subspaces: dict[str, Tensors]) -> Iterator[Update]:
        least = self._config.adapter.min_rank or ranks.smallest(self._config)
        for update in updates:
            before = self.sent(update.subspace, subspaces[update.subspace], update.client)
            rank = max(least, self._rule.pruned(before, update.tensors))
            if rank < rank_of(update.tensors):
                self._pruned[update.client] = rank
                update = replace(update, tensors={n: cut(n, t, rank) for n, t in update.tensors.items()})
            yield update

    # ------------------------------------------------------------------ cost

    def count(self, heads: list[ClientUpdate | None], traffic: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
        """End a round: add it to the cost of every rank; returns the entries of its event about ranks.

        From now on clients have the ranks that they were cut to.

        Args:
            heads: accepted updates in the order of the participations, None for one that is lacking.
            traffic: bytes down and up of the round, by client.
        """
        if not self.mixed:
            return {}
        self._views.clear()  # they hold what the server had before the round
        clients = [head.client for head in heads if head]
        for client in clients:
            cost = self.progress.by_rank.setdefault(str(self.of(client)), {"client_rounds": 0, "down": 0, "up": 0})
            cost["client_rounds"] += 1
            for way, size in zip(("down", "up"), traffic.get(client, (0, 0)), strict=True):
                cost[way] += size
        values: dict[str, Any] = {
            "ranks": {client: self.of(client) for client in clients},
            "client_bytes": {client: list(traffic.get(client, (0, 0))) for client in clients},
        }
        if self._pruned:
            values["pruned"] = dict(sorted(self._pruned.items()))
            self.progress.ranks |= {str(client): rank for client, rank in self._pruned.items()}
            self._pruned = {}
        return values


def cost(progress: Progress) -> dict[str, Any]:
    """Bytes of a client and round by rank, for ``results.json``; empty if all have one rank."""
    table = {
        rank: {"client_rounds": (n := sums["client_rounds"]), "down": sums["down"] / n, "up": sums["up"] / n}
        for rank, sums in sorted(progress.by_rank.items(), key=lambda item: int(item[0]))
    }
    return {"by_rank": table} if table else {}
