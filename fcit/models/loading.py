"""Loading a multimodal model: location, checks, number format, attention kernels.

Everything that can be checked without the weights is checked first (:func:`inspect`), so that an unsuitable model is
refused before 14 GB are read, and ``fcit doctor --config`` reports the same as a run.
"""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import torch
import transformers
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.utils import is_flash_attn_2_available

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models import hashes
from fcit.models.checking import check_config, check_files, explained, is_local
from fcit.models.encoding import Encoder
from fcit.models.families.base import Family, families, family_for
from fcit.models.placeholders import placeholders_of
from fcit.models.places import locate
from fcit.models.quieting import quiet
from fcit.models.whole import REPORTING, Report, check_weights, judge
from fcit.models.words import end_tokens, load_words

#: Share of a GPU's memory that the weights of a spread model may take (our choice); the rest is for activations.
WEIGHTS = 0.6


def versions(device: torch.device | None = None) -> dict[str, str]:
    """Library versions, thread count and GPU that results depend on."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device is not None and device.type == "cuda" else {}
    return gpu | {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "numpy": np.__version__,
        "threads": str(torch.get_num_threads()),
    }


def family_of(source: str, settings: configuration.Backbone) -> type[Family]:
    """The family of a model in a folder or on the hub, by its config.json and ``backbone.family`` alone.

    Raises:
        ConfigError: a layout that cannot be read, or a model of no supported family.
        OSError: there is no config.json.
    """
    raw, _ = PreTrainedConfig.get_config_dict(source)
    if not raw:
        raise OSError("no config.json there")
    for candidate in families().values():
        problem = candidate.problem(settings.model, raw)
        if problem is not None:
            raise ConfigError(f"backbone.model: {problem}")
    return family_for(raw.get("model_type"), settings)


def check_hardware(settings: configuration.Backbone) -> None:
    """Check that this machine has what the settings require, before anything is loaded.

    Raises:
        ConfigError: a GPU, a package or a number format is missing.
    """
    cuda = settings.device != "cpu"
    if cuda and not torch.cuda.is_available():
        raise ConfigError(
            f"backbone.device: {settings.device!r}, but torch finds no CUDA GPU; set backbone.device: cpu, or install "
            "a CUDA build of torch (`fcit doctor` shows what is there)"
        )
    if settings.quantization == "4bit":
        if not cuda:
            raise ConfigError(
                f"backbone.quantization: '4bit' needs a CUDA GPU, and backbone.device is {settings.device!r}; "
                "set backbone.device: cuda, or backbone.quantization: none"
            )
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                "backbone.quantization: '4bit' needs bitsandbytes; run pip install 'fcit[gpu]', or set "
                "backbone.quantization: none"
            )
    if settings.attention == "flash_attention_2":
        if not cuda or settings.dtype == "float32":
            raise ConfigError(
                "backbone.attention: 'flash_attention_2' needs a CUDA GPU and 16-bit numbers, and backbone.device is "
                f"{settings.device!r}, backbone.dtype {settings.dtype!r}; set backbone.attention: sdpa"
            )
        if not is_flash_attn_2_available():
            raise ConfigError(
                "backbone.attention: 'flash_attention_2' needs the package flash-attn built for this GPU; install it "
                "(pip install flash-attn --no-build-isolation), or set backbone.attention: sdpa"
            )


@dataclass(frozen=True)
class Inspected:
    """A model as far as it is known without its weights."""

    family: type[Family]
    config: Any
    tokenizer: Any  # pads on the left
    template: Any  # holds the chat template
    image_processor: Any
    ends: list[int]  # tokens that end an answer; the first is the tokenizer's own, which training appends
    tensors: int  # number in the weight files; 0 for a hub name, whose files may not be downloaded yet

    def family_with(self, base: Any, settings: configuration.Backbone) -> Family:
        """The family with a loaded model, or with one that has nothing but its configuration."""
        return self.family(base, self.template if self.family.whole else self.image_processor, settings)


def inspect(source: str, settings: configuration.Backbone) -> Inspected:
    """Check everything of a model except its weights, and the headers of local weight files.

    Raises:
        ConfigError: it would not load completely, or its parts do not belong together; one sentence says why.
    """
    key, name, tensors = "backbone.model", settings.model, 0
    local = is_local(source)
    if local:
        check_config(key, Path(source))
    with quiet():
        with explained(key, name, "config.json"):
            family = family_of(source, settings)
            config = AutoConfig.from_pretrained(source)
        family = family.of(config)
        files = check_files(key, Path(source)) if local else []
        if files and getattr(config, "quantization_config", None) is None:  # else its tensors have other names
            build = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
            tensors = check_weights(key, files, build, config, family)
        with explained(key, name, "its processor" if family.whole else "its tokenizer"):
            tokenizer, template = load_words(source, settings, family.processed, config)
            ends = end_tokens(source, tokenizer)
        with explained(key, name, "its image processor"):
            # With torchvision installed transformers would pick another backend with other pixels.
            image_processor = AutoImageProcessor.from_pretrained(source, backend="pil")
            if family.whole:
                template.image_processor = image_processor
    return Inspected(family, config, tokenizer, template, image_processor, ends, tensors)


def load_model(source: str, settings: configuration.Backbone, inspected: Inspected) -> Any:
    """Load the frozen model onto its device.

    Weights are moved to a GPU one by one, so that no full copy is made in main memory.

    Raises:
        ConfigError: the weights cannot be read or are incomplete.
    """
    options: dict[str, Any] = {"dtype": getattr(torch, settings.dtype)}
    if settings.attention != "auto":
        options["attn_implementation"] = settings.attention
    if settings.quantization == "4bit":
        options["quantization_config"] = four_bits(settings.dtype, inspected.family)
    options |= placement(settings.device)
    key = "backbone.model"
    with quiet(), explained(key, settings.model, "its weights"):
        model, info = AutoModelForImageTextToText.from_pretrained(source, **REPORTING, **options)
    _check_placement(model, settings)
    if not getattr(model, "is_quantized", False):
        judge(key, settings.model, Report.of(model, info), inspected.family)
    elif not inspected.tensors and settings.quantization == "4bit":  # its tensors were renamed: check the files instead
        folder = hashes.folder_of(source)
        files = check_files(key, folder) if folder else []
        check_weights(key, files, type(model), inspected.config, inspected.family)
    inspected.family.modules(model)
    generation = model.generation_config
    # Other generation settings (Qwen: sampling, repetition penalty) would change greedy answers.
    model.generation_config = GenerationConfig(
        bos_token_id=generation.bos_token_id, eos_token_id=inspected.ends, pad_token_id=generation.pad_token_id
    )
    return model.eval().requires_grad_(False)


def placement(device: str) -> dict[str, Any]:
    """Options of ``from_pretrained`` that place the weights.

    ``auto`` fills the GPUs one after the other with whole layers, each up to :data:`WEIGHTS` of its memory, so that a
    model that the first one can hold stays on it. Activations move from one to the next; nothing is put into main
    memory or on disk, where a step would take minutes.
    """
    if device == "cpu":
        return {}
    if device != "auto":
        return {"device_map": {"": device}}
    memory = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    room = {number: int(WEIGHTS * size) for number, size in enumerate(memory)}
    return {"device_map": "sequential", "max_memory": {**room, "cpu": 0}}


def _check_placement(model: Any, settings: configuration.Backbone) -> None:
    """Raise ConfigError if a part of the model found no room on the GPUs."""
    outside = {str(place) for place in getattr(model, "hf_device_map", {}).values()} & {"cpu", "disk"}
    if settings.device != "cpu" and outside:
        raise ConfigError(
            f"backbone.device: {settings.device!r}: the weights of {settings.model!r} need more than {WEIGHTS:.0%} of "
            "the memory of this worker's GPUs; give it more of them (ray.num_gpus), or set backbone.quantization: 4bit"
        )


def load_encoder(settings: configuration.Backbone) -> Encoder:
    """The encoder of a model, without its weights.

    Raises:
        ConfigError: the model would not load completely.
    """
    inspected, family = _unloaded(settings)
    token, video = inspected.config.image_token_id, getattr(inspected.config, "video_token_id", None)
    return Encoder(inspected.tokenizer, inspected.template, token, placeholders_of(family), settings, video)


def unloaded(settings: configuration.Backbone) -> Family:
    """The family of a model without its weights: it knows what becomes of an image of any size.

    Raises:
        ConfigError: the model would not load completely.
    """
    return _unloaded(settings)[1]


def _unloaded(settings: configuration.Backbone) -> tuple[Inspected, Family]:
    source, _ = locate(settings.model, settings.identity)
    inspected = inspect(source, settings)
    family = inspected.family_with(SimpleNamespace(config=inspected.config), settings)
    return inspected, family


def four_bits(dtype: str, family: type[Family]) -> BitsAndBytesConfig:
    """NF4 with double quantisation (QLoRA, arXiv 2305.14314) for the language model's layers only.

    The projector is trained and the vision tower's features are cached for all clients, so both stay exact.
    """
    exact = [f".*{name}" for name in family.outside()]  # transformers matches from the start
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=[*exact, "lm_head"],
    )
