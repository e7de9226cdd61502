"""Makes ``fcit-tiny``: ``python -m fcit.models.tiny.pretrain --out DIR``.

Three seeded stages. First the vision tower learns, patch by patch, to name what each cell shows
(without this the language model stays on a long plateau). Then projector and language model learn
the instructions of :mod:`fcit.models.tiny.corpus` over frozen vision features. Last a CLIP pair
learns to tell instruction families apart (text) and to match captions and images.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fcit.data.mini import canvas
from fcit.models.tiny import build, corpus

IGNORE = -100


def _images(scenes: list) -> torch.Tensor:
    """Pixels of scenes, scaled as the image processor does it: ``(B, 3, 64, 64)`` in -1..1."""
    rgb = canvas.compose(
        *(np.stack([getattr(s, name) for s in scenes]) for name in ("contents", "colors", "variants", "background"))
    )
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    warm = max(1, steps // 50)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )


def train_vision(model: nn.Module, steps: int, rng: np.random.Generator) -> float:
    """Teach each patch's content and colour; returns the share of patches named right at the end."""
    tower = model.model.vision_tower
    width = tower.config.hidden_size
    heads = nn.ModuleList([nn.Linear(width, canvas.CONTENTS), nn.Linear(width, canvas.BLACK + 1)])
    optimizer = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=2e-3, weight_decay=0.01)
    schedule = _schedule(optimizer, steps)
    right = 0.0
    for step in range(steps):
        scenes = [corpus.sample_scene(rng) for _ in range(128)]
        targets = [torch.from_numpy(np.stack([getattr(s, n) for s in scenes])) for n in ("contents", "colors")]
        features = tower(_images(scenes), output_hidden_states=True).hidden_states[-2][:, 1:]
        logits = [head(features) for head in heads]
        loss = sum(functional.cross_entropy(x.flatten(0, 1), y.flatten()) for x, y in zip(logits, targets, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= steps - 20:
            both = (logits[0].argmax(-1) == targets[0]) & (logits[1].argmax(-1) == targets[1])
            right += float(both.float().mean()) / 20
        if step % 100 == 0:
            print(f"vision {step}/{steps} loss {float(loss):.4f}", flush=True)
    return right


class Batches:
    """Tokenised pre-training batches of similar length."""

    def __init__(self, processor, rng: np.random.Generator, size: int) -> None:
        self.tokenizer, self.rng, self.size = processor.tokenizer, rng, size
        self.queue: list[list] = []

    def _fill(self) -> None:
        pool = [corpus.sample(self.rng) for _ in range(self.size * 16)]
        prompts = [f"USER: {'<image>' * canvas.CELLS}\n{e.question} ASSISTANT:" for _, e in pool]
        heads = self.tokenizer(prompts).input_ids
        tails = self.tokenizer([f" {e.answer}" for _, e in pool], add_special_tokens=False).input_ids
        rows = [
            (name, example.scene, head, tail + [build.EOS])
            for (name, example), head, tail in zip(pool, heads, tails, strict=True)
        ]
        rows.sort(key=lambda row: len(row[2]) + len(row[3]))
        batches = [rows[i : i + self.size] for i in range(0, len(rows), self.size)]
        self.queue = [batches[int(i)] for i in self.rng.permutation(len(batches))]

    def next(self) -> tuple[list[str], list, torch.Tensor, torch.Tensor]:
        """Names, scenes, input ids and labels ``(B, L)``, padded on the right (causal: no mask needed)."""
        if not self.queue:
            self._fill()
        rows = self.queue.pop()
        length = max(len(head) + len(tail) for _, _, head, tail in rows)
        ids = torch.full((len(rows), length), build.PAD)
        labels = torch.full((len(rows), length), IGNORE)
        for i, (_, _, head, tail) in enumerate(rows):
            end = len(head) + len(tail)
            ids[i, :end] = torch.tensor(head + tail)
            labels[i, len(head) : end] = torch.tensor(tail)
        return [r[0] for r in rows], [r[1] for r in rows], ids, labels


def train_language(model: nn.Module, processor, steps: int, batch: int, lr: float, rng, save) -> dict[str, float]:
    """Train projector and language model; returns the recent exact-match per skill (teacher-forced)."""
    model.model.vision_tower.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = _schedule(optimizer, steps)
    batches = Batches(processor, rng, batch)
    hits: dict[str, float] = {}
    start = time.time()
    for step in range(steps):
        names, scenes, ids, labels = batches.next()
        answered = (labels != IGNORE).any(0).nonzero()[0].item() - 1
        with torch.autocast("cpu", torch.bfloat16):
            out = model(
                input_ids=ids, pixel_values=_images(scenes),
                logits_to_keep=ids.shape[1] - answered,
            )  # fmt: skip
        logits, target = out.logits[:, :-1].float(), labels[:, answered + 1 :]
        loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        right = ((logits.argmax(-1) == target) | (target == IGNORE)).all(-1)
        for name, hit in zip(names, right.tolist(), strict=True):
            hits[name] = 0.995 * hits.get(name, 0.0) + 0.005 * hit
        if step % 250 == 0 or step == steps - 1:
            rate = (step + 1) * batch / (time.time() - start)
            scores = " ".join(f"{n}={v:.2f}" for n, v in sorted(hits.items()))
            print(f"language {step}/{steps} loss {float(loss):.3f} {rate:.0f}/s | {scores}", flush=True)
        if step % 1000 == 999:
            save()
    return hits


# --------------------------------------------------------------------------- CLIP pair


def _families(rng: np.random.Generator, words: list[str], count: int, members: int) -> list[list[str]]:
    """Random instruction families: a few template words stay, the fillings change."""
    families = []
    suffixes = [*corpus.SHORT, *corpus.OPTION, *corpus.LONG]
    for _ in range(count):
        size = int(rng.integers(4, 10))
        wordings = [rng.choice(words, size).tolist()]
        if rng.random() < 0.7:  # a second wording shares about half of the words
            other = [w if rng.random() < 0.6 else str(rng.choice(words)) for w in wordings[0]]
            wordings.append(other)
        suffix = suffixes[int(rng.integers(len(suffixes)))]
        texts = []
        for _ in range(members):
            template = list(wordings[int(rng.integers(len(wordings)))])
            for _ in range(int(rng.integers(0, 3))):
                pool = (canvas.COLOR_NAMES, canvas.KINDS)[int(rng.integers(2))]
                template.insert(int(rng.integers(len(template) + 1)), str(rng.choice(pool)))
            if rng.random() < 0.2:
                template += [f"{letter}) {rng.choice(canvas.COLOR_NAMES)}" for letter in "ABC"]
            texts.append(" ".join(template) + "?\n" + suffix)
        families.append(texts)
    return families


def train_clip(model, tokenizer, steps: int, rng: np.random.Generator) -> None:
    """Supervised contrastive text families plus image-caption matching."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = _schedule(optimizer, steps)
    words = sorted({w for text in build._texts(4000) for w in text.lower().replace("?", " ").split() if w.isalpha()})
    count, members = 48, 4
    same = torch.eye(count).repeat_interleave(members, 0).repeat_interleave(members, 1).bool()
    self_mask = torch.eye(count * members).bool()
    for step in range(steps):
        texts = [t for family in _families(rng, words, count, members) for t in family]
        enc = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        z = functional.normalize(model.text_model(**enc).pooler_output, dim=-1)
        # Cosines at most 0.3 between families cost nothing: spread, not opposition, is wanted.
        sim = z @ z.T
        inside = (1 - sim[same & ~self_mask]).mean()
        outside = functional.relu(sim[~same] - 0.2).square().mean()
        logp = functional.log_softmax((sim / 0.1).masked_fill(self_mask, -1e4), dim=-1)
        contrast = -logp[same & ~self_mask].mean()
        scenes, captions = [], []
        while len(scenes) < 48:
            name, example = corpus.sample(rng)
            if name == "describe" and len(example.answer.split()) > 3 or name == "whole":
                scenes.append(example.scene)
                captions.append(example.answer)
        image = model.get_image_features(pixel_values=_images(scenes)).pooler_output
        enc = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        caption = model.get_text_features(**enc).pooler_output
        logits = 10 * functional.normalize(image, dim=-1) @ functional.normalize(caption, dim=-1).T
        target = torch.arange(len(scenes))
        match = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        loss = contrast + inside + 10 * outside + 0.2 * match
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(
                f"clip {step}/{steps} inside {1 - float(inside):.3f} outside {float(sim[~same].mean()):.3f} "
                f"match {float(match):.3f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for llava/ and clip/")
    parser.add_argument("--stages", default="vision,language,clip")
    parser.add_argument("--vision-steps", type=int, default=700)
    parser.add_argument("--language-steps", type=int, default=11000)
    parser.add_argument("--clip-steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    raw = build.train_tokenizer()
    processor, identity = build.llava_processor(raw), build.identity_tokenizer(raw)
    model, pair = build.llava(raw.get_vocab_size()), build.clip(raw.get_vocab_size())
    history: dict[str, object] = {"arguments": {k: str(v) for k, v in vars(args).items() if k != "out"}}
    stages = args.stages.split(",")

    def save() -> None:
        model.save_pretrained(args.out / "llava")
        processor.save_pretrained(args.out / "llava")

    if "vision" in stages:
        history["patches_right"] = train_vision(model, args.vision_steps, np.random.default_rng((args.seed, 1)))
        print("patches right:", history["patches_right"], flush=True)
        save()
    if "language" in stages:
        if "vision" not in stages:
            model = type(model).from_pretrained(args.out / "llava", dtype=torch.float32)
        rng = np.random.default_rng((args.seed, 2))
        history["skills"] = train_language(model, processor, args.language_steps, args.batch, args.lr, rng, save)
        save()
    if "clip" in stages:
        torch.manual_seed(args.seed)
        train_clip(pair, identity, args.clip_steps, np.random.default_rng((args.seed, 3)))
        pair.save_pretrained(args.out / "clip")
        identity.save_pretrained(args.out / "clip")
        build.image_processor().save_pretrained(args.out / "clip")
    (args.out / f"history-{'-'.join(stages)}.json").write_text(json.dumps(history, indent=1))


if __name__ == "__main__":
    main()
