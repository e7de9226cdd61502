"""What does not go together with ``evaluation.personal``, in sentences."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fcit.config.rank_checks import mixed
from fcit.config.schema import RunConfig


def task_problem(config: RunConfig, rules: Sequence[Collection[str]], owner: str) -> str | None:
    """Why ``evaluation.personal`` does not fit a benchmark's tasks, in one sentence, or None.

    Args:
        rules: by which the data sets of each task are scored.
    """
    apart = next((number for number, names in enumerate(rules) if len(set(names)) > 1), None)
    if config.evaluation.personal is None or apart is None:
        return None
    return (
        f"evaluation.personal: task {apart} of {owner} has data sets of different rules "
        f"({', '.join(sorted(set(rules[apart])))}), and a client's records do not say which they are of; leave "
        "evaluation.personal out"
    )


def contradictions(config: RunConfig) -> list[str]:
    """Settings that do not go together with ``evaluation.personal``."""
    if config.evaluation.personal is None:
        return []
    privacy, problems = config.privacy, []
    on = {
        "client_dp": privacy.on,
        "record_dp": privacy.records,
        "token_*": privacy.tokens,
        "secure_aggregation": privacy.secure,
    }
    for key in (key for key, given in on.items() if given):
        problems.append(
            f"evaluation.personal: a client's scores on its own records are sent as they are, which privacy.{key} does "
            "not cover; leave evaluation.personal out"
        )
    if config.stream == "site":
        problems.append(
            "evaluation.personal: with stream: 'site' each site is scored on its own test files already; leave it out, "
            "or choose stream: benchmark"
        )
    if mixed(config):
        problems.append(
            "evaluation.personal: clients are tuned at adapter.rank, which those of smaller adapter.ranks cannot "
            "afford; leave one of them out"
        )
    if config.centralised:
        problems.append(
            "evaluation.personal: is about clients, and with setting: 'centralised' there is one participant; leave it "
            "out, or choose setting: homogeneous"
        )
    return problems
