"""FedSA-LoRA (Guo et al., 2024, arXiv 2410.01463 [M]): A is shared, every client keeps its B."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcit.fedopt.factors import Separate
from fcit.io.trees import Tensors
from fcit.models.layout import A, B, is_factor
from fcit.models.ranks import padded


class FedSA(Separate):
    """A' = sum_k w_k A_k; B_k stays with client k, which goes on from it whenever it trains the subspace again.

    w_k = n_k / N, by which the fork of FederatedScope-LLM averages. A client that trains a subspace for the first time
    starts from B = 0. There is no global model: after a stage, ``evaluation.clients`` clients answer every data set,
    each with its own B, and a score is the mean over them, the worst beside it. Tables keep such runs in a block of
    their own. A client without a B for a subspace that a question is routed to answers with the backbone there.

    B never leaves its client (in a simulation it is in the run folder's ``client-memory``). The adapters of a run hold
    A and B = 0. What B knows of other clients, it has through A alone.
    """

    summary = "A averaged, B stays with its client; evaluated per client, there is no global model (FedSA-LoRA)"
    remembers = keeps = per_client = True

    def outgoing(self, home: str, bank: Tensors, memory: dict[str, Any], seed: int) -> Tensors:
        """All but the B's."""
        return {name: tensor for name, tensor in bank.items() if B not in name}

    def at_home(self, bank: Tensors) -> Tensors:
        """The B's."""
        return {name: tensor for name, tensor in bank.items() if B in name}

    def prepare(self, session: Any) -> None:
        """The client's own B, or zeros, at the rank of the A it was sent."""
        known, trainable = session.memory.get(_key(session.subspace), {}), session.adapters.trainable
        own = {}
        for name in [name for name in trainable if B in name]:
            rank, width = len(trainable[name.replace(B, A)]), len(trainable[name])
            kept = known.get(name, np.zeros((width, 0), np.float32))[:, :rank]
            own[name] = padded(name, kept, rank)
        session.adapters.load(own)

    def finish(self, session: Any) -> None:
        session.memory[_key(session.subspace)] = {n: t for n, t in session.adapters.read().items() if B in n}

    def own(self, names: list[str], subspaces: list[Tensors], memory: dict[str, Any]) -> list[Tensors]:
        """The server's A with the client's own B; subspaces it has not trained stay as they are, with B = 0."""
        held = [memory.get(_key(name), {}) for name in names]
        return [
            {n: padded(n, kept[n], t.shape[1]) if n in kept and is_factor(n) else t for n, t in tensors.items()}
            for kept, tensors in zip(held, subspaces, strict=True)
        ]


def _key(subspace: str) -> str:
    return f"subspace-{subspace}"
