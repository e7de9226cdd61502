"""Auxiliary losses of the pre-training of ``fcit-tiny``; their parameters are discarded afterwards.

Without them the loss stays on a plateau. Each class adds a term to the language modelling loss of
:mod:`fcit.models.tiny.pretrain`: the projector has to map patches near the embeddings of words, and
inner layers have to hold early on what an answer needs.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fcit.data.mini import canvas
from fcit.models.tiny import build

IGNORE = -100


def _patch_words(tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that name a patch: ``(contents, 2)`` and ``(colours, 2)``, IGNORE where none does."""

    def token(text: str) -> int:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return ids[0] if len(ids) == 1 else IGNORE

    contents = torch.full((canvas.CONTENTS, 2), IGNORE)
    for i, kind in enumerate(canvas.KINDS):
        contents[canvas.KIND0 + i, 0] = token(f" {kind}")
    for i, glyph in enumerate(canvas.LETTERS + canvas.DIGITS):
        contents[canvas.LETTER0 + i] = torch.tensor([token(f" {glyph}"), token(glyph)])
    colors = torch.full((canvas.BLACK + 1, 2), IGNORE)
    for i, color in enumerate(canvas.COLOR_NAMES):
        colors[i, 0] = token(f" {color}")
    return contents, colors


class Alignment:
    """Pulls each projected patch towards the embeddings of the words that name it.

    As LLaVA's first stage does with captions, but patch by patch: without it the language model
    guesses among the drawn things for hundreds of thousands of samples.
    """

    def __init__(self, model: Any, tokenizer) -> None:
        self.model = model
        self.contents, self.colors = _patch_words(tokenizer)

    def __call__(self, scenes: list, pixels: torch.Tensor) -> torch.Tensor:
        tower, projector = self.model.model.vision_tower, self.model.model.multi_modal_projector
        with torch.no_grad():
            features = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        logits = projector(features) @ self.model.get_input_embeddings().weight.T
        logp = functional.log_softmax(logits.float(), dim=-1)[:, :, None]  # (B, 16, 1, V)
        shown = torch.from_numpy(np.stack([s.contents for s in scenes]))
        painted = torch.from_numpy(np.stack([s.colors for s in scenes]))
        words = torch.cat([self.contents[shown], self.colors[painted]], dim=-1)  # (B, 16, 4)
        known = (words != IGNORE) & (shown != canvas.BLANK)[..., None]
        picked = logp.squeeze(2).gather(-1, words.clamp(min=0))
        return -(picked * known).sum() / known.sum()


class LookUps:
    """Deep supervision: where an instruction names a thing, a middle layer encodes its properties.

    At the word "red" the hidden state of layer :attr:`LAYER` must tell, through linear probes that
    are discarded afterwards, which shape is red and where it is; at a bar's letter its height; and
    so on. Retrieval is then learnt early, and an answer takes one further step of attention.
    """

    LAYER = 3
    PATCH_HEADS: ClassVar[dict[str, int]] = {
        "left": canvas.CONTENTS,
        "place": canvas.CELLS,
        "height": 10,
        "paint": len(canvas.COLOR_NAMES),
    }
    HEADS: ClassVar[dict[str, int]] = {
        "kind": len(canvas.KINDS),
        "color": len(canvas.COLOR_NAMES),
        "cell": canvas.CELLS,
        "value": 10,
        "label": len(canvas.LETTERS),
    }

    def __init__(self, tokenizer, width: int) -> None:
        sizes = {**self.HEADS, **self.PATCH_HEADS}
        self.probes = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})
        self.probes["option"] = nn.Linear(width, len(tokenizer))
        self.tokens: dict[str, list[int]] = {}
        for word in (*canvas.KINDS, *canvas.COLOR_NAMES, *canvas.LETTERS):
            ids = [tokenizer(form, add_special_tokens=False).input_ids for form in (f" {word}", word)]
            self.tokens[word] = [i[0] for i in ids if len(i) == 1]

    @staticmethod
    def _facts(scene) -> list[tuple[str, dict[str, int]]]:
        """Words that name something in the scene, with what belongs to it."""
        facts = []
        if scene.bars:
            for b in scene.bars:
                label = canvas.LETTERS.index(b.label)
                facts.append((b.paint, {"value": b.height, "label": label}))
                facts.append((b.label, {"value": b.height, "color": b.color}))
        elif scene.prices:
            facts += [(t.name, {"value": price, "color": t.color, "cell": t.cell}) for t, price in scene.prices]
        elif len({t.kind for t in scene.things}) == len(scene.things):
            for t in scene.things:
                facts.append((t.paint, {"kind": t.kind, "cell": t.cell}))
                facts.append((t.name, {"color": t.color, "cell": t.cell}))
        return facts

    def patch_loss(self, hidden: torch.Tensor, ids: torch.Tensor, scenes: list) -> torch.Tensor:
        """At image positions: what is left of the patch, its cell, and under a bar its height and colour."""
        patches = hidden[ids == build.IMAGE].view(len(scenes), canvas.CELLS, -1).float()
        contents = torch.from_numpy(np.stack([s.contents for s in scenes]))
        left = functional.pad(contents.view(-1, canvas.SIDE, canvas.SIDE), (1, 0))[..., :-1].reshape(-1, canvas.CELLS)
        place = torch.arange(canvas.CELLS).expand_as(left)
        wanted = {"left": left, "place": place}
        losses = [functional.cross_entropy(self.probes[n](patches).transpose(1, 2), t) for n, t in wanted.items()]
        under = [(i, canvas.CELLS - canvas.SIDE + b.column, b) for i, s in enumerate(scenes) for b in s.bars]
        if under:
            rows, cells = [i for i, _, _ in under], [c for _, c, _ in under]
            for name, values in (("height", [b.height for *_, b in under]), ("paint", [b.color for *_, b in under])):
                losses.append(functional.cross_entropy(self.probes[name](patches[rows, cells]), torch.tensor(values)))
        return sum(losses, torch.zeros(())) / len(losses)

    def loss(self, hidden: torch.Tensor, ids: torch.Tensor, scenes: list) -> torch.Tensor:
        """Mean cross-entropy of the probes over the named words of a batch."""
        labels: dict[str, tuple[list[int], list[int], list[int]]] = {h: ([], [], []) for h in self.HEADS}
        rows = ids.tolist()
        for row, scene in enumerate(scenes):
            named = {token: facts for word, facts in self._facts(scene) for token in self.tokens[word]}
            for position, token in enumerate(rows[row]):
                for head, value in named.get(token, {}).items():
                    for part, item in zip(labels[head], (row, position, value), strict=True):
                        part.append(item)
        losses = [
            functional.cross_entropy(self.probes[head](hidden[where, at].float()), torch.tensor(value), reduction="sum")
            for head, (where, at, value) in labels.items()
            if where
        ]
        count = sum(len(where) for where, _, _ in labels.values())
        return sum(losses, torch.zeros(())) / max(count, 1)

    def option_loss(self, hidden: torch.Tensor, ids: torch.Tensor, names: list[str]) -> torch.Tensor:
        """In multiple choice: each word knows the token two before it, which is an option's own letter."""
        rows = [i for i, name in enumerate(names) if name == "choose"]
        if not rows:
            return torch.zeros(())
        now, before = ids[rows, 2:], ids[rows, :-2]
        text = (now != build.IMAGE) & (before != build.IMAGE) & (now != build.PAD)
        return functional.cross_entropy(self.probes["option"](hidden[rows, 2:][text].float()), before[text])
