"""Notes on a run's numbers, in sentences, from ``events.jsonl``."""

from __future__ import annotations

from fcit.runs.reader import Run

SHOWN = 12  # clients or subspaces named in one sentence

PUBLIC = (
    "The noise follows from the seed (privacy.reproducible_noise), so anyone who knows the seed can subtract it: this "
    "run keeps nothing private."
)


def notes(run: Run) -> list[str]:
    """All notes on a run."""
    parts = (lone_subspaces, idle_clients, overflowed, real_time, privacy, record_privacy, tokens, sums)
    return [sentence for part in parts for sentence in part(run)]


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


def real_time(run: Run) -> list[str]:
    """Note on a deployment's rounds that did not wait: how long they took, and what came of no use."""
    spent = run.results.get("real_time") if run.finished else None
    if not spent:
        return []
    behind = {int(tau): count for tau, count in spent["staleness"].items()}
    updates = sum(behind.values())
    mean = sum(tau * count for tau, count in behind.items()) / max(updates, 1)
    parts = {
        "at the end of a stage": spent["dropped"],
        "when the server ended": spent["lost"],
        "with a reply after their time": spent["discarded"],
    }
    unused = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    return [
        f"{len(spent['rounds'])} server updates without waiting, in {spent['seconds'] / 3600:.3g} real hours with all "
        f"evaluations but the last: {_number(updates, 'update')} of sites were used, trained {mean:.1f} server updates "
        f"earlier on average{f'; orders of no use: {unused}' if unused else ''}. The order in which they came is that "
        "of no other run; `arrived` events have it."
    ]


def overflowed(run: Run) -> list[str]:
    """Note on steps that were left out because float16 could not hold their gradients."""
    count = sum(how.get("steps_overflowed", 0) for event in run.of("round") for how in event.get("how", []))
    if not count:
        return []
    return [f"{_number(count, 'step')} overflowed in float16 and {'were' if count > 1 else 'was'} left out."]


def privacy(run: Run) -> list[str]:
    """What differential privacy the run has, and what it says nothing about; none without."""
    if not run.config.privacy.on:
        return []
    if not run.finished:
        rounds = [event["privacy"] for event in run.of("round") if "privacy" in event]
        return [f"Differential privacy of clients: epsilon {rounds[-1]['epsilon']:.3g} so far."] if rounds else []
    spent = run.results["privacy"]
    stages = ", ".join(f"{after['epsilon']:.3g}" for after in spent["after_stages"])
    homes = [
        f"{home if home == 'shared' else f'subspace {home}'} {alone['epsilon']:.3g}"
        for home, alone in spent["by_subspace"].items()
    ]
    releases = _number(spent["releases"], "release")
    sentences = [
        f"Differential privacy of clients: epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g} for a client's "
        f"contribution replaced by zero (by Rényi divergences {spent['epsilon_rdp']:.3g}; for its data replaced by any "
        f"others {spent['epsilon_replaced']:.3g}). Noise multiplier {spent['noise_multiplier']:.3g}, last clipping "
        f"norm {spent['clip']:.3g}, {releases} that count. Amplification: {spent['amplification']}. After the stages: "
        f"{stages}. Spent on single parts: {_listed(homes)}.",
        f"Epsilon says nothing about: {'; '.join(spent['not_covered'])}.",
    ]
    if spent["public_noise"]:
        sentences.append(PUBLIC)
    return sentences


def record_privacy(run: Run) -> list[str]:
    """The same of differential privacy of records."""
    if not run.config.privacy.records:
        return []
    if not run.finished:
        rounds = [event["record_privacy"] for event in run.of("round") if "record_privacy" in event]
        return [f"Differential privacy of records: epsilon {rounds[-1]['epsilon']:.3g} so far."] if rounds else []
    spent = run.results["record_privacy"]
    stages = ", ".join(f"{epsilon:.3g}" for epsilon in spent["after_stages"])
    clients = [
        f"client {client} {alone['epsilon']:.3g}"
        for client, alone in sorted(spent["clients"].items(), key=lambda item: -item[1]["epsilon"])
    ]
    sentences = [
        f"Differential privacy of records: epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g} for one record "
        f"added or removed (by Rényi divergences {spent['epsilon_rdp']:.3g}), the largest of any client. Smallest "
        f"noise multiplier {spent['noise_multiplier']:.3g}, clipping norm {spent['clip']:.3g}. After the stages: "
        f"{stages}. {_listed(clients)}.",
        f"Epsilon of records says nothing about: {'; '.join(spent['not_covered'])}.",
    ]
    if spent["public_noise"]:
        sentences.append(
            "Batches and noise of the clients follow from the seed (privacy.reproducible_noise), so records are not "
            "private."
        )
    return sentences


def sums(run: Run) -> list[str]:
    """What the server saw of updates with secure aggregation; none without."""
    if not run.config.privacy.secure:
        return []
    return [
        f"Secure aggregation: the server saw sums of {run.config.privacy.min_group} updates or more; records and "
        "losses shown for a client are the means of its group. A server that passes on false keys is not kept out. "
        f"Times that a group had no sum and was left out: {len(run.of('left-out'))}."
    ]


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count > 1 else ''}"


def tokens(run: Run) -> list[str]:
    """What privacy records have in the descriptions of their shards; none without noise, or in a run that goes on."""
    if not run.config.privacy.tokens or not run.finished:
        return []
    spent = run.results["token_privacy"]
    sentences = [
        f"Differential privacy of descriptions of shards (identity tokens), noise by the clients: epsilon "
        f"{spent['epsilon']:.3g} at delta {spent['delta']:g} for one record added or removed; "
        f"{spent['epsilon_all']:.3g} for a record that is in all {spent['shards']} shards of the client that described "
        f"most. Noise multiplier {spent['noise_multiplier']:.3g} on features of length {spent['clip']:g}.",
        f"This epsilon says nothing about: {'; '.join(spent['not_covered'])}.",
    ]
    return [*sentences, PUBLIC] if spent["public_noise"] else sentences


def _records(counts: list[int]) -> str:
    most = _number(max(counts), "record")
    return most if len(counts) == 1 else f"{most} in each of {len(counts)} rounds"


def _some(noun: str, names: list[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {_listed(names)}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
