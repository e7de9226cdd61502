"""Upper reference of the published tables: centralised training on all tasks at once."""

from __future__ import annotations

from fcit.methods.base import Method


class Joint(Method):
    """One participant holds the records of all clients and tasks.

    It runs in the same round loop; in every round it sees as many samples as the federated run with the same
    configuration (the sum of the sampled clients' sizes).
    """

    name = "joint"
    family = "baseline"
    summary = "one participant with the data of all clients and tasks (upper reference)"
    group = "reference"
    pooled = "all"
    last_stage_only = True
