"""LoRA subspaces on a backbone, through peft: one training slot and one mixture for inference.

A worker owns a single training slot whose tensors are overwritten for every order; no adapter is
ever added for a client. For inference the active subspaces are stacked into one adapter of rank
E * r, and per-sample weights act between ``lora_A`` and ``lora_B``:

    y = W0 x + (alpha / r) * sum_i w_i B_i A_i x            (DISCO, SSA)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fcit import config as configuration
from fcit import seeding
from fcit.errors import ConfigError
from fcit.io.trees import Tensors
from fcit.models import hashes, spectra
from fcit.models.backbone import Backbone
from fcit.models.hooks import PRIOR, Projectors, TokenGates, as_factor, scale
from fcit.models.layout import GATE, PROMPTS, A, B, Layout, is_factor, is_projector, last_block
from fcit.models.mixing import Selection, needed, thinned

SLOT = "slot"
MIX = "mix"
_GATE = f"{GATE}weight"


class Adapters:
    """The trainable parts of a backbone, addressed by peft's own state-dict names.

    Names look like ``base_model.model.<module>.lora_A.weight`` (and ``...<projector>...`` for the
    projector), which is what ``PeftModel.from_pretrained`` expects in a saved adapter. Gates are
    called ``...<module>.lora_gate.weight``, a prompt pool ``prompt_pool.prompts`` and ``prompt_pool.keys``.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: configuration.Adapter,
        layout: Layout = Layout(),  # noqa: B008  (frozen)
    ) -> None:
        self.backbone, self.adapter, self.layout = backbone, adapter, layout
        if layout.experts and adapter.rank % layout.experts:
            raise ConfigError(f"adapter.rank: {adapter.rank} cannot be divided among {layout.experts} experts")
        try:
            backbone.project(lambda model: get_peft_model(model, self._config(1), adapter_name=SLOT))
        except (ValueError, re.error) as error:
            raise ConfigError(
                f"adapter.targets: {adapter.targets!r} cannot be used ({error}); the language model of this family is "
                f"called {backbone.family.language_name!r}"
            ) from None
        self._mix_size = 0
        self._selection = Selection(adapter.rank)
        self._frozen_added = False
        self._trained: set[str] = set()
        self._principal: dict[tuple[str, float], torch.Tensor] = {}
        self._gates: dict[str, TokenGates] = {}
        self._projectors = self._hook_projector()
        for layer in self._layers.values():
            layer.register_forward_hook(self._with_frozen)
        self._slot = self._trainable()
        self._check_names()

    def _check_names(self) -> None:
        """Factors lie in the language model, and what is trained beside them is the projector as configured.

        Raises:
            ConfigError: ``adapter.targets`` or ``adapter.projector`` does not fit the model.
        """
        targets, policy = self.adapter.targets, self.adapter.projector
        outside = {self.backbone.family.vision: "vision tower, whose features are computed once"}
        outside[self._projector] = "projector, which is trained as a whole or not at all"
        for module, why in outside.items():
            inside = [n for n in self._slot if module in n.split(".") and is_factor(n)]
            if inside:
                raise ConfigError(
                    f"adapter.targets: {targets!r} reaches the {why} ({inside[0]}); anchor the expression in the "
                    "language model"
                )
        trained = [n for n in self._slot if is_projector(n)]
        if bool(trained) != (policy != "frozen") or not all(self._projector in n.split(".") for n in trained):
            raise ConfigError(
                f"adapter.projector: {policy!r}, but of the module {self._projector!r}, the projector of "
                f"{type(self.backbone.family).__name__}, {len(trained)} tensors are trained; correct the module's name "
                "in the family (fcit/models/families)"
            )

    @property
    def _layers(self) -> dict[str, Any]:
        """Adapted layers by name."""
        modules = dict(self._peft.named_modules())
        return {n.removesuffix(".lora_A"): modules[n.removesuffix(".lora_A")] for n in modules if n.endswith(".lora_A")}

    def _trainable(self) -> dict[str, nn.Parameter]:
        named = dict(self._named(SLOT))
        if self.layout.pool:
            width, features = self.backbone.token_width, self.backbone.identity.width(self.layout.identity)
            named = {n: p for n, p in named.items() if is_projector(n)}  # B stays 0: the LoRA adds nothing
            named |= {n: self._parameter(*shape) for n, shape in self.layout.prompts(width, features).items()}
        if self.layout.experts:
            layers = self._layers
            gates = {
                n: self._parameter(self.layout.experts, layer.in_features, device=layer.weight.device)
                for n, layer in layers.items()
            }
            named |= {f"{n}{_GATE}": gate for n, gate in gates.items()}
            self._gates[SLOT] = TokenGates(layers, SLOT)
            self._gates[SLOT].load(gates)
        return dict(sorted(named.items()))

    def _parameter(self, *shape: int, device: torch.device | None = None) -> nn.Parameter:
        return nn.Parameter(torch.zeros(shape, device=device or self.backbone.device), requires_grad=False)

    def start(self, seed: int) -> Tensors:
        """Tensors of a new subspace that start from the backbone: soft prompts are embeddings of random words."""
        if not self.layout.pool:
            return {}
        embeddings = self.backbone.word_embeddings
        rng = seeding.generator(seed, "prompt-pool")
        rows = rng.integers(0, len(embeddings), size=(self.layout.pool, self.layout.length))
        return {PROMPTS: embeddings[rows]}

    @property
    def _peft(self) -> Any:
        return self.backbone.model

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
                    yield name.replace(f".{adapter}.", "."), parameter
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
        shapes = {name: tuple(parameter.shape) for name, parameter in self._slot.items()}
        return {**self.backbone.hashes, "layout": hashes.of_layout(shapes)}

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Overwrite the slot; names that are absent keep their values.

        Raises:
            KeyError: a tensor the slot does not have.
        """
        with torch.no_grad():
            for name, value in tensors.items():
                self._slot[name].copy_(torch.from_numpy(np.asarray(value)))

    def read(self) -> Tensors:
        """Copy of the slot, float32."""
        return {name: p.detach().float().cpu().numpy().copy() for name, p in self._slot.items()}

    @contextmanager
    def training(self, frozen: Collection[str] = ()) -> Iterator[list[nn.Parameter]]:
        """Activate the slot in training mode; yields its parameters except those named ``frozen``."""
        self._trained = set(self._slot) - set(frozen)
        self._activate()
        try:
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
        self._peft.train()
        for _, parameter in self._named(SLOT):  # the unused LoRA of a prompt pool is not in the slot
            parameter.requires_grad_(False)
        for name, parameter in self._slot.items():
            parameter.requires_grad_(name in self._trained)

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

    @contextmanager
    def gate_use(self, top: int) -> Iterator[dict[str, torch.Tensor]]:
        """Within :meth:`training`: counts how often each expert is among a token's ``top``, by its gate's name."""
        with self._gates[SLOT].counting(top) as counts:
            yield {f"{name}{_GATE}": count for name, count in counts.items()}

    @contextmanager
    def gated_by(self, prior: np.ndarray) -> Iterator[None]:
        """Inside, the mixture's token gates are blended with gates of the questions, see :class:`TokenGates`.

        Args:
            prior: ``(B, layers, experts)``, in the order of the layers' names; a row sums to its share of the blend.
        """
        self.backbone.answering.rows[PRIOR] = torch.from_numpy(prior).to(self.backbone.device)
        try:
            yield
        finally:
            self.backbone.answering.rows.pop(PRIOR, None)

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

        Subspaces that hold a projector use it; ``projector`` is used by all others.

        Args:
            as_backbone: the factors are kept in the backbone's number format, not in float32, so that layers cast
                no activations.
        """
        size = max(len(subspaces), 1)
        if size != self._mix_size:
            self._resize(size)
        self._format(self.backbone.dtype if as_backbone else torch.float32)
        lora = [{n: t for n, t in s.items() if is_factor(n) or _GATE in n} for s in subspaces]
        with torch.no_grad():
            for name, parameter in self._named(MIX):
                parameter.requires_grad_(False)
                if is_projector(name):
                    parameter.copy_(torch.from_numpy(projector[name]))
                elif not subspaces or name not in lora[0]:
                    parameter.zero_()
                else:
                    axis = 0 if A in name else 1
                    parameter.copy_(torch.cat([torch.from_numpy(s[name]) for s in lora], dim=axis))
        if self.layout.experts and subspaces:
            gates = {n: torch.from_numpy(t) for n, t in subspaces[0].items() if n.endswith(_GATE)}
            self._gates[MIX].load(
                {n.removesuffix(_GATE): t.to(self._slot[n].device, copy=True) for n, t in gates.items()}
            )
        if self._projectors is not None:
            self._projectors.load(self._own_projectors(subspaces, projector))
        self._peft.set_adapter(MIX, inference_mode=True)
        self._peft.eval()

    def _format(self, dtype: torch.dtype) -> None:
        """Keep the mixture's factors in a number format."""
        modules = [m for n, m in self._peft.named_modules() if n.endswith((f"{A}{MIX}", f"{B}{MIX}"))]
        if any(module.weight.dtype != dtype for module in modules):
            self._selection.forget()
            for module in modules:
                module.to(dtype)

    def _own_projectors(self, subspaces: list[Tensors], projector: Tensors) -> list[dict[str, torch.Tensor]]:
        """Each subspace's projector by the module's own names; none if no subspace holds one."""
        if not any(is_projector(n) for s in subspaces for n in s):
            return []
        return [
            {
                n.partition(f"{self._projector}.")[2]: torch.from_numpy(t).to(self._slot[n].device)
                for n, t in {**projector, **s}.items()
                if is_projector(n)
            }
            for s in subspaces
        ]

    def _resize(self, size: int) -> None:
        if self._mix_size:
            self._peft.set_adapter(SLOT)  # peft warns when the active adapter is deleted
            self._peft.delete_adapter(MIX)
        with seeding.untouched():  # random draws must not depend on what this process did before
            self._peft.add_adapter(MIX, self._config(size))
        factors = {n: module for n, module in self._peft.named_modules() if n.endswith(f".lora_A.{MIX}")}
        for name in last_block(factors) if self.layout.routed == "last" else factors:
            factors[name].register_forward_hook(self._scale)
        if self.layout.experts:
            self._gates[MIX] = TokenGates(self._layers, MIX, self.backbone.answering.rows)
            self.backbone.answering.beside[MIX] = self._gates[MIX].weights
        self._mix_size = size
        self._selection.forget()

    def _hook_projector(self) -> Projectors | None:
        for name, module in self._peft.named_modules():
            if name.endswith(f".{self._projector}") and hasattr(module, "original_module"):
                module.float()  # as LoRA's factors: steps of a small learning rate vanish in 16 bits
                return Projectors(module, module.original_module, lambda: self.backbone.owners)
        return None

    def _scale(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        weights = self.backbone.answering.rows.get(MIX)
        return output if weights is None else scale(weights, output)

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
