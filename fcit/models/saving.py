"""Subspaces as files: ordinary peft adapters if possible."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fcit import config as configuration
from fcit import registry
from fcit.io import collector
from fcit.io.trees import Tensors
from fcit.models.layout import is_factor, is_projector

#: File of a peft adapter's tensors, and of a subspace that is none (gates, prompt pools).
PEFT = "adapter_model.safetensors"
BARE = "subspace.safetensors"


def is_peft(tensors: Tensors) -> bool:
    """Whether a subspace consists of LoRA factors and a projector, which is all that a peft adapter can hold."""
    return all(is_projector(name) or is_factor(name) for name in tensors)


def projector_module(names: Iterable[str], family: str = "auto") -> str | None:
    """The module that these tensors hold a projector for, by its family's name; None if they hold none.

    Args:
        family: ``backbone.family``; ``auto``: one of those that are registered.

    Raises:
        ValueError: they hold a projector of no such family.
    """
    held = [name.split(".") for name in names if is_projector(name)]
    if not held:
        return None
    from fcit.models.families.base import families

    known = families().values() if family == "auto" else [registry.resolve("model", family)]
    for one in known:
        if all(one.projector in modules for modules in held):
            return str(one.projector)
    which = "no registered family (fcit.registry.MODELS)" if family == "auto" else f"another family than {family!r}"
    raise ValueError(f"{'.'.join(held[0])} is in the projector of {which}")


def save_subspace(
    folder: Path, tensors: Tensors, adapter: configuration.Adapter, backbone: configuration.Backbone
) -> None:
    """Write one subspace: as a peft adapter if it is one, else as bare tensors (gates, prompt pools)."""
    if is_peft(tensors):
        save_peft(folder, tensors, adapter, backbone)
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: np.asarray(t, order="C") for n, t in tensors.items()}, folder / BARE)


def save_peft(folder: Path, tensors: Tensors, adapter: configuration.Adapter, backbone: configuration.Backbone) -> None:
    """Write one subspace (and projector) in the format of ``PeftModel.from_pretrained``."""
    with collector.paused():
        from peft import LoraConfig  # seconds: a server needs it when the run is over

    folder.mkdir(parents=True, exist_ok=True)
    projector = projector_module(tensors, backbone.family)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=int(adapter.alpha) if math.isclose(adapter.alpha, int(adapter.alpha)) else adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
        modules_to_save=[projector] if projector else None,
        base_model_name_or_path=backbone.model,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    save_file({n: np.asarray(t, order="C") for n, t in tensors.items()}, folder / PEFT)
