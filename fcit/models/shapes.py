"""Sizes of a model without its weights, built from its config.json on torch's ``meta`` device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPTextModel,
    CLIPVisionModel,
)

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.decoding.sizes import widths
from fcit.models.families.base import AnySize, Family, families, family_for
from fcit.models.feature_store import BATCH
from fcit.models.identity import PUBLISHED
from fcit.models.places import locate

#: Beginning of :attr:`Shape.source` for a model on this machine.
HERE = "config.json of "


@dataclass(frozen=True)
class Tower:
    """A stack of transformer layers: parameters, layers, width, tokens it sees of an image, images at a time."""

    parameters: int
    layers: int
    width: int
    tokens: int
    together: int


@dataclass(frozen=True)
class Shape:
    """Everything an estimate needs to know of a model; numbers of parameters, widths and tokens."""

    source: str  # origin of these sizes
    language: int  # parameters of the language model, embeddings and head included
    linear: int  # of those, in linear layers except the head: what 4-bit quantisation shrinks
    head: int  # of those, in the output layer
    layers: int
    width: int
    inner: int  # width inside a feed-forward block
    heads: int
    query_width: int  # of queries, and of what attention makes of values, of one token
    key_width: int  # of keys, and of values, of one token
    normed: int  # numbers of one token that the norms of a layer take, all of them together
    vocabulary: int
    projector: int
    projector_inner: int
    vision: Tower
    image_tokens: int  # in a prompt
    image_words: int  # that the projector makes of an image: as many, or those that are left out and joined as well
    feature_width: int  # of one of these, before the projector
    adapted: tuple[tuple[int, int], ...]  # (in, out) of every layer with an adapter
    identity_text: int
    identity_vision: int
    identity_width: int  # of a text feature

    def adapter(self, rank: int) -> int:
        """Parameters of one subspace: rank (in + out) for every adapted layer."""
        return sum(rank * (a + b) for a, b in self.adapted)

    def products(self, rank: int) -> int:
        """Numbers of factored products of so large a rank, or of a layer's full rank where that is smaller."""
        return sum(min(rank, a, b) * (a + b) for a, b in self.adapted)


def shape_of(backbone: configuration.Backbone, targets: str) -> Shape:
    """Sizes of the model that a configuration names, with adapters on the layers that ``targets`` matches.

    Raises:
        ConfigError: it is neither here nor published in its family, its family is not supported, or ``targets`` fits
            no layer.
    """
    name, identity = locate(backbone.model, backbone.identity)
    config, source = _config(name, "backbone.model")
    family = family_for(config.model_type, backbone).of(config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return measure(model, family, backbone, targets, source, _identity(identity))


def _config(name: str, key: str) -> tuple[Any, str]:
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
        return config, f"{HERE}{name}"
    except (OSError, ValueError):
        published = {hub: make for family in families().values() for hub, make in family.published.items()}
        for hub, make in published.items():
            if Path(name).name == Path(hub).name:
                return make(), f"known values of {hub}"
    raise ConfigError(
        f"{key}: {name!r} is not on this machine and its sizes are not known (known: {', '.join(published)}); "
        f"download it first (hf download {name}), or name its folder"
    )


def _identity(name: str) -> tuple[int, int, int]:
    """Parameters of a CLIP's text and vision tower, and the length of a text feature."""
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
        text, vision = config.text_config, config.vision_config
    except (OSError, ValueError, AttributeError):
        known = next((towers for hub, towers in PUBLISHED.items() if Path(name).name == Path(hub).name), None)
        if known is None:
            raise ConfigError(
                f"backbone.identity: {name!r} is not a whole CLIP on this machine; download it first "
                f"(hf download {name}), or name its folder (known: {', '.join(PUBLISHED)})"
            ) from None
        text, vision = (make() for make in known)
    with torch.device("meta"):
        return _size(CLIPTextModel(text)), _size(CLIPVisionModel(vision)), int(text.hidden_size)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _normed(model: Any, adapted: str, heads: Mapping[str, int]) -> int | None:
    """Numbers of one token that the norms of a decoder layer take, all of them together; None if it is not found.

    Args:
        adapted: name of a linear layer inside.
        heads: widths of norms that have a weight for one head and are over all of them, by name.
    """
    layer = re.match(r".*?\blayers\.\d+", adapted)
    if layer is None:
        return None
    modules = {n.rpartition(".")[2]: m for n, m in model.get_submodule(layer.group()).named_modules()}
    norms = {n: m for n, m in modules.items() if type(m).__name__.endswith("Norm")}
    return sum(heads.get(name, norm.weight.numel()) for name, norm in norms.items()) or None


def measure(
    model: Any,
    family: type[Family],
    settings: configuration.Backbone,
    targets: str,
    source: str,
    identity: tuple[int, int, int],
) -> Shape:
    """Sizes of a built model; its weights are not used."""
    text, vision = model.config.get_text_config(), family.sizes(model.config, settings)
    tower, projector = family.modules(model)
    outside = {id(p) for p in (*tower.parameters(), *projector.parameters())}
    language = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    frozen = {id(p) for p in projector.parameters()}
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    chosen = [n for n in linears if re.fullmatch(targets, n)]
    if not chosen:
        raise ConfigError(
            f"adapter.targets: {targets!r} matches none of the {len(linears)} linear layers; the language model of "
            f"this family is called {family.language_name!r}"
        )
    inner = [m for m in projector.modules() if isinstance(m, nn.Linear)]
    inside = widths(text, 0)
    queries = text.num_attention_heads * inside.key_width // text.num_key_value_heads
    head = model.get_output_embeddings()
    return Shape(
        source=source,
        language=language,
        linear=sum(_size(m) for n, m in linears.items() if id(m.weight) not in outside and m is not head),
        head=head.weight.numel(),
        layers=inside.layers,
        width=inside.width,
        inner=inside.inner,
        heads=text.num_attention_heads,
        query_width=queries,
        key_width=inside.key_width,
        normed=_normed(model, chosen[0], {"q_norm": queries, "k_norm": inside.key_width}) or 2 * inside.width,
        vocabulary=text.vocab_size,
        projector=_size(projector),
        projector_inner=inner[0].out_features if inner else 0,
        vision=Tower(
            sum(p.numel() for p in tower.parameters() if id(p) not in frozen),
            vision.layers,
            vision.width,
            vision.patches,
            1 if issubclass(family, AnySize) and settings.image_size == "native" else BATCH,
        ),
        image_tokens=vision.tokens,
        image_words=vision.tokens if vision.words is None else vision.words,
        feature_width=vision.feature_width,
        adapted=tuple((linears[n].in_features, linears[n].out_features) for n in chosen),
        identity_text=identity[0],
        identity_vision=identity[1],
        identity_width=identity[2],
    )
