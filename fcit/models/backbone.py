"""The frozen multimodal model of one process, with its processor and identity encoder."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from fcit import config as configuration
from fcit.data import prompts
from fcit.data.collate import Encoded, pad_left
from fcit.errors import ConfigError, DataError
from fcit.models import hashes
from fcit.models.features import ImageFeatures, hash_weights, pixels, quiet
from fcit.models.identity import Identity

TINY = Path(__file__).parent.parent / "assets" / "fcit-tiny"


def locate(name: str, identity: str | None) -> tuple[str, str]:
    """Folder or hub name of the model and of its identity encoder.

    Raises:
        ConfigError: a model other than fcit-tiny without ``backbone.identity``.
    """
    if name == "fcit-tiny":
        if not TINY.is_dir():
            raise ConfigError(f"backbone.model: the built-in model is missing from {TINY}; reinstall fcit")
        return str(TINY / "llava"), identity or str(TINY / "clip")
    if identity is None:
        raise ConfigError(
            f"backbone.identity: needed with backbone.model={name!r}, e.g. openai/clip-vit-large-patch14-336"
        )
    return name, identity


def _insert(
    prefix: torch.Tensor, embeds: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Soft prompts ``(B, P, d)`` between the first token of each left-padded row and the rest."""
    rows, length, extra = *embeds.shape[:2], prefix.shape[1]
    first = (mask == 0).sum(dim=1, keepdim=True)  # position of each row's first token
    place = torch.arange(length + extra, device=embeds.device).expand(rows, -1)
    inside = (place > first) & (place <= first + extra)
    # Sources: 0 .. length-1 are the row's own tokens, length .. length+extra-1 the prompts.
    source = torch.where(inside, length + place - first - 1, torch.where(place <= first, place, place - extra))
    wide = source[..., None].expand(-1, -1, embeds.shape[-1])
    joined = torch.cat([embeds, prefix.to(embeds.dtype)], dim=1).gather(1, wide)
    new_mask = torch.cat([mask, mask.new_ones(rows, extra)], dim=1).gather(1, source)
    new_labels = torch.cat([labels, labels.new_full((rows, extra), -100)], dim=1).gather(1, source)
    return joined, new_mask, new_labels


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


