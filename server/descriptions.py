"""Rules for what clients send about their shards before training: accepted statistics, and who may open subspaces.

Limit: a client that sends plausible features of another shard is assigned to that shard's subspace and trains
it. Its updates then have to pass the rules on updates, and its description has the weight of its records.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fcit.config import Federation, RunConfig
from fcit.data.stream import Stream
from fcit.errors import DataError
from fcit.federation.messages import Description
from fcit.methods.base import Factory, Method, Pair, ServerState, Stats
from fcit.privacy import tokens

FACTOR = 4.0  # a mean feature may be this many times as long as the median one
LEAST = 3  # mean features that a median needs to mean something
WINDOW = 500  # mean features the median looks back on


def most_records(config: RunConfig, stream: Stream, client: int, tasks: Sequence[int]) -> int:
    """How many records a shard can have: as many as the stream gave the client.

    Where the server does not have the client's share it is ``federation.max_records``.
    """
    try:
        return stream.most_records(client, tasks)
    except DataError:  # the client's file lies with the client only
        return config.federation.max_records


def reject_reason(description: Description, width: int, most: int) -> str | None:
    """Why a description is rejected by itself, without a look at the others, or None.

    Args:
        width: numbers in an identity feature.
        most: records the shard can have.
    """
    total = description.tensors.get("total")
    if set(description.tensors) != {"total"} or total is None or total.shape != (width,):
        return f"expected one vector of {width} numbers"
    if total.dtype != np.float64 or not np.isfinite(total).all():
        return "the feature sum is not finite float64"
    if not 1 <= description.count <= most:
        return f"claims {description.count} records, it can have 1 to {most}"
    return None


def outliers(
    stats: dict[Pair, Stats], method: Method, lengths: list[float], noise: float | None = None
) -> dict[Pair, str]:
    """Mean features that cannot be means of features of the frozen encoder, with the reason.

    Features of one encoder are of nearly the same length (its last layer normalises them), and a mean is
    not longer than its longest member. Lengths are compared with the median of those accepted before and of
    this round's: sound while fewer than half of these are false. Methods with statistics of their own are
    not checked.

    Where clients add noise (``privacy.token_*``) their features have length 1 at most and the noise a known one, which
    bounds every mean by itself.

    Args:
        lengths: those accepted earlier; the new ones are added, in the order of clients.
        noise: noise multiplier of the clients; None: they add none.
    """
    if type(method).describe is not Method.describe:
        return {}
    with np.errstate(over="ignore"):  # of numbers near the largest there are: infinite, and so an outlier
        new = {pair: float(np.linalg.norm(stats[pair].total)) / stats[pair].count for pair in sorted(stats)}
    known = [*lengths, *new.values()]
    middle = float(np.median(known)) if len(known) >= LEAST else np.inf
    rejected = {}
    for pair, length in new.items():
        if length == 0:
            rejected[pair] = "the feature sum is zero"
        elif noise is not None:
            most = tokens.longest(noise, stats[pair].total.size, stats[pair].count)
            if not length <= most:
                rejected[pair] = f"a mean feature of length {length:.3g}, and with its noise it can have {most:.3g}"
        elif not np.isfinite(length) or length > FACTOR * middle:
            rejected[pair] = f"a mean feature of length {length:.3g}, over {FACTOR:.0f} times the median {middle:.3g}"
    lengths += [length for pair, length in new.items() if pair not in rejected]
    del lengths[:-WINDOW]
    return rejected


def assign(
    method: Method,
    state: ServerState,
    stats: dict[Pair, Stats],
    pairs: list[Pair],
    make: Factory,
    federation: Federation,
    openings: dict[str, int],
) -> dict[Pair, str]:
    """Let the method give every pair its subspace, within ``max_subspaces`` and ``max_openings``.

    The method decides on a copy; pairs whose subspaces would be too many are left out and it decides anew.

    Args:
        stats: of the pairs that are new.
        openings: by client how many subspaces were opened for its pairs so far; counted on.

    Returns:
        the pairs left out, with the reason.
    """
    if not stats:
        method.assign(state, pairs, stats, make)
        return {}
    left: dict[Pair, str] = {}
    while True:
        staying = [pair for pair in pairs if pair not in left]
        trial = replace(
            state, subspaces=dict(state.subspaces), assigned=dict(state.assigned), memory=copy.deepcopy(state.memory)
        )
        method.assign(trial, staying, {pair: s for pair, s in stats.items() if pair not in left}, make)
        opened = [name for name in trial.subspaces if name not in state.subspaces]
        openers = {pair: trial.assigned[pair] for pair in staying if trial.assigned[pair] in opened}
        over = _over(openers, opened, len(state.subspaces), federation, openings)
        if not over:
            break
        left |= over
    vars(state).update(vars(trial))
    for client, _ in {(client, name) for (client, _), name in openers.items()}:
        openings[str(client)] = openings.get(str(client), 0) + 1
    return left


def _over(
    openers: dict[Pair, str], opened: list[str], held: int, federation: Federation, openings: dict[str, int]
) -> dict[Pair, str]:
    """Pairs that open more subspaces than a client may, or, if there are none, than the server keeps."""
    over: dict[Pair, str] = {}
    for client in sorted({client for client, _ in openers}):
        names = sorted({name for pair, name in openers.items() if pair[0] == client}, key=opened.index)
        room = max(0, federation.max_openings - openings.get(str(client), 0))
        reason = f"would open more than {federation.max_openings} subspaces for one client (federation.max_openings)"
        over |= {p: reason for p, name in openers.items() if p[0] == client and name in names[room:]}
    if over:
        return over
    surplus = set(opened[max(0, federation.max_subspaces - held) :])
    reason = f"would open a subspace, and the server keeps {federation.max_subspaces} (federation.max_subspaces)"
    return {pair: reason for pair, name in openers.items() if name in surplus}
