"""Scores of clients' own models (``evaluation.personal``): mean, worst decile, share of clients helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: What a client scores: the run's model, or with factors of its own where these stay with clients; the run's model
#: after a round of local training; an adapter trained here alone.
MODELS = ("global", "private", "tuned", "alone")
#: Scores by client, of one stage; such rows by the number of their stage.
Row = Mapping[str, Mapping[str, float]]


def summary(rows: Mapping[str, Row], stages: Sequence[str]) -> dict[str, Any]:
    """Figures over all clients of some stages; a client that was asked in two of them counts twice.

    For every model that was scored ``mean`` and ``worst``, the mean over the worst tenth of the scores, at least one.
    ``helped``: percentage of clients for whom the run's model (or the private one) is better than the one trained
    alone; ``tuning_helps``: for whom the tuned one is better than the run's. Equal scores help no one. None where no
    client has both.
    """
    scores = [client for stage in stages for client in rows.get(stage, {}).values()]
    figures: dict[str, Any] = {"clients": len(scores)}
    for model in MODELS:
        if values := sorted(client[model] for client in scores if model in client):
            worst = values[: max(1, len(values) // 10)]
            figures[model] = {"mean": sum(values) / len(values), "worst": sum(worst) / len(worst)}
    return figures | {
        "helped": _share([{"global": c["private"], **c} if "private" in c else c for c in scores], "global", "alone"),
        "tuning_helps": _share(scores, "tuned", "global"),
    }


def _share(scores: Sequence[Mapping[str, float]], better: str, worse: str) -> float | None:
    """Percentage of clients for whom one model is better than another."""
    both = [client[better] > client[worse] for client in scores if better in client and worse in client]
    return 100 * sum(both) / len(both) if both else None


def results(rows: Mapping[str, Row]) -> dict[str, Any]:
    """What ``results.json`` says: :func:`summary` over all stages, of every stage, and all scores."""
    stages = sorted(rows, key=int)
    return {
        **summary(rows, stages),
        "stages": {str(int(stage) + 1): summary(rows, [stage]) for stage in stages},
        "scores": {str(int(stage) + 1): rows[stage] for stage in stages},
    }


def columns(results: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of a leaderboard, by the head of their column; all None for a run without."""
    own = results.get("personal", {})
    return {
        "own": own.get("global", {}).get("mean"),
        "own worst": own.get("global", {}).get("worst"),
        "own private": own.get("private", {}).get("mean"),
        "own tuned": own.get("tuned", {}).get("mean"),
        "own alone": own.get("alone", {}).get("mean"),
        "helped": own.get("helped"),
    }