class Backbone:
    """Loads everything once; adapters are attached by :class:`fcit.models.adapters.Adapters`."""

    def __init__(self, config: configuration.Backbone) -> None:
        model_path, identity_path = locate(config.model, config.identity)
        self.config = config
        self.device = torch.device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        try:
            with quiet():
                self.model: Any = AutoModelForImageTextToText.from_pretrained(
                    model_path, dtype=getattr(torch, config.dtype)
                )
                self.processor: Any = AutoProcessor.from_pretrained(model_path)
                # With torchvision installed transformers would pick another backend with other pixels.
                self.image_processor: Any = AutoImageProcessor.from_pretrained(model_path, backend="pil")
                self.identity = Identity(identity_path, self.device, config.feature_cache == "disk")
        except (OSError, ValueError) as error:
            raise ConfigError(f"backbone.model: cannot load {config.model!r} ({error})") from None
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.model.to(self.device).eval().requires_grad_(False)
        self._checkpointing = False

    @property
    def token_width(self) -> int:
        """Width of the language model's input embeddings."""
        return int(self._base.get_input_embeddings().embedding_dim)

    @property
    def word_embeddings(self) -> np.ndarray:
        """Input embeddings of the whole vocabulary ``(V, d)`` float32."""
        return self._base.get_input_embeddings().weight.detach().float().cpu().numpy()

    @cached_property
    def vision_hash(self) -> str:
        """Names the feature cache: vision weights, image processor and transformers version."""
        parts = (
            hash_weights(self._llava.vision_tower),
            self.image_processor.to_json_string(),
            transformers.__version__,
        )
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]

    @property
    def hashes(self) -> dict[str, str]:
        """What must be the same wherever a run computes, in sixteen digits each; not the number format."""
        model = locate(self.config.model, self.config.identity)[0]
        return {
            "backbone": hashes.of_weights(model, self._base),
            "tokenizer": hashes.of_tokenizer(model, self.tokenizer),
            "processor": hashes.of_text(self.image_processor.to_json_string()),
            "identity": self.identity.hash,
        }

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Inside, training keeps no activations within the language model's layers and computes them again.

        Nothing else changes: the second computation draws the same dropout. Only layers in training mode do it.
        """
        language = self._llava.language_model
        with warnings.catch_warnings():  # an alias until transformers 6, but the name every 5.x has
            warnings.simplefilter("ignore", FutureWarning)
            # Not reentrant: the embeddings are frozen, so a layer's input may need no gradient.
            language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._checkpointing = True
        try:
            yield
        finally:
            self._checkpointing = False
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                language.gradient_checkpointing_disable()

    @property
    def _base(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def _llava(self) -> Any:
        return self._base.model

    # ------------------------------------------------------------------ text

    @cached_property
    def _image_tokens(self) -> int:
        from PIL import Image

        blank = Image.new("RGB", (64, 64))
        pixels = self.image_processor(blank, return_tensors="pt")["pixel_values"]
        height, width = pixels.shape[-2:]
        patch = self._base.config.vision_config.patch_size
        extra = 0 if self._base.config.vision_feature_select_strategy == "default" else 1
        return (height // patch) * (width // patch) + extra

    def encode(self, instruction: str, answer: str | None, image: str) -> Encoded:
        """Tokenise one example; the image tag becomes as many placeholders as there are patches."""
        if self.config.conversation == "vicuna_v1":
            text = prompts.vicuna_v1(instruction)
        else:
            text = prompts.templated(self.processor, instruction)
        tag = self.processor.image_token
        text = text.replace(tag, tag * self._image_tokens, 1)
        prompt = self.tokenizer(text).input_ids
        tail: list[int] = []
        if answer is not None:
            tail = [*self.tokenizer(f" {answer}", add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        return Encoded(tuple(prompt), tuple(tail), image)

    # ------------------------------------------------------------------ vision

    @torch.no_grad()
    def _vision(self, root: Path, images: Sequence[str]) -> np.ndarray:
        """Patch features before the projector, ``(N, patches, width)`` float32."""
        padded = pixels(self.image_processor, root, images)
        layer = self._base.config.vision_feature_layer
        states = self._llava.vision_tower(
            padded.to(self.device, self._llava.vision_tower.dtype), output_hidden_states=True
        ).hidden_states[layer]
        if self._base.config.vision_feature_select_strategy == "default":
            states = states[:, 1:]
        return states[: len(images)].float().cpu().numpy()

    def vision_features(self, root: Path, images: Sequence[str]) -> torch.Tensor:
        """Frozen patch features ``(N, patches, width)``, from the cache where it is on.

        Raises:
            DataError: an image is missing, unreadable or outside ``root``.
        """
        return torch.from_numpy(self._images.get(root, images)).to(self.device, self.model.dtype)

    @cached_property
    def _images(self) -> ImageFeatures:
        mark = self.vision_hash if self.config.feature_cache == "disk" else ""
        return ImageFeatures(mark, (self._image_tokens, self._base.config.vision_config.hidden_size), self._vision)

    # ------------------------------------------------------------------ language

    def _inputs(
        self, examples: Sequence[Encoded], features: torch.Tensor, prefix: torch.Tensor | None = None
    ) -> dict[str, Any]:
        ids, mask, labels = (
            torch.from_numpy(x).to(self.device) for x in pad_left(examples, self.tokenizer.pad_token_id)
        )
        projected = self._llava.multi_modal_projector(features)
        embeds = self._base.get_input_embeddings()(ids)
        where = (ids == self._base.config.image_token_id)[..., None]
        if int(where.sum()) != projected.shape[0] * projected.shape[1]:
            raise DataError("an instruction contains the image tag as text; remove it")
        embeds = embeds.masked_scatter(where, projected.to(embeds.dtype))
        if prefix is not None:
            embeds, mask, labels = _insert(prefix, embeds, mask, labels)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return {"inputs_embeds": embeds, "attention_mask": mask, "labels": labels, "position_ids": positions}

    def answer_logits(
        self, examples: Sequence[Encoded], features: torch.Tensor, prefix: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits at answer positions and their targets: ``(M, vocabulary)`` and ``(M,)``.

        ``prefix`` ``(B, P, d)`` are soft prompts put right after the first token of each example.
        """
        inputs = self._inputs(examples, features, prefix)
        labels = inputs.pop("labels")
        keep = max(len(e.answer) for e in examples) + 1
        cache = {"use_cache": False} if self._checkpointing else {}  # layers computed twice cannot fill one
        logits = self.model(**inputs, logits_to_keep=keep, **cache).logits[:, :-1]
        target = labels[:, -keep + 1 :]
        chosen = target != -100
        return logits[chosen].float(), target[chosen]

    def loss(
        self, examples: Sequence[Encoded], features: torch.Tensor, prefix: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean cross-entropy over the answer tokens of the batch."""
        logits, target = self.answer_logits(examples, features, prefix)
        return functional.cross_entropy(logits, target)

    @torch.no_grad()
    def generate(
        self,
        examples: Sequence[Encoded],
        features: torch.Tensor,
        max_new_tokens: int,
        prefix: torch.Tensor | None = None,
    ) -> list[str]:
        """Greedy answers of a batch, stripped."""
        inputs = self._inputs(examples, features, prefix)
        out = self.model.generate(
            inputs_embeds=inputs["inputs_embeds"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(out, skip_special_tokens=True)]

    def project(self, function: Callable[[Any], Any]) -> None:
        """Replace the model by ``function(model)`` (how adapters are attached)."""
        self.model = function(self.model)
