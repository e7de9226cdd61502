"""Reference: a separate adapter per task, trained on pooled data and selected by the true task."""

from __future__ import annotations

import numpy as np

from fcit.methods.base import Factory, Method, Pair, ServerState, Stats, one_subspace


class Individual(Method):
    """One adapter (and projector) per task, without interference; inference is given the task.

    The projector, if trained, belongs to the adapter of the task.
    """

    name = "individual"
    family = "baseline"
    summary = "one adapter per task, task known at inference (reference)"
    answers = "A reference: each subspace belongs to one task, which has to be named (`subspace=`)."
    group = "reference"
    pooled = "task"
    needs_task_at_inference = True

    def assign(self, state: ServerState, pairs: list[Pair], stats: dict[Pair, Stats], make: Factory) -> None:
        state.shared = {}
        for pair in pairs:
            name = pair[1]
            state.assigned[pair] = name
            if name not in state.subspaces:
                state.subspaces[name] = {**make(name), **make.projector}

    def active(self, state: ServerState) -> int:
        """One subspace: the true task's."""
        return one_subspace(state)

    def route(self, names: list[str], knowledge, features: np.ndarray) -> np.ndarray:
        """``knowledge`` holds the name of the true task's subspace (zeros if it was never trained)."""
        weights = np.zeros((len(features), len(names)), dtype=np.float32)
        task = knowledge[0].get("task")
        if task in names:
            weights[:, names.index(task)] = 1.0
        return weights
