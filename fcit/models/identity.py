"""What records look like to a frozen CLIP: the features that identity tokens are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoImageProcessor, AutoTokenizer, CLIPTextModel, CLIPVisionModel

from fcit.data import prompts
from fcit.data.records import Record, TestRecord
from fcit.errors import ConfigError
from fcit.models import hashes
from fcit.models.features import ImageFeatures, hash_weights, pixels, quiet
from fcit.schema import Way

LENGTH = 77  # tokens of an instruction


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one; zero rows stay."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm == 0, 1, norm)


def joined(text: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(t / |t|, v / |v|) / sqrt 2 per row: the cosine of two records is the mean of their two cosines."""
    return (np.concatenate([_unit(text), _unit(image)], axis=1) / np.sqrt(2.0)).astype(np.float32)


def means(rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The mean of each group of consecutive rows: ``counts`` rows each; zeros for a group of none."""
    if all(count == 1 for count in counts):
        return rows
    ends = np.cumsum(counts)
    groups = [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]
    none = np.zeros(rows.shape[1], dtype=rows.dtype)
    return np.stack(
        [group.mean(axis=0, dtype=np.float64).astype(rows.dtype) if len(group) else none for group in groups]
    )


class Identity:
    """Features of records, ``(N, d)`` float32: ``text``, ``image`` or ``both``.

    ``text`` is the pooled state of the text tower over the instruction (arXiv 2503.12897), ``image`` that
    of the vision tower over the image. Both are taken before CLIP's projection into one space (the
    authors' code collects projected image embeddings): texts are compared with texts and images with
    images only, so nothing is gained by the projection, and what it drops may tell tasks apart.

    Args:
        source: folder or hub name of a CLIP; its vision tower is loaded when images are first asked for.
        cache: whether image features are kept on disk.
        pictures: ``data.pictures``: how files become pixels.
    """

    def __init__(self, source: str, device: torch.device, cache: bool, pictures: Way = "official") -> None:
        self.source, self.device, self.cache, self.pictures = source, device, cache, pictures
        self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
        self._text = self._tower(CLIPTextModel, "text")

    def _tower(self, kind: Any, name: str) -> Any:
        """One tower of the CLIP, frozen.

        Raises:
            ConfigError: the CLIP has no such tower; transformers would fill it with random numbers.
        """
        with quiet():
            model, info = kind.from_pretrained(self.source, output_loading_info=True)
        missing = sorted(info["missing_keys"])
        if missing:
            raise ConfigError(
                f"backbone.identity: {self.source!r} has no CLIP {name} tower ({missing[0]} is missing); "
                "name a whole CLIP, e.g. openai/clip-vit-large-patch14-336"
            )
        return model.to(self.device).eval().requires_grad_(False)

    @cached_property
    def _vision(self) -> tuple[Any, Any]:
        """Vision tower and image processor."""
        try:
            # With torchvision installed transformers would pick another backend with other pixels.
            processor = AutoImageProcessor.from_pretrained(self.source, backend="pil")
            return self._tower(CLIPVisionModel, "vision"), processor
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"backbone.identity: {self.source!r} has no vision tower and image processor that can be loaded "
                f"({error}); name a whole CLIP, e.g. openai/clip-vit-large-patch14-336"
            ) from None

    @property
    def hash(self) -> str:
        """Names the encoder: weights, words and how images are prepared."""
        parts = (
            hashes.of_weights(self.source, self._text),
            hashes.of_tokenizer(self.source, self.tokenizer),
            hashes.of_files(self.source, ("preprocessor_config.json",)),
        )
        return hashes.of_text("|".join(parts))

    def width(self, kind: str = "text") -> int:
        """Length d of a feature."""
        text = int(self._text.config.hidden_size)
        if kind == "text":
            return text
        image = int(self._vision[0].config.hidden_size)
        return image if kind == "image" else text + image

    def features(self, kind: str, records: Sequence[Record | TestRecord], root: Path) -> np.ndarray:
        """Features of records whose images lie below ``root``.

        Of a conversation the mean over its questions, and over its images (our definition); a record without an
        image has zeros in its image's place.

        Raises:
            DataError: an image is missing, unreadable or outside ``root``.
        """
        if kind == "text":
            return self._texts(records)
        names = [name for r in records for name in r.images]
        rows = self._images.get(root, names) if names else np.zeros((0, self.width("image")), dtype=np.float32)
        image = means(rows, [len(r.images) for r in records])
        return image if kind == "image" else joined(self._texts(records), image)

    def _texts(self, records: Sequence[Record | TestRecord]) -> np.ndarray:
        questions = [r.instructions for r in records]
        rows = self.text([question for asked in questions for question in asked])
        return means(rows, [len(asked) for asked in questions])

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
            parts = [hash_weights(tower), processor.to_json_string(), transformers.__version__]
            parts += [f"pictures: {self.pictures}"] if self.pictures != "official" else []  # older names stay
            mark = f"identity-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}"
        return ImageFeatures(mark, (self.width("image"),), self._pooled)

    @torch.no_grad()
    def _pooled(self, root: Path, images: Sequence[str]) -> np.ndarray:
        tower, processor = self._vision
        padded = pixels(processor, root, images, self.pictures).to(self.device)
        return tower(pixel_values=padded).pooler_output[: len(images)].float().cpu().numpy()
