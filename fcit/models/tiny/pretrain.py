"""Makes ``fcit-tiny``: ``python -m fcit.models.tiny.pretrain --out DIR``.

Three seeded stages. First the vision tower learns, patch by patch, to name what each cell shows
(without this the language model stays on a long plateau). Then projector and language model learn
the instructions of :mod:`fcit.data.mini.corpus` over frozen vision features. Last a CLIP pair
learns to tell instruction families apart (text) and to match captions and images.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fcit.data.mini import canvas, corpus
from fcit.data.mini.scenes import images
from fcit.data.mini.skills.wording import LONG, OPTION, SHORT
from fcit.data.mini.skills.words import VOCABULARY
from fcit.models.tiny import build
from fcit.models.tiny.probes import IGNORE, Alignment, LookUps


def _images(scenes: list) -> torch.Tensor:
    """Pixels of scenes, scaled as the image processor does it: ``(B, 3, 64, 64)`` in -1..1."""
    return torch.from_numpy(images(scenes)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    warm = max(1, steps // 50)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )


def train_vision(model: Any, steps: int, rng: np.random.Generator) -> float:
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
        loss = torch.stack(
            [functional.cross_entropy(x.flatten(0, 1), y.flatten()) for x, y in zip(logits, targets, strict=True)]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= steps - 20:
            both = (logits[0].argmax(-1) == targets[0]) & (logits[1].argmax(-1) == targets[1])
            right += float(both.float().mean()) / 20
        if step % 100 == 0:
            print(f"vision {step}/{steps} loss {float(loss.detach()):.4f}", flush=True)
    return right


class Batches:
    """Tokenised pre-training batches of similar length."""

    def __init__(self, processor, rng: np.random.Generator, size: int, chances: np.ndarray) -> None:
        self.chances = chances
        self.tokenizer, self.rng, self.size = processor.tokenizer, rng, size
        self.queue: list[list] = []

    def _fill(self, first: bool) -> None:
        pool = [corpus.sample(self.rng, first, self.chances) for _ in range(self.size * 16)]
        prompts = [f"USER: {'<image>' * canvas.CELLS}\n{e.question} ASSISTANT:" for _, e in pool]
        heads = self.tokenizer(prompts).input_ids
        tails = self.tokenizer([f" {e.answer}" for _, e in pool], add_special_tokens=False).input_ids
        rows = [
            (name, example.scene, head, [*tail, build.EOS])
            for (name, example), head, tail in zip(pool, heads, tails, strict=True)
        ]
        rows.sort(key=lambda row: len(row[2]) + len(row[3]))
        batches = [rows[i : i + self.size] for i in range(0, len(rows), self.size)]
        self.queue = [batches[int(i)] for i in self.rng.permutation(len(batches))]

    def next(self, first: bool = False) -> tuple[list[str], list, torch.Tensor, torch.Tensor]:
        """Names, scenes, input ids and labels ``(B, L)``, padded on the right (causal: no mask needed)."""
        if not self.queue:
            self._fill(first)
        rows = self.queue.pop()
        length = max(len(head) + len(tail) for _, _, head, tail in rows)
        ids = torch.full((len(rows), length), build.PAD)
        labels = torch.full((len(rows), length), IGNORE)
        for i, (_, _, head, tail) in enumerate(rows):
            end = len(head) + len(tail)
            ids[i, :end] = torch.tensor(head + tail)
            labels[i, len(head) : end] = torch.tensor(tail)
        return [r[0] for r in rows], [r[1] for r in rows], ids, labels


def train_language(
    model: Any,
    processor,
    steps: int,
    batch: int,
    lr: float,
    rng,
    save,
    patch_probes: bool,
    first_share: float,
    chances: np.ndarray,
) -> dict[str, float]:
    """Train projector and language model; returns the recent exact-match per skill (teacher-forced)."""
    model.model.vision_tower.requires_grad_(False)
    lookups = LookUps(processor.tokenizer, model.config.text_config.hidden_size)
    parameters = [*(p for p in model.parameters() if p.requires_grad), *lookups.probes.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = _schedule(optimizer, steps)
    batches, alignment = Batches(processor, rng, batch, chances), Alignment(model, processor.tokenizer)
    hits: dict[str, float] = {}
    start = time.time()
    for step in range(steps):
        names, scenes, ids, labels = batches.next(first=step < steps * first_share)
        answered = (labels != IGNORE).any(0).nonzero()[0].item() - 1
        pixels = _images(scenes)
        with torch.autocast("cpu", torch.bfloat16):
            aligned = alignment(scenes, pixels)
            out = model(
                input_ids=ids,
                pixel_values=pixels,
                logits_to_keep=ids.shape[1] - answered,
                output_hidden_states=True,
            )
        middle = functional.normalize(out.hidden_states[LookUps.LAYER], dim=-1) * 11
        known = lookups.loss(middle, ids, scenes)
        if patch_probes:
            early = functional.normalize(out.hidden_states[LookUps.LAYER - 1], dim=-1) * 11
            known = known + lookups.patch_loss(early, ids, scenes) + lookups.option_loss(early, ids, names)
        logits, target = out.logits[:, :-1].float(), labels[:, answered + 1 :]
        loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        (loss + 0.3 * aligned + 0.5 * known).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        right = ((logits.argmax(-1) == target) | (target == IGNORE)).all(-1)
        for name, hit in zip(names, right.tolist(), strict=True):
            hits[name] = 0.995 * hits.get(name, 0.0) + 0.005 * hit
        if step % 250 == 0 or step == steps - 1:
            rate = (step + 1) * batch / (time.time() - start)
            scores = " ".join(f"{n}={v:.2f}" for n, v in sorted(hits.items()))
            print(
                f"language {step}/{steps} loss {float(loss.detach()):.3f} aligned {float(aligned.detach()):.2f} "
                f"known {float(known.detach()):.2f} {rate:.0f}/s | {scores}",
                flush=True,
            )
        if step % 1000 == 999:
            save()
    return hits


# --------------------------------------------------------------------------- CLIP pair


_FUNCTION_WORDS = (
    "a an the is are was of in on to at for by with from that this these one does do did has have what which who "
    "where how many much be can it its and or than all some you there"
).split()


def _word_weights(tokenizer) -> torch.Tensor:
    """Weight of every token in a sentence feature: ``(vocabulary,)``.

    Words of the instruction have full weight, function words and format lines little, and fillings of
    templates (colours, kinds, letters, digits, punctuation) almost none.
    """
    weights = torch.ones(len(tokenizer))
    formats = " ".join([*SHORT, *OPTION, *LONG]).replace(".", " ").split()
    fillings = [*canvas.KINDS, *canvas.COLOR_NAMES, *canvas.LETTERS, *canvas.DIGITS, *".,:;?!()[]=\n"]
    for words, weight in ((_FUNCTION_WORDS, 0.2), (formats, 0.3), (fillings, 0.12)):
        for word in words:
            for form in (word, f" {word}", word.capitalize(), word.lower(), f" {word.lower()}"):
                ids = tokenizer(form, add_special_tokens=False).input_ids
                if len(ids) == 1:
                    weights[ids[0]] = weight
    weights[:5] = 0.0
    return weights


def _sentence(rng: np.random.Generator) -> str:
    """An instruction of random words with an optional format line and options."""
    words = rng.choice(
        [*VOCABULARY, *_FUNCTION_WORDS, *canvas.COLOR_NAMES, *canvas.KINDS], int(rng.integers(4, 16))
    ).tolist()
    text = " ".join(words)
    text = text[0].upper() + text[1:] + "?"
    if rng.random() < 0.2:
        text += "".join(f"\n{letter}) {rng.choice(canvas.COLOR_NAMES)}" for letter in "ABCD")
    suffix = str(rng.choice([*SHORT, *OPTION, *LONG]))
    return f"{text}\n{suffix}" if suffix else text


def train_clip(model, tokenizer, steps: int, rng: np.random.Generator) -> None:
    """Teach the text tower smooth sentence features, and the pair to match captions and images.

    The pooled text feature is regressed on a weighted sum of random word vectors: the cosine of two
    instructions is then about the share of content words they have in common. A large CLIP learns
    this from the web: features of different requests are apart, those of variants of one are close.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.01)
    schedule = _schedule(optimizer, steps)
    weights = _word_weights(tokenizer)
    teacher = torch.from_numpy(rng.normal(size=(len(tokenizer), model.config.text_config.hidden_size))).float()
    teacher = functional.normalize(teacher, dim=-1) * weights[:, None]
    for step in range(steps):
        texts = [corpus.sample(rng)[1].question if i % 2 else _sentence(rng) for i in range(160)]
        enc = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        wanted = (teacher[enc["input_ids"]] * enc["attention_mask"][..., None]).sum(1)
        felt = model.text_model(**enc).pooler_output
        close = functional.cosine_similarity(felt, wanted, dim=-1).mean()
        scenes: list[Any] = []
        captions: list[str] = []
        while len(scenes) < 32:
            name, example = corpus.sample(rng)
            if (name == "describe" and len(example.answer.split()) > 3) or name == "whole":
                scenes.append(example.scene)
                captions.append(example.answer)
        image = model.get_image_features(pixel_values=_images(scenes)).pooler_output
        enc = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        caption = model.get_text_features(**enc).pooler_output
        logits = 10 * functional.normalize(image, dim=-1) @ functional.normalize(caption, dim=-1).T
        target = torch.arange(len(scenes))
        match = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        loss = 4 * (1 - close) + 0.1 * match
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"clip {step}/{steps} close {float(close):.3f} match {float(match):.3f}", flush=True)


