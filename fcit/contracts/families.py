"""The contract of model families, checked on a small model by ``fcit check family`` and by the tests.

A small model with random weights of the real classes (:meth:`fcit.models.families.base.Family.small`) is loaded by FCIT
and by transformers alone, and both are asked the same: two turns about one image, none and two, of odd aspect ratios.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fcit import registry
from fcit.config import Adapter
from fcit.config import Backbone as Settings
from fcit.contracts.toy import require
from fcit.data.collate import IGNORE, Encoded, images_of
from fcit.data.records import Record, TestRecord, Turn
from fcit.models import plain
from fcit.models.adapters import Adapters
from fcit.models.backbone import TINY, Backbone
from fcit.models.compiling import CompiledLayers
from fcit.models.families.base import AnySize, Family
from fcit.models.families.small import Small, save
from fcit.models.layout import is_factor, is_projector
from fcit.models.patches import Features
from fcit.models.saving import save_peft
from fcit.models.shapes import shape_of

#: Width and height: landscape, portrait, both odd, a strip, a square.
SIZES = [(57, 30), (24, 61), (151, 91), (29, 200), (40, 40)]
#: Largest difference of logits, in float32.
CLOSE = 1e-4


def conversation(*images: str) -> Record:
    """Two turns; all images belong to the first."""
    return Record(images, (Turn("How many?", "3", len(images)), Turn("Name it.", "red cup", 0)))


#: One image, none, two, a portrait.
RECORDS = [conversation("2.png"), conversation(), conversation("3.png", "0.png"), conversation("1.png")]


class FamilyCase:
    """A small model of a family, loaded by FCIT and by transformers.

    Args:
        name: a registered family, or ``./file.py:Name``.
        folder: for the model and images.
        small: how the model is made; default: as the family says.
    """

    def __init__(self, name: str, folder: Path, small: Small | None = None) -> None:
        self.name, self.root = name, folder / "images"
        self.family: type[Family] = registry.resolve("model", name)
        self.small = self.family.small() if small is None else small
        self.folder, self.adapters = save(folder / "model", self.small), folder / "adapters"
        draw(self.root)
        self.backbone = self.fresh()
        self.whole = plain.whole(self.folder)
        self.adapter = Adapter(dropout=0, targets=self.small.targets, projector=self.policies[0])
        encoder = self.backbone.encoder_below(self.root)
        self.examples = [encoder.encode(record) for record in RECORDS]
        asked = [record.images for record in RECORDS]
        self.questions = [encoder.encode(TestRecord(str(n), i, "Name it.", "")) for n, i in enumerate(asked)]
        self.features = self.backbone.vision_features(self.root, images_of(self.examples))

    @property
    def policies(self) -> list[Any]:
        """``adapter.projector`` that the family has."""
        return ["shared", "per_subspace"] if self.family.projector else ["frozen"]

    @property
    def layers(self) -> int:
        """Of the language model."""
        return int(self.whole.config.get_text_config().num_hidden_layers)

    def settings(self, **options: Any) -> Settings:
        """The configuration of the small model."""
        named = registry.is_own(self.name) or self.name == "generic"
        own = {"family": self.name if named else "auto", "feature_cache": "off", **self.small.options}
        return Settings(model=self.folder, identity=str(TINY / "clip"), **{**own, **options})

    def fresh(self, **options: Any) -> Backbone:
        """The model loaded once more."""
        return Backbone(self.settings(**options))

    def adapted(self, seed: int, **changes: Any) -> tuple[Backbone, Adapters]:
        """A model with adapters of random values, the projector's included."""
        backbone = self.fresh()
        adapters = Adapters(backbone, self.adapter.model_copy(update=changes))
        adapters.load(moved(adapters, seed))
        return backbone, adapters

    @property
    def prefix(self) -> torch.Tensor:
        """Two soft prompts for each conversation."""
        return torch.from_numpy(self.backbone.word_embeddings[:8].reshape(4, 2, -1).copy())

    def opened(self, *images: str) -> list[Image.Image]:
        """Images as RGB."""
        return [Image.open(self.root / image).convert("RGB") for image in images]

    def inputs(self, example: Encoded) -> dict[str, torch.Tensor]:
        """What transformers' own forward takes of one conversation."""
        tokens = torch.tensor([example.tokens])
        if not example.images:
            return {"input_ids": tokens}
        given = {"input_ids": tokens, **self.small.inputs(self.backbone, self.opened(*example.images))}
        if self.small.types:
            given[self.small.types] = (tokens == self.whole.config.image_token_id).int()
        return given

    def own(self, n: int) -> tuple[list[Encoded], Features]:
        """One example with its images' features."""
        ends = np.cumsum([0, *(len(e.images) for e in self.examples)])
        return [self.examples[n]], self.features[slice(ends[n], ends[n + 1])]

    @torch.no_grad()
    def expected(self, model: Any) -> torch.Tensor:
        """Logits of a whole model before the learnt tokens, conversation by conversation from pixels."""
        wanted = []
        for example in self.examples:
            out = model(**self.inputs(example)).logits[0]
            wanted += [out[start - 1 : end - 1] for start, end in example.answers]
        return torch.cat(wanted)

    @cached_property
    def wanted(self) -> torch.Tensor:
        """The same of the small model."""
        return self.expected(self.whole)

    def generated(self, n: int) -> str:
        """The answer of transformers' own generate to question ``n``, from pixels."""
        question = self.questions[n]
        given = self.inputs(question)
        mask = torch.ones_like(given["input_ids"])
        with torch.no_grad():
            out = self.whole.generate(
                **given, attention_mask=mask, max_new_tokens=8, do_sample=False, repetition_penalty=1.0
            )
        return self.backbone.tokenizer.decode(out[0, len(question.tokens) :], skip_special_tokens=True).strip()

    @cached_property
    def _untrained(self) -> tuple[Backbone, Adapters]:
        backbone = self.fresh()
        return backbone, Adapters(backbone, self.adapter)  # which add nothing yet

    def projector_gradients(self, n: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Of the loss of one conversation by the projector's parameters: ours, and those of the whole model."""
        backbone, adapters = self._untrained
        name = f".{backbone.family.projector}."
        own = {n.rpartition(name)[2]: p for n, p in adapters.trainable.items() if name in n}
        with adapters.training():
            found = torch.autograd.grad(backbone.loss(*self.own(n)), list(own.values()))
        whole = {n.rpartition(name)[2]: p for n, p in self.whole.named_parameters() if name in n}
        labels = torch.full((1, len(self.examples[n].tokens)), IGNORE)
        for start, end in self.examples[n].answers:
            labels[0, start:end] = torch.tensor(self.examples[n].tokens[start:end])
        loss = self.whole(**self.inputs(self.examples[n]), labels=labels).loss
        wanted = torch.autograd.grad(loss, list(whole.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(own, found, strict=True)), dict(zip(whole, wanted, strict=True))


def draw(root: Path) -> None:
    """Images of all :data:`SIZES` in a new folder."""
    rng = np.random.default_rng(3)
    root.mkdir()
    for n, (width, height) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{n}.png")


def moved(adapters: Adapters, seed: int) -> dict[str, np.ndarray]:
    """Random values of everything that is trained."""
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, 0.1, p.shape).astype(np.float32) for n, p in adapters.trainable.items()}


