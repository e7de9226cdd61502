"""What a family of multimodal models is: how an image becomes frozen features, and features become words.

Everything else a run needs (attention, LoRA, cross-entropy, greedy decoding) is the same for all of them. A
family states, in one file, everything that is particular to it:

* the names of its frozen vision tower and of its trainable projector;
* which pixels the tower sees, and what of its output is kept (before the projector, which is trained);
* how many placeholder tokens an image has in a prompt, and the position of every token: the same number for every
  image (:class:`Family`), or one that follows from its size (:class:`AnySize`);
* its sizes before anything is loaded, which ``fcit doctor --config`` estimates memory from.

A new family is one file beside this one and one line in :data:`fcit.registry.MODELS`, by its ``model_type``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import nn

from fcit import config as configuration
from fcit import registry
from fcit.data.collate import parted
from fcit.data.images.sizes import ImageSizes
from fcit.errors import ConfigError
from fcit.models.features import processed, square
from fcit.models.hooks import as_factor
from fcit.models.patches import Grid

if TYPE_CHECKING:
    from fcit.models.families.small import Small


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of a vision tower and of what is kept of its output, all known from config.json."""

    layers: int
    width: int  # of the tower's states
    patches: int  # tokens that the tower sees
    tokens: int  # placeholders of an image in a prompt
    feature_width: int  # of one word's features, before the projector
    words: int | None = None  # that the projector makes of an image, if they are not its placeholders


