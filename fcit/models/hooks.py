"""Hooks on adapted layers beside peft's own forward: mixing weights, token gates, projectors.

They are registered through torch's public interface; peft itself is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from fcit.io.trees import Tensors
from fcit.models.layout import GATE, ROUTING, A, is_projector

Parameters = dict[str, torch.Tensor]
#: Tensors with a row for each question of a batch (:mod:`fcit.models.decoding.rows`), and that of a second gate.
Rows = dict[str, torch.Tensor]
PRIOR = "gate-prior"


def scale(weights: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Multiply the rank dimension of ``(B, L, R)`` by weights ``(B, R)``, ``(B, 1)`` or ``(B, L, R)``."""
    return output * (weights[:, None, :] if weights.ndim == 2 else weights).to(output)


def as_factor(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """An input in the number format of the weight it is multiplied by; under autocast, which casts both, as it is."""
    return x.to(weight.device) if torch.is_autocast_enabled(x.device.type) else x.to(weight)


def gate_weights(x: torch.Tensor, weight: torch.Tensor, top: int = 0) -> torch.Tensor:
    """g(x) = softmax(W_g x) ``(..., experts)`` of inputs ``(..., d_in)``; with ``top`` all but the largest are 0.

    Weights are not divided by their sum: of one expert alone that would always be 1, and W_g would have no gradient
    (Fedus et al., "Switch Transformers", 2021, arXiv 2101.03961, equation 2).
    """
    gate = torch.softmax(as_factor(x, weight) @ weight.T, dim=-1)
    if not top:
        return gate
    kept = gate.topk(top, dim=-1)
    return torch.zeros_like(gate).scatter(-1, kept.indices, kept.values)


def layer_index(number: int, layer: Any) -> torch.Tensor:
    """The number of a layer as an index ``(1,)``: compiled code is made for a plain number, and then for one layer."""
    return torch.tensor([number], device=layer.weight.device)


@contextmanager
def shown_inputs(layers: Mapping[str, nn.Module], see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Inside, every forward pass calls ``see`` with the name of a layer's A and its input.

    The input ``(B, L, d_in)`` is detached and holds what rows are padded with; a layer that is computed again for the
    backward pass shows it again.
    """

    def show(name: str, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        see(name, inputs[0].detach())

    handles = [m.register_forward_pre_hook(partial(show, f"{name}{A}weight")) for name, m in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Gates:
    """Gates of one adapter.

    Attributes:
        weights: their tensors by saved name, of the layers that have any.
    """

    def __init__(self, gates: Mapping[str, Any]) -> None:
        self._gates = gates
        self.weights: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set tensors by saved name, in place where there is one; a layer that never had one is not gated."""
        for name, weight in weights.items():
            if name in self.weights:
                self.weights[name].copy_(weight)
            else:
                layer, _, part = name.partition(GATE)
                self.weights[name] = weight
                setattr(self._gates[layer], part, weight)


class TokenGates(Gates):
    """Gates of experts inside one adapter, per token (MoELoRA).

    The rank dimension of expert i is multiplied by g(x)_i, see :func:`gate_weights`. The gate reads the layer's input
    before dropout.

    Args:
        layers: adapted layers by name.
        adapter: whose ``lora_A`` is gated.
        rows: where a second gate of questions may lie: under :data:`PRIOR`, p ``(B, layers, experts)`` in the order of
            the layers' names. Then g <- (1 - sum p) g + p.
        top: experts that act on a token; 0: all.
    """

    def __init__(self, layers: Mapping[str, nn.Module], adapter: str, rows: Rows | None = None, top: int = 0) -> None:
        super().__init__({name: _Gate(layers[name], adapter, top) for name in sorted(layers)})
        if rows is not None:
            for number, name in enumerate(self._gates):
                self._gates[name].prior = partial(_prior, rows, layer_index(number, layers[name]))

    @contextmanager
    def counting(self, top: int) -> Iterator[dict[str, torch.Tensor]]:
        """Inside, how often each expert is among the ``top`` of a token is counted: ``(experts,)`` by saved name."""
        counts = {name: weight.new_zeros(len(weight)) for name, weight in self.weights.items()}
        for name, count in counts.items():
            self._gates[name.partition(GATE)[0]].counted = top, count
        try:
            yield counts
        finally:
            for gate in self._gates.values():
                gate.counted = None

    @contextmanager
    def summing(self, sums: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside, every pass adds the gates of all its tokens to ``sums``: ``(experts,)`` by saved name."""
        for name, total in sums.items():
            self._gates[name.partition(GATE)[0]].total = total
        try:
            yield
        finally:
            for gate in self._gates.values():
                gate.total = None


def _prior(rows: Rows, place: torch.Tensor) -> torch.Tensor | None:
    """The second gate ``(B, 1, experts)`` of the layer at that place ``(1,)``."""
    prior = rows.get(PRIOR)
    return None if prior is None else prior.index_select(1, place.to(prior.device))


class _Gate:
    """The gate of one layer. It knows no name, so that equal layers share one compilation."""

    def __init__(self, layer: nn.Module, adapter: str, top: int) -> None:
        self.adapter, self.top = adapter, top
        self.weight: torch.Tensor | None = None
        self.counted: tuple[int, torch.Tensor] | None = None
        self.total: torch.Tensor | None = None
        self.prior: Callable[[], torch.Tensor | None] | None = None
        self._open: torch.Tensor | None = None
        layer.register_forward_pre_hook(self._read)
        layer.get_submodule(f"lora_A.{adapter}").register_forward_hook(self._multiply)

    def _read(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if self.weight is not None and self.adapter in module.active_adapters:
            gate = gate_weights(inputs[0], self.weight, self.top)
            if self.counted is not None:
                top, counts = self.counted
                counts += torch.bincount(gate.topk(top, dim=-1).indices.flatten(), minlength=len(counts))
            if self.total is not None:
                self.total += gate.detach().float().flatten(0, -2).sum(0)
            if self.prior is not None and (prior := self.prior()) is not None:
                prior = prior.to(gate)
                gate = gate * (1 - prior.sum(-1, keepdim=True)) + prior
            self._open = gate

    def _multiply(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        gate, self._open = self._open, None
        if gate is None:  # another adapter of the layer is active
            return output
        return scale(gate.repeat_interleave(output.shape[-1] // gate.shape[-1], dim=-1), output)


class Keys:
    """Keys of a mixture's subspaces, and the networks in front of them, where steps that were captured read them.

    Attributes:
        tensors: by number of the subspace and saved name.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    @property
    def each(self) -> list[Parameters]:
        """Those of every subspace, by saved name."""
        found: dict[str, Parameters] = {}
        for place, tensor in self.tensors.items():
            number, _, name = place.partition("/")
            found.setdefault(number, {})[name] = tensor
        return list(found.values())

    @torch.no_grad()
    def load(self, subspaces: Sequence[Tensors], device: torch.device) -> None:
        """Set them, in place where there are some."""
        wanted = {f"{i}/{n}": t for i, s in enumerate(subspaces) for n, t in s.items() if n.startswith(ROUTING)}
        for name in self.tensors.keys() - wanted.keys():
            del self.tensors[name]
        for name, value in wanted.items():
            if name in self.tensors:
                self.tensors[name].copy_(torch.from_numpy(value))
            else:
                self.tensors[name] = torch.from_numpy(value).to(device, copy=True)


class Projectors:
    """Several projectors in place of one: ``sum_i w_i P_i(x) / sum_i w_i`` for each image.

    If all weights of its sample are zero, an image gets the module's own output. Images may have a dimension of their
    own or be consecutive rows, equally many for each image.

    Args:
        owners: returns the sample that each image belongs to; None: one image per sample.
    """

    def __init__(
        self, wrapper: nn.Module, module: nn.Module, owners: Callable[[], list[int] | None] = lambda: None
    ) -> None:
        self._module, self._owners = module, owners
        self._all: list[Parameters] = []
        self._weights: torch.Tensor | None = None
        wrapper.register_forward_hook(self._mix)

    def load(self, projectors: list[Parameters]) -> None:
        """Set the parameters of each projector by their names in the module; an empty list removes them."""
        self._all = projectors

    @contextmanager
    def weighted(self, weights: torch.Tensor | None) -> Iterator[None]:
        """Apply weights ``(B, E)`` of the loaded projectors; None: equal weights."""
        if weights is None and self._all:
            first = next(iter(self._all[0].values()))
            weights = torch.ones(1, len(self._all), device=first.device)
        self._weights = weights
        try:
            yield
        finally:
            self._weights = None

    def _mix(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if self._weights is None or not self._all:
            return None
        weights = self._weights.to(output.device)
        total = weights.sum(dim=1, keepdim=True)
        share = torch.where(total > 0, weights / total.clamp(min=1e-12), 0.0)
        owners = self._owners()
        if owners is not None and len(share) > 1:
            share, total = share[owners], total[owners]
        samples = output.reshape(len(share), -1, output.shape[-1])
        mixed = samples.float() * (total <= 0)[..., None]  # summed in float32
        for i, parameters in enumerate(self._all):
            if bool(share[:, i].any()):
                projected = functional_call(self._module, parameters, (inputs[0],)).reshape(samples.shape)
                mixed = mixed + share[:, i, None, None] * projected
        return mixed.reshape(output.shape).to(output.dtype)


def own_projectors(
    subspaces: Sequence[Tensors], projector: Tensors, module: str, devices: Mapping[str, torch.device]
) -> list[Parameters]:
    """Each subspace's projector by the names in its ``module``; none if no subspace holds one.

    Args:
        projector: that of subspaces without, by saved names.
        devices: where the tensors belong, by saved names.
    """
    if not any(is_projector(n) for s in subspaces for n in s):
        return []
    return [
        {
            n.partition(f"{module}.")[2]: torch.from_numpy(t).to(devices[n])
            for n, t in {**projector, **s}.items()
            if is_projector(n)
        }
        for s in subspaces
    ]