@torch.no_grad()
def logits(
    backbone: Backbone, examples: list[Encoded], features: Features, prefix: torch.Tensor | None = None
) -> torch.Tensor:
    """Before learnt tokens."""
    return backbone.answer_logits(examples, features, prefix)[0]


@contextmanager
def traced(backbone: Backbone) -> Iterator[CompiledLayers]:
    """Decoder layers that are traced as if they were to be compiled, and run as they are; the body has to run them."""
    before, backbone.layers = backbone.layers, CompiledLayers(backbone.family.layers, "eager")
    try:
        yield backbone.layers
        require(backbone.layers.used and not backbone.layers.failed, "the decoder layers cannot be compiled")
    finally:
        backbone.layers = before


def close(found: torch.Tensor, wanted: torch.Tensor, what: str, most: float = CLOSE) -> None:
    """Raise :class:`AssertionError` if two tensors differ by more than ``most``."""
    require(found.shape == wanted.shape, f"{what}: {tuple(found.shape)} instead of {tuple(wanted.shape)}")
    difference = float((found - wanted).abs().max())
    require(difference <= most, f"{what} differ by {difference:.2g} from those of transformers (at most {most:g})")


# --------------------------------------------------------------------------- checks


def is_described(case: FamilyCase) -> None:
    """It has a summary for `fcit list` and an example for messages."""
    require(case.family.summary, "set `summary`, one line for `fcit list model`")
    require(case.family.example, "set `example`, a model of the family for messages")


def tokens_follow_from_the_size(case: FamilyCase) -> None:
    """An image has as many tokens as its size alone says: features, words behind the projector and placeholders."""
    family, rng = case.backbone.family, np.random.default_rng(5)
    if not isinstance(family, AnySize):
        pixels = family.pixels(case.opened("2.png")[0])[None]
        features = family.features(pixels)
        require(features.shape[1:] == family.shape, f"features of {tuple(features.shape[1:])}, shape is {family.shape}")
        words = family.project(features).shape[1]
        require(words == family.tokens, f"project returns {words} words, tokens is {family.tokens}")
        return
    for width, height in [*SIZES, *rng.integers(8, 300, (20, 2)).tolist()]:
        grid, size = family.grid(width, height), f"{width} x {height} pixels"
        rows = family.rows(family.pixels(Image.new("RGB", (width, height), (200, 30, 90))), grid)
        require(len(rows) == family.kept(grid), f"{size}: rows returns {len(rows)}, kept says {family.kept(grid)}")
        require(rows.shape[1:] == family.shape, f"rows of {tuple(rows.shape[1:])}, shape is {family.shape}")
        words = len(family.join(rows, [grid]))
        require(words == family.count(grid), f"{size}: join returns {words} words, count says {family.count(grid)}")


