"""Notes on a run's numbers, in sentences, from ``events.jsonl``."""

from __future__ import annotations

from fcit.runs.reader import Run

SHOWN = 12  # clients or subspaces named in one sentence


def notes(run: Run) -> list[str]:
    """All notes on a run."""
    return [*lone_subspaces(run), *idle_clients(run)]


def lone_subspaces(run: Run) -> list[str]:
    """Note on subspaces that only one client ever trained, and so on that client's records alone."""
    trained: dict[str, dict[int, list[int]]] = {}
    for event in run.of("round"):
        for client, name, count in zip(event["clients"], event["subspaces"], event.get("examples", []), strict=False):
            if count and client >= 0:  # negative numbers are pooled data
                trained.setdefault(name, {}).setdefault(client, []).append(count)
    if len({client for clients in trained.values() for client in clients}) < 2:
        return []
    lone = [(name, *next(iter(clients.items()))) for name, clients in trained.items() if len(clients) == 1]
    if not lone:
        return []
    subspaces = [f"{name} (client {client}: {_records(counts)})" for name, client, counts in lone]
    way_out = ""
    if "min_records" in run.config.method:
        way_out = "; method.min_records keeps small clients from opening their own"
    return [f"Only one client ever trained {_some('subspace', subspaces)}{way_out}."]


def idle_clients(run: Run) -> list[str]:
    """Note on clients whose local epoch had one step, at the trainer's first rate of 0."""
    trainings = sum(sum(1 for count in event.get("examples", []) if count) for event in run.of("round"))
    idle = [client for event in run.of("round") for client in event.get("idle", [])]
    if not idle:
        return []
    clients = _some("client", [str(client) for client in dict.fromkeys(sorted(idle))])
    return [
        f"In {len(idle)} of {trainings} local epochs nothing was learnt: they have one optimiser step, whose rate is 0 "
        f"with training.schedule: trainer ({clients})."
    ]


def _records(counts: list[int]) -> str:
    most = f"{max(counts):,} record{'s' if max(counts) > 1 else ''}"
    return most if len(counts) == 1 else f"{most} in each of {len(counts)} rounds"


def _some(noun: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(names[:SHOWN])}{more}"
