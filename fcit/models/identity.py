"""The identity encoder: features of records by a frozen CLIP, from which identity tokens are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from fcit.config.kinds import Way
from fcit.data import prompts
from fcit.data.images.verdicts import ImageVerdicts
from fcit.data.records import Record, TestRecord
from fcit.errors import ConfigError
from fcit.models import hashes
from fcit.models.checking import check_config, check_files, explained, is_local
from fcit.models.features import ImageFeatures, pixels
from fcit.models.quieting import quiet
from fcit.models.whole import REPORTING, Report, check_weights, judge
from fcit.models.words import check_size

LENGTH = 77  # tokens of an instruction
KEY = "backbone.identity"
_KINDS = {"clip": ("text", "vision"), "clip_text_model": ("text",), "clip_vision_model": ("vision",)}
#: Tensors of a whole CLIP that are not part of one tower.
_OTHERS = {
    "text": r"vision_model\.|visual_projection\.|text_projection\.|logit_scale$",
    "vision": r"text_model\.|visual_projection\.|text_projection\.|logit_scale$",
}
_WHOLE = "name a whole CLIP, e.g. openai/clip-vit-large-patch14-336"
_UNLIKE = ("How many red cubes are left?", "Generate a brief caption for the image.")


def clip_text_large() -> Any:
    """The text tower of openai/clip-vit-large-patch14-336."""
    return CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)


def clip_vision_large() -> Any:
    """The vision tower of openai/clip-vit-large-patch14-336."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


#: Published configurations by hub name, text and vision tower, so that an estimate needs no download.
PUBLISHED = {"openai/clip-vit-large-patch14-336": (clip_text_large, clip_vision_large)}


@dataclass(frozen=True)
class Inspected:
    """An identity encoder as far as it is known without its weights."""

    tokenizer: Any
    image_processor: Any  # None if images are not needed
    tensors: int  # number in its weight files; 0 for a hub name


