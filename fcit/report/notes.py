"""What a reader of a run's numbers should know beside them, in sentences: from ``events.jsonl``."""

from __future__ import annotations

from fcit.runs.reader import Run

SHOWN = 12  # clients or subspaces named in one sentence


def notes(run: Run) -> list[str]:
    """Sentences about a run; none where there is nothing to say."""
    return [*lone_subspaces(run), *idle_clients(run)]


def lone_subspaces(run: Run) -> list[str]:
    """Subspaces that only one client ever trained: what they hold is what that client's few records say."""
    trained: dict[str, dict[int, list[int]]] = {}
    for event in run.of("round"):
        for client, name, count in zip(event["clients"], event["subspaces"], event.get("examples", []), strict=False):
            if count and client >= 0:  # what is below stands for pooled data
                trained.setdefault(name, {}).setdefault(client, []).append(count)
    if len({client for clients in trained.values() for client in clients}) < 2:
        return []
    found = [(name, *next(iter(clients.items()))) for name, clients in trained.items() if len(clients) == 1]
    if not found:
        return []
    said = [f"{name} (client {client}: {_records(counts)})" for name, client, counts in found]
    way_out = (
        "; method.min_records keeps small clients from opening their own" if "min_records" in run.config.method else ""
    )
    return [f"Only one client ever trained {_some('subspace', said)}{way_out}."]


def idle_clients(run: Run) -> list[str]:
    """Clients whose local epoch had one step, at the trainer's first rate of 0."""
    trainings = sum(sum(1 for count in event.get("examples", []) if count) for event in run.of("round"))
    idle = [client for event in run.of("round") for client in event.get("idle", [])]
    if not idle:
        return []
    who = _some("client", [str(client) for client in dict.fromkeys(sorted(idle))])
    return [
        f"In {len(idle)} of {trainings} local epochs nothing was learnt: they have one optimiser step, whose rate is 0 "
        f"with training.schedule: trainer ({who})."
    ]


def _records(counts: list[int]) -> str:
    most = f"{max(counts):,} record{'s' if max(counts) > 1 else ''}"
    return most if len(counts) == 1 else f"{most} in each of {len(counts)} rounds"


def _some(what: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}{'s' if len(names) > 1 else ''} {', '.join(names[:SHOWN])}{more}"
