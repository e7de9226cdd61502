"""Centralised training on all tasks at once, the upper reference of the published tables."""

from __future__ import annotations

from fcit.methods.base import Method


class Joint(Method):
    """One participant holds every client's records of every task.

    It runs in the same round loop and sees, round by round, exactly as many samples as the federated
    run with the same configuration would (the sum of the sampled clients' sizes).
    """

    name = "joint"
    summary = "one participant with the data of all clients and tasks (upper reference)"
    group = "reference"
    pooled = "all"
    last_stage_only = True
