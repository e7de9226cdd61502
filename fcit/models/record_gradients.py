"""The gradient of every single record's loss.

One record at a time through the model is exact for whatever is trained and however it is computed: gates, soft prompts,
layers whose activations are computed twice. No record's gradient then depends on another's by as much as rounding.

A linear layer y = W x + b gives the gradients of all records of one pass: with the gradient g of its output, record i
has dW_i = sum_t g_it x_it^T and db_i = sum_t g_it (Goodfellow, 2015, arXiv 1510.01799; for texts Li et al., 2022, arXiv
2110.05679, section 4). Where only such layers are trained, these are taken by torch's public hooks, exact up to
rounding.

Why not a library: ``torch.func``'s vmap cannot trace the backbones (answer positions are chosen by value); Opacus 1.6
resolves with torch 2.13 and gives the same numbers by the same sums for LoRA's factors, but takes the rows that a
projector sees for records, which are images, and does not know gates, which are no module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fcit.models.backbone import Backbone

Gradients = tuple[float, list[torch.Tensor]]


class RecordGradients:
    """Gradients by record of a backbone's trained parameters.

    Args:
        parameters: what is trained.
        together: whether several records may pass through the model at a time, where the layers allow it. Not with
            checkpointing, where layers are called a second time amid the backward pass; with numbers of 16 bits only
            if no one minds that the rounding of one record's gradient depends on the others.

    Attributes:
        together: whether they do.
    """

    def __init__(self, backbone: Backbone, parameters: Sequence[nn.Parameter], together: bool) -> None:
        self._backbone, self._parameters = backbone, list(parameters)
        trained = {id(parameter) for parameter in self._parameters}
        self._layers = [
            module
            for module in backbone.model.modules()
            if type(module) is nn.Linear and trained & {id(p) for p in module.parameters()}
        ]
        covered = {id(p) for layer in self._layers for p in layer.parameters()}
        self.together = together and trained <= covered

    def of(self, loss_of: Callable[[list[int]], Any], records: list[int], learnt: Sequence[int]) -> Gradients:
        """The gradients of ``records``; of one only, unless :attr:`together`.

        Args:
            loss_of: the mean loss over the answer tokens of some records.
            learnt: answer tokens of each record.

        Returns:
            the loss over all answer tokens, and for every parameter the gradients of the records' own means, stacked
            ``(records, *shape)``.
        """
        if len(records) == 1:
            loss = loss_of(records)
            gradients = self._gradients(loss)
            return float(loss.detach()), [gradient.float()[None] for gradient in gradients]
        total = sum(learnt)
        with self._watched(len(records)) as seen:
            loss = loss_of(records)
            self._gradients(loss)  # of all records together, which nothing uses
        # The loss counts a record by its tokens; its own mean over them does not.
        shares = torch.tensor([total / count for count in learnt])
        stacked = []
        for parameter in self._parameters:
            gradient = seen.get(id(parameter), parameter.new_zeros(len(records), *parameter.shape))
            stacked.append(gradient * shares.to(gradient.device).reshape(-1, *[1] * parameter.ndim))
        return float(loss.detach()), stacked

    def _gradients(self, loss: Any) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)

    @contextmanager
    def _watched(self, records: int) -> Iterator[dict[int, torch.Tensor]]:
        """In the body, what passes through the layers leaves gradients by the identity of their parameters."""
        gradients: dict[int, torch.Tensor] = {}

        def add(parameter: Any, gradient: Callable[[], torch.Tensor]) -> None:
            if parameter is not None and parameter.requires_grad:
                gradients[id(parameter)] = gradients.get(id(parameter), 0.0) + gradient()

        def watch(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if not output.requires_grad:  # a teacher's pass
                return
            owners = self._backbone.owners
            rows = list(range(records)) if owners is None else list(owners)
            if owners is None and len(output) != records:  # an image that no record has, whose gradient is 0
                return
            states = inputs[0].detach()

            def collect(gradient: torch.Tensor) -> None:
                x = states.reshape(len(rows), -1, states.shape[-1]).float()
                g = gradient.reshape(len(rows), -1, gradient.shape[-1]).float()
                add(layer.weight, lambda: _by_record(torch.einsum("nto,nti->noi", g, x), rows, records))
                add(layer.bias, lambda: _by_record(g.sum(1), rows, records))

            output.register_hook(collect)

        handles = [layer.register_forward_hook(watch) for layer in self._layers]
        try:
            yield gradients
        finally:
            for handle in handles:
                handle.remove()


def _by_record(values: torch.Tensor, rows: list[int], records: int) -> torch.Tensor:
    """Sums of values ``(N, ...)`` over the rows that belong to each record."""
    if rows == list(range(records)):
        return values
    owners = torch.tensor(rows, device=values.device)
    return values.new_zeros(records, *values.shape[1:]).index_add_(0, owners, values)


class ClippedSum:
    """The sum of records' gradients, each clipped to a norm over all tensors (float64).

        g_i <- g_i min(1, C / ||g_i||)          (Abadi et al., 2016, arXiv 1607.00133, algorithm 1)

    One record more or less moves the sum by at most C. A gradient that is not finite counts as 0.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], clip: float) -> None:
        self.clip = clip
        self.sums = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]

    def add(self, gradients: Sequence[torch.Tensor]) -> None:
        """Add the gradients of some records, ``(records, *shape)`` for every parameter."""
        squares = sum(g.double().reshape(len(g), -1).square().sum(1).cpu() for g in gradients)
        norms = torch.as_tensor(squares).sqrt()
        finite = torch.isfinite(norms)
        shares = torch.where(finite, (self.clip / norms).clamp(max=1.0), 0.0)
        for total, gradient in zip(self.sums, gradients, strict=True):
            kept = gradient[finite.to(gradient.device)].double()
            total += torch.tensordot(shares[finite].to(kept.device), kept, dims=1)
