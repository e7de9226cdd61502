"""LoRA subspaces on a backbone, through peft: one training slot and one mixture for inference.

A worker owns a single training slot whose tensors are overwritten for every order; no adapter is
ever added for a client. For inference the active subspaces are stacked into one adapter of rank
E * r, and per-sample weights act between ``lora_A`` and ``lora_B``:

    y = W0 x + (alpha / r) * sum_i w_i B_i A_i x            (DISCO, SSA)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fcit import config as configuration
from fcit import seeding
from fcit.errors import ConfigError
from fcit.io.trees import Tensors
from fcit.models import hashes, ranks, spectra
from fcit.models.backbone import Backbone
from fcit.models.checking import check_adapted, check_buffers
from fcit.models.hooks import Projectors, as_factor, own_projectors, shown_inputs
from fcit.models.layout import GATE, PROMPTS, ROUTING, A, B, Layout, is_factor, is_projector, last_block, left_out
from fcit.models.mixing import Selection, needed, thinned
from fcit.models.quieting import quiet
from fcit.models.routed import MIX, SLOT, Routed


class Adapters(Routed):
    """The trainable parts of a backbone, addressed by peft's own state-dict names.

    Names look like ``base_model.model.<module>.lora_A.weight`` (and ``...<projector>...`` for the
    projector), which is what ``PeftModel.from_pretrained`` expects in a saved adapter. Beside them there are
    ``...<module>.lora_gate.<part>``, ``prompt_pool.<part>`` and ``routing.<part>`` (:class:`Layout`).
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: configuration.Adapter,
        layout: Layout = Layout(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(backbone, adapter, layout)
        if not backbone.family.projector and adapter.projector != "frozen":
            raise ConfigError(
                f"adapter.projector: {adapter.projector!r}, but what is kept of an image is behind the projector of "
                "this model (backbone.family); set adapter.projector: frozen"
            )
        problem = layout.problem(adapter.rank)
        if problem is not None:
            raise ConfigError(problem)
        try:
            with quiet():
                backbone.project(lambda model: get_peft_model(model, self._config(1), adapter_name=SLOT))
        except ValueError as error:
            raise ConfigError(
                f"adapter.targets: {adapter.targets!r} cannot be used ({error}); the language model of this family is "
                f"called {backbone.family.language_name!r}"
            ) from None
        self._mix_size = 0
        self._selection = Selection(adapter.rank)
        self._frozen_added, self._until_end = False, ExitStack()
        self._trained: set[str] = set()
        self._principal: dict[tuple[str, float], torch.Tensor] = {}
        ends = (*(f".{part}" for part in backbone.family.outside()), f".{self._projector}.original_module")
        self._vision = {name: module for name, module in self._peft.named_modules() if name.endswith(ends)}
        self._projectors = self._hook_projector()
        for layer in self._layers.values():
            layer.register_forward_hook(self._with_frozen)
            if layout.keyed:
                layer.lora_A[SLOT].register_forward_hook(partial(self._scale, SLOT))
        self._slot = self._trainable()
        #: Shapes of the slot's tensors at the run's rank, whatever rank the last order was trained at.
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self._slot.items()}
        check_adapted(self._slot, adapter, backbone.family)

    def _trainable(self) -> dict[str, nn.Parameter]:
        named = dict(self._named(SLOT))
        if self.layout.pool:
            width, features = self.backbone.token_width, self.backbone.identity.width(self.layout.identity)
            named = {n: p for n, p in named.items() if is_projector(n)}  # B stays 0: the LoRA adds nothing
            named |= {n: self._parameter(*shape) for n, shape in self.layout.prompts(width, features).items()}
        named |= {n: self._parameter(*shape) for n, shape in self.layout.key(self.backbone.token_width).items()}
        if self.layout.experts:
            features = self.backbone.identity.width(self.layout.identity)
            gates = {
                f"{n}{GATE}{part}": self._parameter(*shape, device=layer.weight.device)
                for n, layer in self._layers.items()
                for part, shape in self.layout.gates(layer.in_features, layer.out_features, features).items()
            }
            named |= gates
            self._gates[SLOT] = self._gating(SLOT)
            self._gates[SLOT].load(gates)
        return dict(sorted(named.items()))

    def _parameter(self, *shape: int, device: torch.device | None = None) -> nn.Parameter:
        return nn.Parameter(torch.zeros(shape, device=device or self.backbone.device), requires_grad=False)

    def start(self, seed: int) -> Tensors:
        """Tensors of a new subspace that are not random numbers: a norm; soft prompts, embeddings of random words."""
        if self.layout.keyed:
            ones = np.ones(self.backbone.token_width, np.float32)
            return {f"{ROUTING}norm.weight": ones, f"{ROUTING}norm.bias": np.zeros_like(ones)}
        if not self.layout.pool:
            return {}
        embeddings = self.backbone.word_embeddings
        rng = seeding.generator(seed, "prompt-pool")
        rows = rng.integers(0, len(embeddings), size=(self.layout.pool, self.layout.length))
        return {PROMPTS: embeddings[rows]}

    @property
    def _projector(self) -> str:
        """The module name of the backbone's projector."""
        return self.backbone.family.projector

    def _config(self, subspaces: int) -> LoraConfig:
        return LoraConfig(
            r=self.adapter.rank * subspaces,
            lora_alpha=self.adapter.alpha * subspaces,
            lora_dropout=self.adapter.dropout,
            target_modules=self.adapter.targets,
            bias="none",
            modules_to_save=None if self.adapter.projector == "frozen" else [self._projector],
        )

    def _named(self, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of one adapter under their saved names, in a stable order."""
        for name, parameter in sorted(self._peft.named_parameters()):
            for marker in (f"{A}{adapter}.", f"{B}{adapter}."):
                if marker in name:
                    yield name.replace(marker, marker.removesuffix(f"{adapter}.")), parameter
            if f".modules_to_save.{adapter}." in name:
                yield name.replace(f".modules_to_save.{adapter}.", "."), parameter

    # ------------------------------------------------------------------ training slot

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The slot's parameters by saved name."""
        return self._slot

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the backbone's parts and, as ``layout``, of the slot's names and shapes."""
        return {**self.backbone.hashes, "layout": hashes.of_layout(self.shapes)}

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Overwrite the slot; names that are absent keep their values.

        Factors may have a smaller rank than the run's: the slot then has it, and so do its gradients and the
        optimiser's state. The scale stays alpha / ``adapter.rank``.

        Raises:
            KeyError: a tensor the slot does not have.
            ValueError: a tensor of another shape.
        """
        with torch.no_grad():
            for name, value in tensors.items():
                parameter = self._slot[name]
                if value.shape != tuple(parameter.shape):
                    problem = ranks.problem(name, value.shape, self.shapes[name])
                    if problem is not None:
                        raise ValueError(problem)
                    parameter.data = parameter.data.new_empty(value.shape)
                parameter.copy_(torch.from_numpy(np.asarray(value)))

    def read(self) -> Tensors:
        """Copy of the slot, float32."""
        return {name: p.detach().float().cpu().numpy().copy() for name, p in self._slot.items()}

    @contextmanager
    def training(self, frozen: Collection[str] = ()) -> Iterator[list[nn.Parameter]]:
        """Activate the slot in training mode; yields its parameters except those named ``frozen``."""
        self._trained = set(self._slot) - set(frozen)
        self._activate()
        try:
            with ExitStack() as self._until_end:
                yield [p for n, p in self._slot.items() if n in self._trained]
        finally:
            self._peft.eval()
            self._trained, self._frozen_added = set(), False
            for parameter in self._slot.values():
                parameter.requires_grad_(False)
                parameter.grad = None

    def _activate(self) -> None:
        """Make the slot the active adapter, in training mode."""
        self._peft.set_adapter(SLOT)
        self.backbone.words = None
        self._peft.train()
        self._rest_vision()
        for _, parameter in self._named(SLOT):  # the unused LoRA of a prompt pool is not in the slot
            parameter.requires_grad_(False)
        for name, parameter in self._slot.items():
            parameter.requires_grad_(name in self._trained)

    def _rest_vision(self) -> None:
        """Frozen vision drops nothing out and counts no statistics, so that an image's features are always the same."""
        for name, module in self._vision.items():  # what lies in another comes after it
            module.train(self._projectors is not None and name.endswith(f".{self._projector}"))

    @contextmanager
    def resting(self) -> Iterator[list[nn.Parameter]]:
        """Within :meth:`training`: no dropout, and gradients for every parameter of the slot, frozen or not."""
        self._peft.eval()
        for parameter in self._slot.values():
            parameter.requires_grad_(True)
        try:
            yield list(self._slot.values())
        finally:
            self._activate()

    def show_inputs(self, see: Callable[[str, torch.Tensor], None]) -> None:
        """Within :meth:`training`, until it ends: see :func:`fcit.models.hooks.shown_inputs`."""
        self._until_end.enter_context(shown_inputs(self._layers, see))

    def sum_gates(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Within :meth:`training`, until it ends: every pass adds its tokens' gates to ``sums``, by the gate's name."""
        self._until_end.enter_context(self._token_gates.summing(sums))

    def load_teacher(self, tensors: Tensors) -> None:
        """Within :meth:`training`: load the subspace (and projector) that is active inside :meth:`teacher`."""
        lora = {n: t for n, t in tensors.items() if not is_projector(n)}
        self.load_mixture([lora], {**self.base_projector(), **tensors})
        self._activate()

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """Within :meth:`training`: the loaded teacher is active instead of the slot; no dropout, no gradients."""
        self._peft.set_adapter(MIX, inference_mode=True)
        self._peft.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._activate()

    def add_frozen(self, subspaces: list[Tensors]) -> None:
        """Within :meth:`training`: add the sum of these frozen subspaces to the slot's output until training ends."""
        if subspaces:
            lora = [{n: t for n, t in s.items() if not is_projector(n)} for s in subspaces]
            self.load_mixture(lora, self.base_projector())
            self._frozen_added = True
            self._activate()

    def _with_frozen(self, layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if not self._frozen_added or layer.active_adapters != [SLOT]:
            return None
        x = as_factor(inputs[0], layer.lora_A[MIX].weight)
        frozen = layer.lora_B[MIX](layer.lora_A[MIX](x)) * layer.scaling[MIX]
        return output + frozen.to(output.dtype)

    def principal(self, name: str, share: float) -> torch.Tensor:
        """Main directions ``(k, d_in)`` of the frozen weight below the factor ``name``, kept in memory once computed.

        See :func:`fcit.models.spectra.principal`. Of all layers of a 7B model they are in the order of a gigabyte.
        """
        layer = name.partition(A)[0]
        if (layer, share) not in self._principal:
            self._principal[layer, share] = spectra.principal(self._layers[layer].base_layer, share)
        return self._principal[layer, share]

    def base_projector(self) -> Tensors:
        """The backbone's original projector, under its saved names (empty if it is frozen)."""
        projector = {}
        for name, parameter in sorted(self._peft.named_parameters()):
            if f"{self._projector}.original_module." in name:
                projector[name.replace(".original_module.", ".")] = parameter.detach().float().cpu().numpy().copy()
        return projector

    # ------------------------------------------------------------------ mixture

    def load_mixture(self, subspaces: list[Tensors], projector: Tensors, as_backbone: bool = False) -> None:
        """Stack subspaces (in this order) into the mixture adapter; grows it when needed.

        Subspaces that hold a projector use it; ``projector`` is used by all others. Layers that some leave out are zero
        there.

        Args:
            as_backbone: the factors are kept in the backbone's number format, not in float32, so that layers cast
                no activations, and the projector is multiplied in it.
        """
        size = max(len(subspaces), 1)
        if size != self._mix_size:
            self._resize(size)
        self._format(self.backbone.dtype if as_backbone else torch.float32)
        self.backbone.words = self.backbone.dtype if as_backbone and self.backbone.dtype != torch.float32 else None
        lora = [{n: t for n, t in s.items() if is_factor(n)} for s in subspaces]
        shapes = {name: t.shape for s in lora for name, t in s.items()}
        lora = [{**s, **left_out(s, shapes)} for s in lora]
        with torch.no_grad():
            for name, parameter in self._named(MIX):
                parameter.requires_grad_(False)
                if is_projector(name):
                    parameter.copy_(torch.from_numpy(projector[name]))
                elif name not in shapes:
                    parameter.zero_()
                else:
                    axis = 0 if A in name else 1
                    parameter.copy_(torch.cat([torch.from_numpy(s[name]) for s in lora], dim=axis))
        if self.layout.experts and subspaces:
            gates = {n: torch.from_numpy(t) for n, t in subspaces[0].items() if GATE in n}
            self._gates[MIX].load({n: t.to(self._slot[n].device, copy=True) for n, t in gates.items()})
        self.keys.load(subspaces, self.backbone.device)
        if self._projectors is not None:
            devices = {name: parameter.device for name, parameter in self._slot.items()}
            self._projectors.load(own_projectors(subspaces, projector, self._projector, devices))
        self._peft.set_adapter(MIX, inference_mode=True)
        self._peft.eval()

    def _format(self, dtype: torch.dtype) -> None:
        """Keep the mixture's factors in a number format."""
        modules = [m for n, m in self._peft.named_modules() if n.endswith((f"{A}{MIX}", f"{B}{MIX}"))]
        if any(module.weight.dtype != dtype for module in modules):
            self._selection.forget()
            for module in modules:
                module.to(dtype)

    def _resize(self, size: int) -> None:
        if self._mix_size:
            self._peft.set_adapter(SLOT)  # peft warns when the active adapter is deleted
            self._peft.delete_adapter(MIX)
        with quiet(), seeding.untouched():  # random draws must not depend on what this process did before
            self._peft.add_adapter(MIX, self._config(size))
        factors = {n: module for n, module in self._peft.named_modules() if n.endswith(f".lora_A.{MIX}")}
        for name in last_block(factors) if self.layout.routed == "last" else factors:
            factors[name].register_forward_hook(partial(self._scale, MIX))
        if self.layout.keyed:
            self.backbone.answering.beside["keys"] = self.keys.tensors
        if self.layout.experts:
            self._gates[MIX] = self._gating(MIX)
            self.backbone.answering.beside[MIX] = self._gates[MIX].weights
        self._mix_size = size
        self._selection.forget()

    def _hook_projector(self) -> Projectors | None:
        for module in self._vision.values():
            if hasattr(module, "original_module"):
                check_buffers(module.original_module, self.adapter.projector, self.backbone.family)
                module.float()  # as LoRA's factors: steps of a small learning rate vanish in 16 bits
                return Projectors(module, module.original_module, lambda: self.backbone.owners)
        return None

    @contextmanager
    def mixed(self, weights: np.ndarray | None, negligible: float = 0.0) -> Iterator[None]:
        """Answer with per-sample weights ``(B, E)`` (None: every subspace with weight one).

        Args:
            negligible: weights below it count as 0, except a sample's largest, and subspaces that no sample needs take
                no part; 0: all do.
        """
        chosen = None
        with ExitStack() as stack:
            if weights is not None:
                chosen = torch.from_numpy(np.asarray(weights, dtype=np.float32)).to(self.backbone.device)
                chosen = thinned(chosen, negligible) if negligible else chosen
                columns, kept = chosen, needed(chosen) if negligible else None
                if kept is not None:
                    factors = {n: p for n, p in self._named(MIX) if is_factor(n)}
                    stack.enter_context(self._selection.of(factors, kept))
                    columns = chosen[:, kept]
                self.backbone.answering.rows[MIX] = columns.repeat_interleave(self.adapter.rank, dim=1)
                stack.callback(self.backbone.answering.rows.pop, MIX, None)
            if self._projectors is not None:
                stack.enter_context(self._projectors.weighted(chosen))
            yield
