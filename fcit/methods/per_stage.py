"""A new subspace for every stage, earlier ones frozen: the common part of O-LoRA and M-LoRA."""

from __future__ import annotations

from fcit.methods.base import Factory, Method, Pair, ServerState, Stats


class PerStage(Method):
    """Every client of a stage trains the subspace of the stage.

    The papers define subspaces per task. The server knows stages, not the clients' tasks. The two are equal if all
    clients learn the same task in a stage; in the heterogeneous setting a subspace holds what was learnt in one
    stage.
    """

    def common(self, stage: int) -> str:
        return str(stage)

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        name = self.common(state.stage)
        if name not in state.subspaces:
            state.subspaces[name] = make(name)
        for pair in pairs:
            state.assigned[pair] = name
