"""A fresh subspace for every stage, the earlier ones frozen: what O-LoRA and M-LoRA have in common."""

from __future__ import annotations

from fcit.methods.base import Factory, Method, Pair, ServerState, Stats


class PerStage(Method):
    """Every client of a stage trains the stage's subspace.

    The papers speak of tasks. A server knows its stages, not the clients' tasks; where every client
    learns the same task in a stage the two are the same, in the heterogeneous setting a subspace
    holds what was learnt in one stage.
    """

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        name = str(state.stage)
        if name not in state.subspaces:
            state.subspaces[name] = make(name)
        for pair in pairs:
            state.assigned[pair] = name
