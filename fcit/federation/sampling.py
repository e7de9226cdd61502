"""Which clients take part in a round, by client id (never by Flower's random node id)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fcit import seeding
from fcit.config import Federation


def official(stage: int, round_: int) -> list[int]:
    """The published table: five of fifty clients in slot order, the same for every run.

    The reference seeds numpy's legacy generator with 10 * stage + round (both 0-based), draws
    without replacement and then iterates over a ``set`` of the draw; the order of small integers in
    a CPython set of five makes the slot order.
    """
    draw = np.random.RandomState(10 * stage + round_).choice(np.arange(50), 5, replace=False)
    return list({int(client) for client in draw})


def seeded(seed: int, stage: int, round_: int, clients: int, count: int) -> list[int]:
    """``count`` distinct clients, a function of (seed, stage, round)."""
    rng = seeding.generator(seed, "sampling", stage, round_)
    return [int(c) for c in rng.choice(clients, count, replace=False)]


def sample(federation: Federation, seed: int, stage: int, round_: int) -> list[int]:
    """Clients of a round in slot order (slot i of a heterogeneous stage trains the i-th task)."""
    if federation.sampling == "official":
        return official(stage, round_)
    return seeded(seed, stage, round_, federation.clients, federation.clients_per_round)


def suitable(
    rng: np.random.Generator, clients: int, count: int, suits: Callable[[int], bool], chunk: int = 64
) -> list[int]:
    """Up to ``count`` distinct clients that suit, uniformly among those that do; fewer only if there are no more.

    Looks at a few clients, not at the whole pool, unless those that suit are rare in it.
    """
    seen = dict[int, bool]()  # in the order of the draw
    found = 0
    while found < count and len(seen) < clients:
        # Of a pool that is nearly used up, single draws would mostly name clients that were seen.
        whole = 2 * (len(seen) + chunk) >= clients
        for drawn in rng.permutation(clients) if whole else rng.integers(clients, size=chunk):
            client = int(drawn)
            if found < count and client not in seen:
                seen[client] = suits(client)
                found += seen[client]
    return [client for client, good in seen.items() if good]