def take_over(model: Any, folder: Path, vocabulary: dict[str, int]) -> None:
    """Load an earlier model of the same shape, whose tokenizer may have been trained on another corpus.

    Rows of the word embedding (tied to the output) move with their token; new tokens start at the mean.
    """
    trained = type(model).from_pretrained(folder, dtype=torch.float32)
    state = trained.state_dict()
    earlier = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    words = trained.get_input_embeddings().weight.detach()
    rows = words.mean(0, keepdim=True).repeat(len(vocabulary), 1)
    for token, index in vocabulary.items():
        if index < len(build.SPECIAL):
            rows[index] = words[index]
        elif token in earlier:
            rows[index] = words[earlier[token]]
    for name, tensor in state.items():
        if tensor.shape == words.shape and torch.equal(tensor, words):
            state[name] = rows
    model.load_state_dict(state)


def main() -> None:
    """Run the chosen stages and save Hugging Face folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for llava/ and clip/")
    parser.add_argument("--stages", default="vision,language,clip")
    parser.add_argument("--vision-steps", type=int, default=700)
    parser.add_argument("--language-steps", type=int, default=8000)
    parser.add_argument("--clip-steps", type=int, default=700)
    parser.add_argument(
        "--first-share", type=float, default=0.12, help="of the language steps, spent on look-ups alone"
    )
    parser.add_argument("--stream", type=int, nargs="*", default=[2], help="language: which random stream to read")
    parser.add_argument(
        "--emphasis", nargs="*", default=[], metavar="SKILL=FACTOR", help="give some skills more weight"
    )
    parser.add_argument("--no-patch-probes", dest="patch_probes", action="store_false")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="language: start from the model in --out")
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
        if args.go_on:
            take_over(model, args.out / "llava", raw.get_vocab())
        elif "vision" not in stages:
            trained = type(model).from_pretrained(args.out / "llava", dtype=torch.float32)
            model.model.vision_tower.load_state_dict(trained.model.vision_tower.state_dict())
        rng = np.random.default_rng((args.seed, *args.stream))
        history["skills"] = train_language(
            model,
            processor,
            args.language_steps,
            args.batch,
            args.lr,
            rng,
            save,
            args.patch_probes,
            args.first_share,
            corpus.weights({name: float(factor) for name, factor in (pair.split("=") for pair in args.emphasis)}),
        )
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
