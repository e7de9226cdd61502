"""Loss scaling for a float16 backbone, whose smallest gradients of activations would otherwise become zero."""

from __future__ import annotations

import torch

#: Scale of an order's first step; torch's own 65,536 overflows in the first steps, and local epochs have few.
FIRST = 2.0**10


class LossScale:
    """Dynamic loss scaling of one local training, by torch (Micikevicius et al., 2018, arXiv 1710.03740, section 3.2).

    The loss is multiplied by a power of two before the backward pass and the parameters' float32 gradients are divided
    by it afterwards. A step in which something overflowed is left out and the scale halved. With other number formats
    nothing is done. Every order begins with the same scale, so that its result does not depend on the process.

    Attributes:
        skipped: steps left out.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._scaler = torch.amp.GradScaler(device.type, init_scale=FIRST, enabled=dtype == torch.float16)
        self.skipped = 0

    def up(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to start the backward pass from."""
        return self._scaler.scale(loss)

    def down(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients of the optimiser's parameters, before anything looks at them."""
        if self._scaler.is_enabled():
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of the optimiser, unless gradients are not finite."""
        before = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        self.skipped += self._scaler.get_scale() < before
