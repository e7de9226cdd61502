"""One small model of a family beside transformers' own, and what both are compared on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.data.collate import IGNORE, Encoded, images_of
from fcit.data.records import Record, TestRecord, Turn
from fcit.models.adapters import Adapters
from fcit.models.backbone import TINY, Backbone
from fcit.models.patches import Features
from tests.helpers.families import SMALL

CLIP = str(TINY / "clip")
#: Width and height: landscape, portrait, both odd, a strip, a square.
SIZES = [(57, 30), (24, 61), (151, 91), (29, 200), (40, 40)]


def conversation(*images: str) -> Record:
    """Two turns; all images belong to the first."""
    return Record(images, (Turn("How many?", "3", len(images)), Turn("Name it.", "red cup", 0)))


#: One image, none, two, a portrait.
RECORDS = [conversation("2.png"), conversation(), conversation("3.png", "0.png"), conversation("1.png")]


@dataclasses.dataclass
class Case:
    """A small model of a family, loaded by FCIT and by transformers."""

    kind: str
    folder: str
    root: Path

    def __post_init__(self) -> None:
        self.small = SMALL[self.kind]
        self.backbone = self.fresh()
        self.layers = len(self.backbone.family.layers)
        self.whole = AutoModelForImageTextToText.from_pretrained(self.folder)
        self.adapter = Adapter(dropout=0, targets=self.small.targets)
        encoder = self.backbone.encoder_below(self.root)
        self.examples = [encoder.encode(record) for record in RECORDS]
        asked = [record.images for record in RECORDS]
        self.questions = [encoder.encode(TestRecord(str(n), i, "Name it.", "")) for n, i in enumerate(asked)]
        self.features = self.backbone.vision_features(self.root, images_of(self.examples))

    def settings(self, **options: Any) -> Config:
        options = {"feature_cache": "off", **self.small.options, **options}
        return Config(model=self.folder, identity=CLIP, **options)

    def fresh(self, **options: Any) -> Backbone:
        return Backbone(self.settings(**options))

    def inputs(self, example: Encoded) -> dict[str, torch.Tensor]:
        """What transformers' own forward takes of one conversation."""
        tokens = torch.tensor([example.tokens])
        if not example.images:
            return {"input_ids": tokens}
        opened = [Image.open(self.root / image).convert("RGB") for image in example.images]
        given = {"input_ids": tokens, **self.small.inputs(self.backbone, opened)}
        if "image_grid_thw" in given:
            given["mm_token_type_ids"] = (tokens == self.whole.config.image_token_id).int()
        return given

    def own(self, n: int) -> tuple[list[Encoded], Features]:
        """One example with its images' features."""
        ends = np.cumsum([0, *(len(e.images) for e in self.examples)])
        return [self.examples[n]], self.features[range(ends[n], ends[n + 1])]

    @torch.no_grad()
    def expected(self, model: Any) -> torch.Tensor:
        """Logits of a whole model before the learnt tokens, conversation by conversation from pixels."""
        wanted = []
        for example in self.examples:
            out = model(**self.inputs(example)).logits[0]
            wanted += [out[start - 1 : end - 1] for start, end in example.answers]
        return torch.cat(wanted)

    def generated(self, n: int) -> str:
        """The answer of transformers' own generate to question ``n``, from pixels."""
        question = self.questions[n]
        given = self.inputs(question)
        with torch.no_grad():
            out = self.whole.generate(
                **given, attention_mask=torch.ones_like(given["input_ids"]), max_new_tokens=8, do_sample=False
            )
        return self.backbone.tokenizer.decode(out[0, len(question.tokens) :], skip_special_tokens=True).strip()

    def projector_gradients(self, n: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Of the loss of one conversation by the projector's parameters: ours, and those of the whole model."""
        backbone = self.fresh()
        name = f".{backbone.family.projector}."
        adapters = Adapters(backbone, self.adapter)  # which add nothing yet
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


def draw(root: Path) -> Path:
    """Images of all :data:`SIZES` below ``root``."""
    rng = np.random.default_rng(3)
    for n, (width, height) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{n}.png")
    return root


@torch.no_grad()
def logits(
    backbone: Backbone, examples: list[Encoded], features: Features, prefix: torch.Tensor | None = None
) -> torch.Tensor:
    """Before learnt tokens."""
    return backbone.answer_logits(examples, features, prefix)[0]
