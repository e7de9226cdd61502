"""What the rule for averaging factors (``factors:``) has the server do between stages."""

from __future__ import annotations

from fcit.fedopt.factors import Separate
from fcit.methods.base import ServerState
from server.journal import Journal


def end_stage(rule: Separate, state: ServerState, journal: Journal) -> None:
    """Let the rule give every subspace that it has kept something of the tensors that follow the stage.

    How far they are from what they stand for is told in the event ``recompressed``.
    """
    missed = {}
    for name, kept in sorted(state.factors.items()):
        state.subspaces[name], distance = rule.end_stage(state.subspaces[name], kept)
        if distance is not None:
            missed[name] = float(f"{distance:.6g}")
    if missed:
        journal.round_event("recompressed", exactness=missed)