def pixels_are_those_of_the_processor(case: FamilyCase) -> None:
    """The tower sees the pixels that the model's own processor makes."""
    for n, size in enumerate(SIZES):
        [image] = case.opened(f"{n}.png")
        wanted, found = case.small.inputs(case.backbone, [image])["pixel_values"], case.backbone.family.pixels(image)
        found = found["pixel_values"] if isinstance(found, dict) else found
        same = found.numel() == wanted.numel() and torch.equal(found.reshape(wanted.shape), wanted)
        require(same, f"other pixels of an image of {size[0]} x {size[1]}")


def sizes_are_known_before_loading(case: FamilyCase) -> None:
    """`sizes` tells by the configuration alone what the loaded model has, for `fcit doctor --config`."""
    shape, family = shape_of(case.settings(), case.small.targets), case.backbone.family
    require(shape.image_tokens == family.tokens, f"sizes says {shape.image_tokens} tokens, there are {family.tokens}")
    kept = family.kept(family.grid(*family.typical)) if isinstance(family, AnySize) else 1
    numbers = kept * int(np.prod(family.shape))
    require(
        shape.image_words * shape.feature_width == numbers,
        f"sizes says {shape.image_words} x {shape.feature_width} numbers of an image, there are {numbers}",
    )


def loss_is_transformers_own(case: FamilyCase) -> None:
    """Logits of conversations padded to one batch are those of transformers' own forward from pixels."""
    close(logits(case.backbone, case.examples, case.features), case.wanted, "logits")


def texts_are_transformers_own(case: FamilyCase) -> None:
    """Greedy answers are those of transformers' own generate, by both decoders if that takes embeddings."""
    wanted = [case.generated(n) for n in range(len(case.questions))]
    for decoder in ("auto", "transformers") if case.backbone.answering.generates else ("auto",):
        with case.backbone.answering.by(decoder):
            texts = case.backbone.generate(case.questions, case.features, 8)
        require(texts == wanted, f"evaluation.decoder {decoder}: {texts} instead of {wanted}")


def compiled_records_are_the_same(case: FamilyCase) -> None:
    """Records through compiled decoder layers, whose padding comes last, give the same, behind soft prompts too."""
    backbone, prefix = case.backbone, case.prefix
    wanted = logits(backbone, case.examples, case.features, prefix)
    with traced(backbone) as layers, layers.installed(), layers.running():
        found = logits(backbone, case.examples, case.features)
        behind = logits(backbone, case.examples, case.features, prefix)
    close(found, case.wanted, "logits through compiled layers")
    close(behind, wanted, "logits behind soft prompts, through compiled layers,")


def compiled_answers_are_the_same(case: FamilyCase) -> None:
    """Answers through compiled decoder layers are the same."""
    answering, backbone = case.backbone.answering, case.backbone
    if answering.greedy is None:  # transformers decodes this model, uncompiled
        return
    wanted = backbone.generate(case.questions, case.features, 4)
    with traced(backbone), answering.compiled():
        texts = backbone.generate(case.questions, case.features, 4)
    require(texts == wanted, f"compiled: {texts} instead of {wanted}")


def prompts_move_images_along(case: FamilyCase) -> None:
    """Soft prompts in front of a padded batch move every image to where it is alone."""
    alone = [logits(case.backbone, *case.own(n), case.prefix[n : n + 1]) for n in range(4)]
    found = logits(case.backbone, case.examples, case.features, case.prefix)
    close(found, torch.cat(alone), "logits behind soft prompts")


def trained_and_loaded_by_peft(case: FamilyCase) -> None:
    """One step moves every tensor; what is saved gives the same logits when plain peft loads it."""
    for policy in case.policies:
        backbone, adapters = case.adapted(1, projector=policy)
        factors = [n for n in adapters.trainable if is_factor(n)]
        require(len(factors) == 2 * 3 * case.layers, f"{len(factors)} factors, of {case.layers} layers of the model")
        adapters.load(adapters.base_projector())
        before = adapters.read()
        with adapters.training() as parameters:
            optimizer = torch.optim.SGD(parameters, lr=0.5)
            backbone.loss(case.examples, case.features).backward()
            optimizer.step()
        trained = adapters.read()
        still = [n for n, t in trained.items() if np.array_equal(t, before[n])]
        require(not still, f"training does not move {still[:3]}")
        adapters.load_mixture([trained], {n: t for n, t in trained.items() if is_projector(n)})
        with adapters.mixed(np.ones((4, 1), np.float32)):
            found = logits(backbone, case.examples, case.features)
        saved = case.adapters / policy
        save_peft(saved, trained, adapters.adapter, case.settings())
        close(found, case.expected(plain.with_adapter(case.folder, saved)), f"logits of a {policy} projector")