def inspect(source: str, sees: bool) -> Inspected:
    """Check everything of a CLIP except its weights, and the headers of local weight files.

    Args:
        sees: whether its vision tower is needed.

    Raises:
        ConfigError: it would not load completely, or all texts would get the same features.
    """
    local, tensors, processor = is_local(source), 0, None
    if local:
        check_config(KEY, Path(source))
    towers = (("text", CLIPTextModel), ("vision", CLIPVisionModel))[: 1 + sees]
    with quiet():
        with explained(KEY, source, "config.json"):
            config = AutoConfig.from_pretrained(source)
        for name, _ in towers:
            if name not in _KINDS.get(config.model_type, ()):
                raise ConfigError(f"{KEY}: {source!r} has no CLIP {name} tower (it is a {config.model_type}); {_WHOLE}")
        files = check_files(KEY, Path(source), sees) if local else []
        for name, build in towers if files else ():
            tower_config = getattr(config, f"{name}_config", config)
            tensors = check_weights(KEY, files, build, tower_config, _Tower(name), _OTHERS[name])
        with explained(KEY, source, "its tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source)
            check_ends(source, tokenizer, getattr(config, "text_config", config))
        if sees:
            with explained(KEY, source, "its image processor"):
                # With torchvision installed transformers would pick another backend with other pixels.
                processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    return Inspected(tokenizer, processor, tensors)


@dataclass(frozen=True)
class _Tower:
    """A tower of CLIP, for messages about its tensors."""

    name: str
    other_layouts: ClassVar[Mapping[str, str]] = {}

    def part(self, tensor: str) -> str:
        """Every tensor belongs to the tower."""
        return f"{self.name} tower"


def check_ends(source: str, tokenizer: Any, config: Any) -> None:
    """Check that the text tower finds the end of a text; the state there is the feature.

    It takes the first token ``eos_token_id`` of config.json and, without one, the first token of the text, whose
    state does not depend on the text: all texts would have the same feature. For 2, a wrong value in old files, it
    takes the token with the highest number (transformers' CLIPTextModel).

    Raises:
        ConfigError: the tower would take another token, or its vocabulary or positions do not suffice.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"{KEY}: the tokenizer of {source!r} has no end token, and the state at the end is what tells texts apart; "
            "name it in its tokenizer_config.json (eos_token)"
        )
    check_size(KEY, source, tokenizer, config.vocab_size)
    if config.max_position_embeddings < LENGTH:
        raise ConfigError(
            f"{KEY}: the text tower of {source!r} sees {config.max_position_embeddings} tokens, {LENGTH} are needed; "
            f"{_WHOLE}"
        )
    end, looked = tokenizer.eos_token_id, config.eos_token_id
    taken = len(tokenizer) - 1 if looked == 2 else looked
    if end != taken:
        how = "the token with the highest number" if looked == 2 else f"token {looked}"
        raise ConfigError(
            f"{KEY}: the text tower of {source!r} takes {how} for the end of a text (eos_token_id {looked} in its "
            f"config.json), and its tokenizer ends texts with {tokenizer.eos_token!r} ({end}), so that all texts could "
            f"look the same; write {end} into config.json, or let tokenizer and config.json come from one model"
        )
    for text in (_UNLIKE[0], f"{_UNLIKE[0]} " * LENGTH):
        ids = tokenizer(text, truncation=True, max_length=LENGTH).input_ids
        if ids[-1] != end:
            raise ConfigError(
                f"{KEY}: the tokenizer of {source!r} adds no end token {tokenizer.eos_token!r} to a text, the state of "
                "which tells texts apart; use the tokenizer that its model was trained with"
            )


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; zero rows stay zero."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm == 0, 1, norm)


def joined(text: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(t / |t|, v / |v|) / sqrt 2 per row: the cosine of two records is the mean of their two cosines."""
    return (np.concatenate([_unit(text), _unit(image)], axis=1) / np.sqrt(2.0)).astype(np.float32)


def means(rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The mean of each group of consecutive rows, of ``counts`` rows each; zeros for an empty group."""
    if all(count == 1 for count in counts):
        return rows
    ends = np.cumsum(counts)
    groups = [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]
    none = np.zeros(rows.shape[1], dtype=rows.dtype)
    return np.stack(
        [group.mean(axis=0, dtype=np.float64).astype(rows.dtype) if len(group) else none for group in groups]
    )


class IdentityEncoder:
    """Features of records, ``(N, d)`` float32: ``text``, ``suffix``, ``image`` or ``both``.

    ``text`` is the pooled state of the text tower over the instruction (arXiv 2503.12897), ``suffix`` that over its
    last line alone, ``image`` that of the vision tower over the image. They are taken before CLIP's projection into one
    space (the authors' code collects projected image embeddings): texts are compared with texts and images with
    images only, so nothing is gained by the projection, and what it drops may tell tasks apart.

    Args:
        source: folder or hub name of a CLIP; its vision tower is loaded when image features are first needed.
        cache: whether image features are kept on disk.
        pictures: ``data.pictures``: how files become pixels.
    """

    def __init__(self, source: str, device: torch.device, cache: bool, pictures: Way = "official") -> None:
        self.source, self.device, self.cache, self.pictures = source, device, cache, pictures
        self.tokenizer: Any = inspect(source, sees=False).tokenizer
        self._text = self._tower(CLIPTextModel, "text")
        first, second = self.text(_UNLIKE)
        if not np.isfinite(first).all() or np.allclose(first, second, rtol=1e-4, atol=1e-5):
            raise ConfigError(
                f"{KEY}: {source!r} gives {' and '.join(map(repr, _UNLIKE))} the same features, so texts cannot be "
                f"told apart; {_WHOLE}"
            )

    def _tower(self, kind: Any, name: str) -> Any:
        """One tower of the CLIP, frozen.

        Raises:
            ConfigError: tensors are missing, which transformers would fill with random numbers.
        """
        with quiet(), explained(KEY, self.source, f"its {name} tower"):
            model, info = kind.from_pretrained(self.source, **REPORTING)
        judge(KEY, self.source, Report.of(model, info, _OTHERS[name]), _Tower(name))
        return model.to(self.device).eval().requires_grad_(False)

    @cached_property
    def _vision(self) -> tuple[Any, Any]:
        """Vision tower and image processor."""
        inspected = inspect(self.source, sees=True)
        return self._tower(CLIPVisionModel, "vision"), inspected.image_processor

    @property
    def hash(self) -> str:
        """Hash of the encoder: weights, tokenizer and preparation of images."""
        parts = (
            hashes.of_weights(self.source, self._text),
            hashes.of_tokenizer(self.source, self.tokenizer),
            hashes.of_files(self.source, ("preprocessor_config.json",)),
        )
        return hashes.of_text("|".join(parts))

    def width(self, kind: str = "text") -> int:
        """Length d of a feature."""
        text = int(self._text.config.hidden_size)
        if kind in ("text", "suffix"):
            return text
        image = int(self._vision[0].config.hidden_size)
        return image if kind == "image" else text + image

    def features(self, kind: str, records: Sequence[Record | TestRecord], root: Path) -> np.ndarray:
        """Features of records whose images lie below ``root``.

        For a conversation, the mean over its questions and over its images (our definition); for a record without an
        image, zeros in place of image features.

        Raises:
            DataError: an image is missing, unreadable or outside ``root``.
        """
        if kind == "text":
            return self._texts(records)
        if kind == "suffix":
            return self._texts(records, prompts.suffix_text)
        names = [name for r in records for name in r.images]
        rows = self._images.get(root, names) if names else np.zeros((0, self.width("image")), dtype=np.float32)
        image = means(rows, [len(r.images) for r in records])
        return image if kind == "image" else joined(self._texts(records), image)

    @staticmethod
    def stamp(kind: str, records: Sequence[Record | TestRecord], root: Path) -> str:
        """Names the present image files that features of records are made of; empty where they are made of none."""
        if kind in ("text", "suffix"):
            return ""
        return ImageVerdicts(root, None).stamp(image for record in records for image in record.images)

    def _texts(self, records: Sequence[Record | TestRecord], part: Callable[[str], str] = str) -> np.ndarray:
        questions = [[part(instruction) for instruction in r.instructions] for r in records]
        rows = self.text([question for instructions in questions for question in instructions])
        return means(rows, [len(instructions) for instructions in questions])

    @torch.no_grad()
    def text(self, instructions: Sequence[str]) -> np.ndarray:
        """Pooled text features; equal instructions are encoded once."""
        unique = list(dict.fromkeys(prompts.identity_text(text) for text in instructions))
        rows = []
        for start in range(0, len(unique), 64):
            tokens = self.tokenizer(
                unique[start : start + 64], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
            ).to(self.device)
            rows.append(self._text(**tokens).pooler_output.float().cpu().numpy())
        where = {text: row for row, text in enumerate(unique)}
        return np.concatenate(rows)[[where[prompts.identity_text(text)] for text in instructions]]

    @cached_property
    def _images(self) -> ImageFeatures:
        tower, processor = self._vision
        mark = ""
        if self.cache:
            parts = [hashes.of_module(tower), processor.to_json_string(), transformers.__version__]
            if self.pictures != "official":  # so that names of earlier versions stay valid
                parts.append(f"pictures: {self.pictures}")
            mark = f"identity-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}"
        return ImageFeatures(mark, (self.width("image"),), self._pooled)

    @torch.no_grad()
    def _pooled(self, root: Path, images: Sequence[str]) -> np.ndarray:
        tower, processor = self._vision
        padded = pixels(processor, root, images, self.pictures).to(self.device)
        return tower(pixel_values=padded).pooler_output[: len(images)].float().cpu().numpy()
