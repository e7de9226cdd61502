"""LoRA subspaces on a backbone, through peft: one slot to train in, one mixture to answer with.

A worker owns a single training slot whose tensors are overwritten for every order; no adapter is
ever added for a client. For inference the active subspaces are stacked into one adapter of rank
E * r, and per-sample weights act between ``lora_A`` and ``lora_B``:

    y = W0 x + (alpha / r) * sum_i w_i B_i A_i x            (DISCO, SSA)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from torch import nn

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.backbone import Backbone

SLOT = "slot"
MIX = "mix"
PREFIX = "base_model.model."
PROJECTOR = "multi_modal_projector"

Tensors = dict[str, np.ndarray]


def is_projector(name: str) -> bool:
    """Whether a tensor belongs to the projector and not to a subspace."""
    return PROJECTOR in name


class Adapters:
    """The trainable parts of a backbone, addressed by peft's own state-dict names.

    Names look like ``base_model.model.<module>.lora_A.weight`` (and ``...multi_modal_projector...``
    for the projector), which is what ``PeftModel.from_pretrained`` expects in a saved adapter.
    """

    def __init__(self, backbone: Backbone, adapter: configuration.Adapter) -> None:
        self.backbone, self.adapter = backbone, adapter
        try:
            backbone.project(lambda model: get_peft_model(model, self._config(1), adapter_name=SLOT))
        except (ValueError, re.error) as error:
            raise ConfigError(f"adapter.targets: {adapter.targets!r} cannot be used ({error})") from None
        self._mix_size = 0
        self._weights: torch.Tensor | None = None
        self._slot = dict(self._named(SLOT))
        outside = [n for n in self._slot if "vision_tower" in n]
        if outside:
            raise ConfigError(
                f"adapter.targets: {adapter.targets!r} reaches the vision tower ({outside[0]}), whose features are "
                "computed once; anchor the expression in the language model"
            )

    @property
    def _peft(self) -> Any:
        return self.backbone.model

    def _config(self, subspaces: int) -> LoraConfig:
        return LoraConfig(
            r=self.adapter.rank * subspaces,
            lora_alpha=self.adapter.alpha * subspaces,
            lora_dropout=self.adapter.dropout,
            target_modules=self.adapter.targets,
            bias="none",
            modules_to_save=[PROJECTOR] if self.adapter.projector == "shared" else None,
        )

    def _named(self, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of one adapter under their saved names, in a stable order."""
        for name, parameter in sorted(self._peft.named_parameters()):
            for marker in (f".lora_A.{adapter}.", f".lora_B.{adapter}."):
                if marker in name:
                    yield name.replace(f".{adapter}.", "."), parameter
            if f".modules_to_save.{adapter}." in name:
                yield name.replace(f".modules_to_save.{adapter}.", "."), parameter

    # ------------------------------------------------------------------ training slot

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The slot's parameters by saved name."""
        return self._slot

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
    def training(self) -> Iterator[list[nn.Parameter]]:
        """Activate the slot in training mode; yields its parameters."""
        self._peft.set_adapter(SLOT)
        self._peft.train()
        self.backbone.identity_encoder.eval()
        for parameter in self._slot.values():
            parameter.requires_grad_(True)
        try:
            yield list(self._slot.values())
        finally:
            self._peft.eval()
            for parameter in self._slot.values():
                parameter.requires_grad_(False)
                parameter.grad = None

    def base_projector(self) -> Tensors:
        """The projector as the backbone came, under its saved names (empty if it is frozen)."""
        found = {}
        for name, parameter in sorted(self._peft.named_parameters()):
            if f"{PROJECTOR}.original_module." in name:
                found[name.replace(".original_module.", ".")] = parameter.detach().float().cpu().numpy().copy()
        return found

    # ------------------------------------------------------------------ mixture

    def load_mixture(self, subspaces: list[Tensors], projector: Tensors) -> None:
        """Stack subspaces (in this order) into the mixture adapter; grows it when needed."""
        size = max(len(subspaces), 1)
        if size != self._mix_size:
            if self._mix_size:
                self._peft.set_adapter(SLOT)  # peft warns when the active adapter is deleted
                self._peft.delete_adapter(MIX)
            self._peft.add_adapter(MIX, self._config(size))
            self._hook()
            self._mix_size = size
        with torch.no_grad():
            for name, parameter in self._named(MIX):
                parameter.requires_grad_(False)
                if is_projector(name):
                    parameter.copy_(torch.from_numpy(projector[name]))
                elif not subspaces:
                    parameter.zero_()
                else:
                    axis = 0 if ".lora_A." in name else 1
                    parts = [torch.from_numpy(s[name]) for s in subspaces]
                    parameter.copy_(torch.cat(parts, dim=axis))
        self._peft.set_adapter(MIX, inference_mode=True)
        self._peft.eval()

    def _hook(self) -> None:
        for name, module in self._peft.named_modules():
            if name.endswith(f".lora_A.{MIX}"):
                module.register_forward_hook(self._scale)

    def _scale(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Multiply the rank dimension ``(B, L, E*r)`` by each sample's weights ``(B, E*r)``."""
        if self._weights is None:
            return output
        return output * self._weights[:, None, :].to(output.dtype)

    @contextmanager
    def mixed(self, weights: np.ndarray | None) -> Iterator[None]:
        """Answer with per-sample weights ``(B, E)`` (None: every subspace with weight one)."""
        if weights is not None:
            repeated = np.repeat(np.asarray(weights, dtype=np.float32), self.adapter.rank, axis=1)
            self._weights = torch.from_numpy(repeated).to(self.backbone.device)
        try:
            yield
        finally:
            self._weights = None


def save_peft(folder: Path, tensors: Tensors, adapter: configuration.Adapter, model: str) -> None:
    """Write one subspace (and projector) so that ``PeftModel.from_pretrained`` loads it as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=int(adapter.alpha) if math.isclose(adapter.alpha, int(adapter.alpha)) else adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
        modules_to_save=[PROJECTOR] if any(is_projector(n) for n in tensors) else None,
        base_model_name_or_path=model,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, folder / "adapter_model.safetensors")