def projector_learns(case: FamilyCase) -> None:
    """The projector's gradients are those of the whole model's loss, zero without an image."""
    for n, example in enumerate(case.examples if case.family.projector else ()):
        found, wanted = case.projector_gradients(n)
        require(found.keys() == wanted.keys(), f"trains {sorted(found)}, the model has {sorted(wanted)}")
        for name, gradient in wanted.items():
            require(bool(gradient.any()) == bool(example.images), f"{name}: no gradient of a conversation with images")
            close(found[name], gradient, f"gradients of {name}", 1e-6 + 1e-3 * float(gradient.abs().max()))


def batches_are_sums(case: FamilyCase) -> None:
    """The gradients of a padded batch are the sums of its records', and checkpointing changes none."""
    backbone, adapters = case.adapted(4)
    learnt = [example.learnt for example in case.examples]
    with adapters.training() as parameters:
        together = torch.autograd.grad(backbone.loss(case.examples, case.features), parameters)
        with backbone.checkpointing():
            again = torch.autograd.grad(backbone.loss(case.examples, case.features), parameters)
        apart = [torch.zeros_like(p) for p in parameters]
        for n, tokens in enumerate(learnt):
            loss = backbone.loss(*case.own(n)) * tokens / sum(learnt)
            for total, gradient in zip(apart, torch.autograd.grad(loss, parameters), strict=True):
                total += gradient
    for whole, checkpointed, parts in zip(together, again, apart, strict=True):
        require(torch.allclose(whole, checkpointed, atol=1e-6), "checkpointing changes gradients")
        require(torch.allclose(whole, parts, atol=1e-5), "gradients of a batch are not the sums of its records'")


def subspaces_are_mixed_by_sample(case: FamilyCase) -> None:
    """Every sample of a batch is answered by its own mix of subspaces and projectors."""
    backbone, adapters = case.adapted(2, projector=case.policies[-1])
    adapters.load_mixture([moved(adapters, seed) for seed in (2, 3)], adapters.base_projector())
    weights = np.array([[0.3, 0.7], [0.5, 0.5], [0.0, 0.0], [1.0, 0.0]], np.float32)
    with adapters.mixed(weights):
        mixed = logits(backbone, case.examples, case.features)
    alone = []
    for n in range(4):
        with adapters.mixed(weights[n : n + 1]):
            alone.append(logits(backbone, *case.own(n)))
    close(mixed, torch.cat(alone), "logits of a mixture")


def quantised_in_the_language_model(case: FamilyCase) -> None:
    """`quantization: 4bit` converts linear layers of the language model, none of tower and projector."""
    converted = plain.quantised(case.whole, type(case.backbone.family))
    strange = [n for n in converted if f".{case.backbone.family.language_name}." not in n]
    require(not strange, f"converts {strange[:3]}")
    require(len(converted) >= 7 * case.layers, f"converts {len(converted)} layers only")


CHECKS: list[Callable[[FamilyCase], None]] = [
    is_described,
    tokens_follow_from_the_size,
    pixels_are_those_of_the_processor,
    sizes_are_known_before_loading,
    loss_is_transformers_own,
    texts_are_transformers_own,
    compiled_records_are_the_same,
    compiled_answers_are_the_same,
    prompts_move_images_along,
    trained_and_loaded_by_peft,
    projector_learns,
    batches_are_sums,
    subspaces_are_mixed_by_sample,
    quantised_in_the_language_model,
]


def failure(check: Callable[[FamilyCase], None], case: FamilyCase) -> str | None:
    """Why a family breaks a promise; None if it keeps it."""
    try:
        check(case)
    except Exception as error:  # noqa: BLE001  (a user's part may raise anything; the reason is shown)
        return str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    return None


def conditions(name: str) -> tuple[str, list[str]]:
    """The setting that a family is checked under, and its values."""
    family: type[Family] = registry.resolve("model", name)
    return "projector", ["shared", "per_subspace"] if family.projector else ["frozen"]


def check(name: str, options: dict[str, Any] | None = None) -> Iterator[tuple[str, str | None]]:
    """Run every check of a family on its small model: what was checked, what is wrong (None: nothing).

    Raises:
        ConfigError: there is no small model, or it cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="fcit-family-") as folder:
        case = FamilyCase(name, Path(folder))
        for test in CHECKS:
            yield (test.__doc__ or test.__name__).split("\n")[0], failure(test, case)