class Family(ABC):
    """One loaded model seen through what is particular to its family.

    Args:
        base: the Hugging Face model, without or with adapters inside.
        processor: its image processor, or with :attr:`whole` its processor.
        settings: ``pad_to_square`` and ``image_size`` determine which pixels are seen.
    """

    #: One line for ``fcit list``.
    summary: ClassVar[str]
    #: A model of this family on the hub, for messages.
    example: ClassVar[str]
    #: Module names (the last part of the dotted name) of the projector and of the vision tower.
    projector: ClassVar[str]
    vision: ClassVar[str]
    #: Name of the language model's module in ``base.model``.
    language_name: ClassVar[str] = "language_model"
    #: Whether its processor can be loaded; that of a model of videos needs torchvision, and its tokenizer suffices.
    processed: ClassVar[bool] = True
    #: Whether :attr:`processor` is the processor of texts and images as a whole, and not that of images alone.
    whole: ClassVar[bool] = False
    #: Published configurations by hub name, so that an estimate needs no download.
    published: ClassVar[Mapping[str, Callable[[], Any]]] = {}
    #: Part of a tensor name that only files in another layout contain -> what to do about such files.
    other_layouts: ClassVar[Mapping[str, str]] = {}

    def __init__(self, base: Any, processor: Any, settings: configuration.Backbone) -> None:
        self.base, self.processor, self.settings = base, processor, settings

    # ------------------------------------------------------------------ before loading

    @classmethod
    def problem(cls, name: str, raw: Mapping[str, Any]) -> str | None:
        """Why a model whose config.json holds ``raw`` is one of this family in a layout that cannot be read.

        Args:
            name: the model as the configuration names it.

        Returns:
            One sentence that ends with what to do; None if the model is not affected.
        """
        return None

    @classmethod
    def of(cls, config: Any) -> type[Family]:
        """The family for a model of this configuration.

        Raises:
            ConfigError: it is none of this family.
        """
        return cls

    @classmethod
    @abstractmethod
    def sizes(cls, config: Any, settings: configuration.Backbone) -> VisionSizes:
        """Sizes by the model's configuration and the settings alone."""

    @classmethod
    def outside(cls) -> Mapping[str, str]:
        """Names of the modules beside the language model, and what each is."""
        return {cls.vision: "vision tower", cls.projector: "projector"}

    @classmethod
    def modules(cls, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Vision tower and projector of a whole model.

        Raises:
            ConfigError: it has no module, or several, of these names.
        """
        return module_called(model, cls.vision), module_called(model, cls.projector)

    @classmethod
    def part(cls, tensor: str) -> str:
        """The part of the model that a tensor belongs to, for messages."""
        modules = tensor.split(".")
        for name, part in cls.outside().items():
            if name in modules:
                return part
        return "output layer (lm_head)" if "lm_head" in modules else "language model"

    @classmethod
    def small(cls) -> Small:
        """How a small model of this family with random weights is made, which ``fcit check family`` tries it on.

        Raises:
            ConfigError: the family does not say.
        """
        raise ConfigError(
            f"family: {cls.__name__} names no small model to be checked on; define small() (docs/own-family.md)"
        )

    def verify(self) -> None:  # noqa: B027  (most have nothing to check)
        """Checks of a loaded model that need its weights; of a family that is known beforehand there are none.

        Raises:
            ConfigError: the model is none of this family.
        """

    # ------------------------------------------------------------------ vision

    @property
    @abstractmethod
    def tower(self) -> Any:
        """The frozen vision tower, the module called :attr:`vision`."""

    @property
    def language(self) -> Any:
        """The language model without its output layer."""
        return getattr(self.base.model, self.language_name)

    @property
    def layers(self) -> list[Any]:
        """The decoder layers of the language model, all of one kind, which training may compile; none: it does not."""
        return list(getattr(self.language, "layers", ()))

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Placeholders of an image in a prompt."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's frozen features ``(tokens, ...)``."""

    @property
    def view(self) -> str:
        """Names how images are prepared beyond their processor; part of the name of cached features."""
        return "square" if self.settings.pad_to_square else ""

    @property
    def image_processor(self) -> Any:
        """That of images alone."""
        return self.processor.image_processor if self.whole else self.processor

    def prepared(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Images as the processor is to see them."""
        if not self.settings.pad_to_square:
            return list(images)
        return [square(image, self.image_processor.image_mean) for image in images]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """One image as the tower sees it; called in several threads at once."""
        return processed(self.image_processor, self.prepared([image]))[0]

    @abstractmethod
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Frozen features ``(B, *shape)`` of a batch of :meth:`pixels`, in the tower's number format."""

    @abstractmethod
    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Features ``(N, *shape)`` through the projector: ``(N, tokens, width of words)``."""

    # ------------------------------------------------------------------ language

    def tag(self, placeholder: str) -> str:
        """What a chat template writes in the place of an image; here a placeholder token."""
        return placeholder

    def spelt(self, placeholder: str) -> str:
        """What stands in the place of an image's tag in a prompt: as many placeholders as it has, and texts around."""
        return placeholder * self.tokens

    @abstractmethod
    def positions(self, mask: torch.Tensor, pictured: torch.Tensor) -> torch.Tensor:
        """Position ids of rows, whose padding comes first or last.

        Args:
            mask: ``(B, L)``, 1 where there is a token.
            pictured: ``(B, L)`` bool, where the placeholders of the row's images are.
        """

    def generation(self, mask: torch.Tensor, pictured: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arguments ``generate`` needs beside embeddings and mask."""
        return {}

    def beside(self, rows: torch.Tensor, pictured: torch.Tensor, mask: torch.Tensor) -> AbstractContextManager[object]:
        """Inside, the language model gets what it needs of images beside their words; here that is nothing.

        Args:
            rows: features of all images of a batch, as :meth:`project` or :meth:`AnySize.join` takes them.
            pictured: ``(B, L)`` bool, where their placeholders are.
            mask: ``(B, L)``, 1 where there is a token.
        """
        return nullcontext()

    @staticmethod
    def _as_parameters(module: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """Features in the number format of a module: float32 for a trained projector, unless autocast multiplies."""
        return as_factor(features, next(module.parameters()))


class AnySize(Family):
    """A family whose images keep their own size: how many tokens one has follows from its width and height alone.

    ``tokens`` and ``features`` are not used; ``shape`` is that of one row of an image's frozen features.
    """

    #: Width and height in pixels of the image that stands for all others where none is known (ours: that of COCO).
    typical: ClassVar[tuple[int, int]] = (640, 480)

    @abstractmethod
    def grid(self, width: int, height: int) -> Grid:
        """How the tower divides an image of this size in pixels; needs no weights.

        Raises:
            DataError: the model takes no image of this shape.
        """

    @abstractmethod
    def count(self, grid: Grid) -> int:
        """Placeholders of an image in a prompt."""

    def placeholders(self, grid: Grid, tag: str) -> str:
        """What stands in the place of an image's tag in a prompt: ``count`` tags, and texts between them."""
        return tag * self.count(grid)

    def pixels(self, image: Image.Image) -> Any:
        """What :meth:`rows` takes of one image; called in several threads at once."""
        return super().pixels(image)

    @abstractmethod
    def kept(self, grid: Grid) -> int:
        """Rows of an image's frozen features."""

    @abstractmethod
    def rows(self, pixels: Any, grid: Grid) -> torch.Tensor:
        """Frozen features ``(n, *shape)`` of one image's :meth:`pixels`, in the tower's number format."""

    @abstractmethod
    def join(self, rows: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """Features ``(R, *shape)`` of images one after the other through the projector.

        Returns:
            ``(W, width of words)``: the words of all images, in the order of their placeholders.
        """

    @abstractmethod
    def projected(self, grid: Grid) -> int:
        """Of what the projector returns for several images, the first dimension that belongs to one of this grid."""

    @abstractmethod
    def positions(
        self, mask: torch.Tensor, pictured: torch.Tensor, grids: Sequence[Grid] | None = None
    ) -> torch.Tensor:
        """As :meth:`Family.positions`; ``grids`` of the images in the order of their placeholders."""

    def generation(
        self, mask: torch.Tensor, pictured: torch.Tensor, grids: Sequence[Grid] | None = None
    ) -> dict[str, torch.Tensor]:
        return {}

    def grid_of(self, image: str, sizes: ImageSizes | None) -> Grid:
        """The grid of an image under the name by which it is shown (:func:`fcit.data.collate.as_shown`).

        Args:
            sizes: of the images; None: it is a :attr:`typical` one.

        Raises:
            DataError: its size cannot be read, or as :meth:`grid`.
        """
        path, several = parted(image)
        family = self.among if several else self
        width, height = self.typical if sizes is None else sizes.of(path)
        return family.grid(*family.seen(width, height))

    @property
    def among(self) -> AnySize:
        """This family as it sees an image that is one of several of a conversation: most see it as one alone.

        It has the same weights, ``shape``, ``count``, ``kept``, ``join`` and ``projected``: those of its grids.
        """
        return self

    @property
    def native(self) -> bool:
        """Whether images keep their size; False: ``backbone.image_size`` gives all of them one."""
        return self.settings.image_size == "native"

    def seen(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image as the processor is to see it."""
        side = max(width, height)
        return (side, side) if self.settings.pad_to_square else (width, height)

    @property
    def tokens(self) -> int:
        """Of a :attr:`typical` image."""
        return self.count(self.grid(*self.seen(*self.typical)))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """For a family that also scales images to squares; others refuse.

        Raises:
            ConfigError: this one does not.
        """
        raise self._no_squares

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """As :meth:`features`."""
        raise self._no_squares

    @property
    def _no_squares(self) -> ConfigError:
        return ConfigError(
            f"backbone.image_size: {self.settings.image_size}: {type(self).__name__} sees images at their own size "
            "only; set backbone.image_size: native"
        )


def families() -> dict[str, type[Family]]:
    """Every registered family by its ``model_type``."""
    return {kind: registry.resolve("model", kind) for kind in registry.MODELS}


def family_for(kind: str | None, settings: configuration.Backbone) -> type[Family]:
    """The family of models of a ``model_type``, or the one that ``backbone.family`` names.

    Raises:
        ConfigError: none is registered for it, or what is named is none.
    """
    if settings.family != "auto":
        named: type[Family] = registry.resolve("model", settings.family)
        return named
    known = families()
    if kind in known:
        return known[kind]
    examples = " or ".join(family.example for family in known.values())
    raise ConfigError(
        f"backbone.model: {settings.model!r} is a {kind or 'model without model_type'}; supported are "
        f"{', '.join(sorted(known))}, e.g. {examples}; for another model of images and text set "
        "backbone.family: generic, which is tried at the start"
    )


def module_called(model: nn.Module, name: str) -> Any:
    """The one module whose dotted name ends with ``name``.

    Raises:
        ConfigError: there is none, or there are several: the family and the model do not fit together.
    """
    matches = {path: module for path, module in model.named_modules() if path.rpartition(".")[2] == name}
    if len(matches) != 1:
        found = ", ".join(matches)
        raise ConfigError(
            f"backbone.model: {type(model).__name__} has {len(matches)} modules called {name!r} instead of one"
            f"{f' ({found})' if found else ''}; correct the names in its family (fcit/models/families)"
        )
    return next(iter(matches.values()))
