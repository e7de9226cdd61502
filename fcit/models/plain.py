"""A whole model as transformers and peft alone load it: what a family is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText
from transformers.quantizers.quantizers_utils import should_convert_module

from fcit.models.families.base import Family
from fcit.models.loading import four_bits
from fcit.models.quieting import quiet


def whole(model: str) -> Any:
    """The model in a folder."""
    with quiet():
        return AutoModelForImageTextToText.from_pretrained(model)


def with_adapter(model: str, adapter: Path) -> Any:
    """The same with a saved adapter."""
    with quiet():
        return PeftModel.from_pretrained(whole(model), adapter)


def quantised(model: torch.nn.Module, family: type[Family]) -> list[str]:
    """Linear layers that ``backbone.quantization: 4bit`` converts."""
    skipped = four_bits("bfloat16", family).llm_int8_skip_modules
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in linear if should_convert_module(name, skipped)]
