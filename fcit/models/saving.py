"""Subspaces as files: ordinary peft adapters wherever they are such."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from peft import LoraConfig
from safetensors.numpy import save_file

from fcit import config as configuration
from fcit.models.layout import PROJECTOR, is_projector

Tensors = dict[str, np.ndarray]


def save_subspace(folder: Path, tensors: Tensors, adapter: configuration.Adapter, model: str) -> None:
    """Write one subspace: as a peft adapter if it is one, else as bare tensors (gates, prompt pools)."""
    if all(is_projector(n) or ".lora_A." in n or ".lora_B." in n for n in tensors):
        save_peft(folder, tensors, adapter, model)
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, folder / "subspace.safetensors")


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
