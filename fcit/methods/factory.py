"""The first tensors of a subspace."""

from __future__ import annotations

import numpy as np

from fcit import seeding
from fcit.io.trees import Tensors
from fcit.models.layout import A, B


class Factory:
    """Initialises subspaces on the server, as a function of (seed, subspace id) only.

    ``projector`` holds the backbone's projector (empty if it is frozen), ``given`` other tensors that are
    initialised from the backbone: the soft prompts of a pool.
    """

    def __init__(
        self,
        seed: int,
        shapes: dict[str, tuple[int, ...]],
        projector: Tensors | None = None,
        std: float = 0.01,
        given: Tensors | None = None,
    ) -> None:
        self.seed, self.shapes, self.projector, self.std = seed, shapes, projector or {}, std
        self.given = given or {}

    def __call__(self, name: str) -> Tensors:
        """A ~ N(0, 0.01^2), B = 0 (as in the reference code); gates as torch initialises a Linear."""
        rng = seeding.generator(self.seed, "subspace", name)
        return {key: self._start(key, shape, rng) for key, shape in sorted(self.shapes.items())}

    def _start(self, key: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        if key in self.given:
            return self.given[key].copy()
        if B in key:
            return np.zeros(shape, dtype=np.float32)
        if A in key:
            return rng.normal(0.0, self.std, shape).astype(np.float32)
        # Gates: kaiming-uniform with a = sqrt 5, i.e. U(-1, 1) / sqrt(d_in). The same for keys of a prompt pool.
        return (rng.uniform(-1.0, 1.0, shape) / np.sqrt(shape[-1])).astype(np.float32)
