"""Any model whose processor and ``get_image_features`` do the work, tried at the start against its own forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AyaVisionConfig,
    AyaVisionProcessor,
    GotOcr2ImageProcessorPil,
)

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.families.base import AnySize, Family, VisionSizes
from fcit.models.families.small import TEXT, VISION, Small
from fcit.models.patches import Grid
from fcit.models.places import locate

#: Differences from the model's own logits, as a share of the largest, above which it is another model (our choice):
#: in float32 and in numbers of 16 bits.
_FLOAT, _HALF = 1e-3, 5e-2
#: Width and height of the images that are tried, and how many of the last logits are compared.
_TRIED, _LAST = ((96, 64), (64, 160)), 8
_INSTEAD = "it needs a family of its own (docs/own-family.md)"


class Generic(AnySize):
    """Images as the model's own processor prepares them, features as its own ``get_image_features`` returns them.

    Kept are the words of an image, behind the projector, which is therefore frozen. How many there are, and what stands
    around them, is what the processor writes for a blank image of this size: ``_get_num_multimodal_tokens`` of
    transformers' processors counts marks at the ends of rows and around images as well, which are no placeholders. An
    image's grid is its width and height.

    Nothing is known of the language model, so :meth:`verify` compares two images and a text with the whole model's own
    forward. What enters the language model beside embeddings (positions of several rows, features at several depths,
    attention to what follows) makes a difference there and is refused.
    """

    summary = "any other model, by its own processor and `get_image_features`; projector frozen"
    example = "llava-hf/vip-llava-7b-hf"
    projector = vision = ""
    whole = True
    #: Names of the modules beside the language model, set by :meth:`of`.
    others: ClassVar[tuple[str, ...]] = ()
    #: What its ``get_image_features`` takes, likewise.
    wanted: ClassVar[tuple[str, ...]] = ()

    def __init__(self, base: Any, processor: Any, settings: configuration.Backbone) -> None:
        super().__init__(base, processor, settings)
        for key in ("min_pixels", "max_pixels"):
            if getattr(settings, key) is not None:
                raise ConfigError(
                    f"backbone.{key}: {getattr(settings, key):,}, but with backbone.family: generic images have the "
                    "size that the model's own processor gives them; remove it"
                )
        if not self.native:
            raise self._no_squares
        for part in ("image_token", "tokenizer", "image_processor"):
            if getattr(processor, part, None) is None:
                raise _unfit(settings, f"its processor ({type(processor).__name__}) has no {part}")
        self._text = lru_cache(maxsize=1024)(self._written)

    @classmethod
    def of(cls, config: Any) -> type[Family]:
        """This family with the names that the parts of a model have."""
        where = SimpleNamespace(model=config.name_or_path or config.model_type)
        build = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
        if build is None:
            raise _unfit(where, f"{config.model_type} is no model of images and text")
        if config.is_encoder_decoder:
            raise _unfit(where, "it has an encoder of texts")
        if getattr(config, "image_token_id", None) is None:
            raise _unfit(where, "its config.json names no image_token_id")
        with torch.device("meta"):
            model = build(config)
        inner: Any = getattr(model, "model", None)
        if not hasattr(inner, "get_image_features"):
            raise _unfit(where, f"{type(model).__name__} has no get_image_features")
        language = inner.get_decoder()
        named = dict(inner.named_children())
        name = next((name for name, module in named.items() if module is language), None)
        if name is None:
            raise _unfit(where, f"its language model is no module of its own in {type(inner).__name__}")
        others, wanted = (
            (other for other in named if other != name),
            inspect.signature(inner.get_image_features).parameters,
        )
        members = {"language_name": name, "others": tuple(others), "wanted": tuple(wanted), "__doc__": cls.__doc__}
        return type(cls.__name__, (cls,), members)

    @classmethod
    def outside(cls) -> Mapping[str, str]:
        return dict.fromkeys(cls.others, "vision tower")

    @classmethod
    def modules(cls, model: Any) -> tuple[nn.Module, nn.Module]:
        return _container(model.model, cls.others), nn.Module()

    @classmethod
    def sizes(cls, config: Any, settings: configuration.Backbone) -> VisionSizes:
        source, _ = locate(settings.model, settings.identity)
        processor = AutoProcessor.from_pretrained(source)
        processor.image_processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        family = cls(SimpleNamespace(config=config), processor, settings)
        vision, tokens = config.vision_config, family.tokens
        pixels = family.pixels(Image.new("RGB", family.seen(*cls.typical)))["pixel_values"]
        patch, layers = (getattr(vision, name, None) for name in ("patch_size", "num_hidden_layers"))
        return VisionSizes(
            layers=layers if isinstance(layers, int) else 1,
            width=getattr(vision, "hidden_size", config.get_text_config().hidden_size),
            patches=pixels.numel() // (3 * patch**2) if isinstance(patch, int) else tokens,
            tokens=tokens,
            feature_width=config.get_text_config().hidden_size,
        )

    @classmethod
    def small(cls) -> Small:
        """An Aya Vision: tiles with marks between them, layers with a window and without."""

        def make(vocabulary: int, ids: Mapping[str, int]) -> Any:
            text = {"model_type": "cohere2", "vocab_size": vocabulary, "eos_token_id": ids["<|im_end|>"], **TEXT}
            window = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
            config = AyaVisionConfig(
                vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
                text_config={**text, **window},
                image_token_index=ids["<|IMG_PATCH|>"],
                downsample_factor=2,
            )
            return AutoModelForImageTextToText.from_config(config)

        def whole(processor: Any, tokenizer: Any, template: str) -> Any:
            return AyaVisionProcessor(
                processor, tokenizer, patch_size=8, img_size=32, downsample_factor=2, chat_template=template
            )

        tiles = (f"TILE_{number}" for number in range(1, 7))
        return Small(
            make,
            special=("<|IMG_PATCH|>", "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_GLOBAL", *tiles),
            image="<image>",
            processor=lambda: GotOcr2ImageProcessorPil(
                size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=6
            ),
            whole=whole,
            inputs=pictured,
        )

    # ------------------------------------------------------------------ vision

    @property
    def tower(self) -> Any:
        return _container(self.base.model, self.others)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.base.config.get_text_config().hidden_size,)

    @property
    def view(self) -> str:
        return f"{super().view}generic"

    def grid(self, width: int, height: int) -> Grid:
        return width, height

    def tag(self, placeholder: str) -> str:
        tag: str = self.processor.image_token
        return tag

    def placeholders(self, grid: Grid, tag: str) -> str:
        return self._text(*grid)

    @cached_property
    def _placeholder(self) -> str:
        text: str = self.processor.tokenizer.convert_ids_to_tokens(self.base.config.image_token_id)
        return text

    def _written(self, width: int, height: int) -> str:
        """What the processor puts in the place of an image of this size."""
        image = Image.new("RGB", (width, height))
        with self._explained("its processor takes no image beside a text"):
            made = self.processor(
                text=[self.processor.image_token],
                images=[image],
                images_kwargs={"return_tensors": "pt"},
                return_text_replacement_offsets=True,
            )
        if "text_replacement_offsets" not in made:
            raise _unfit(self.settings, "its processor does not say what it writes for an image")
        [[replaced]] = made["text_replacement_offsets"]
        text: str = replaced["replacement"]
        return text

    def count(self, grid: Grid) -> int:
        return self._text(*grid).count(self._placeholder)

    kept = projected = count

    def pixels(self, image: Image.Image) -> Any:
        """What ``get_image_features`` takes of what the processor makes."""
        made = self.processor(images=self.prepared([image]), return_tensors="pt")
        return {name: made[name] for name in self.wanted if name in made}

    @torch.no_grad()
    def rows(self, pixels: Any, grid: Grid) -> torch.Tensor:
        place = self.base.get_input_embeddings().weight
        given = {n: x.to(place.device, place.dtype if x.is_floating_point() else x.dtype) for n, x in pixels.items()}
        output = self.base.model.get_image_features(**given)
        words = getattr(output, "pooler_output", output)
        parts = words if isinstance(words, list | tuple) else [words]
        rows = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
        if len(rows) != self.count(grid):
            raise _unfit(
                self.settings,
                f"get_image_features returns {len(rows)} words of an image of {grid[0]} x {grid[1]} pixels, and its "
                f"processor writes {self.count(grid)} placeholders",
            )
        return rows

    def join(self, rows: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        return rows

    # ------------------------------------------------------------------ language

    def positions(
        self, mask: torch.Tensor, pictured: torch.Tensor, grids: Sequence[Grid] | None = None
    ) -> torch.Tensor:
        return (mask.cumsum(-1) - 1).clamp(min=0)

    # ------------------------------------------------------------------ at the start

    @torch.no_grad()
    def verify(self) -> None:
        """Compare words and logits with those of the whole model's own forward, with two images and a text.

        Raises:
            ConfigError: they are not the same, or the model cannot be called in this way.
        """
        rng, tag = np.random.default_rng(0), self.tag(self._placeholder)
        noise = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in _TRIED]
        images, sizes = self.prepared(noise), [self.seen(*size) for size in _TRIED]
        before, between, after = "What is this? ", " And what is that? ", " Answer with one word."
        written = [self.placeholders(size, tag) for size in sizes]
        with self._explained("the whole model cannot be called with what its processor makes"):
            given = self.processor(text=[f"{before}{tag}{between}{tag}{after}"], images=images, return_tensors="pt")
            given = {n: x.to(self.base.device) for n, x in given.items() if isinstance(x, torch.Tensor)}
            given.pop("labels", None)
            whole = self.base(**given, use_cache=False).logits[0, -_LAST:].float()
        ids = given["input_ids"]
        text = f"{before}{written[0]}{between}{written[1]}{after}"
        own = self.processor.tokenizer(text, return_tensors="pt").input_ids.to(ids)
        if not torch.equal(own, ids):
            raise _unfit(self.settings, "its processor changes the text around images")
        with self._explained("its language model cannot be called with embeddings alone"):
            words = torch.cat([self.rows(self.pixels(image), size) for image, size in zip(images, sizes, strict=True)])
            pictured, embeds = ids == self.base.config.image_token_id, self.base.get_input_embeddings()(ids)
            mask = torch.ones_like(ids)
            found = self.base(
                inputs_embeds=embeds.masked_scatter(pictured[..., None], words.to(embeds)),
                attention_mask=mask,
                position_ids=self.positions(mask, pictured),
                logits_to_keep=torch.arange(ids.shape[1] - _LAST, ids.shape[1], device=ids.device),
                use_cache=False,
            ).logits[0]
        if found.shape != whole.shape:
            raise _unfit(self.settings, "its forward does not take logits_to_keep")
        share = float((found.float() - whole).abs().max() / whole.abs().max())
        if not share <= (_FLOAT if found.dtype == torch.float32 else _HALF):
            raise _unfit(
                self.settings,
                f"its own forward gives logits that differ by {share:.1%} of the largest: its language model takes "
                "more than the embeddings of texts and images",
            )

    @contextmanager
    def _explained(self, why: str) -> Iterator[None]:
        """Turn errors of a model's own code into a sentence; errors of memory are passed on."""
        try:
            yield
        except (ConfigError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of whatever kind: the code is that of any model
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise _unfit(self.settings, f"{why} ({type(error).__name__}: {reason})") from error


def pictured(backbone: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """What a model's whole processor makes of images, for the whole model."""
    made = backbone.family.processor(images=list(images), return_tensors="pt")
    return {name: made[name] for name in backbone.family.wanted if name in made}


def _unfit(settings: Any, why: str) -> ConfigError:
    return ConfigError(f"backbone.family: generic, but {settings.model!r} does not fit: {why}; {_INSTEAD}")


def _container(inner: nn.Module, names: Sequence[str]) -> nn.Module:
    """Modules by name, and the parameters that belong to none, as one."""
    together = nn.Module()
    for name in names:
        together.add_module(name, getattr(inner, name))
    for name, parameter in inner.named_parameters(recurse=False):
        together.register_parameter(name, parameter)
    return together
