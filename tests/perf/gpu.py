"""How fast LLaVA-1.5-7B trains and answers here: `python -m tests.perf.gpu --size 7b --device cuda --json out.json`.

The model has the published shape and random weights made on the device, so nothing is downloaded. Measured through the
code that runs use: a training step (micro-batches, with and without checkpointing), greedy answers with eight routed
subspaces (a batch against one question at a time), and putting another client into the training slot. `--size toy`
does the same with a model of a few thousand weights: a test that this file works, its figures mean nothing.

Weights, records and adapters come from fixed seeds, so two versions of the code compute the same loss, gradient norm
and answers on one machine. To compare them, run this in the older tree with `--json old.json`, then in the newer one
with `--json new.json --against old.json`: it prints both times of every row, with status 1 if a number differs.
Loss and gradient norm are always computed uncompiled, with products of adapters in float32; training steps as a run's
are; `--set training.adapter_products=float32 --set training.compile=off` computes them as before there were these keys.

MFU is model FLOP utilisation: 4 P + attention a token (frozen weights have no gradient; a second forward pass of
checkpointing is not counted as useful), over the peak of the table in fcit/doctor/devices.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from clients.worker.micro_batches import OutOfMemory, explained
from fcit import config as configuration
from fcit import seeding
from fcit.doctor.devices import device_of, peak_of
from fcit.models import backbone as backbones
from fcit.models import estimate
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone, versions
from fcit.models.estimate import Lengths
from fcit.models.families.llava import Llava, llava_7b
from fcit.models.shapes import Shape, measure
from fcit.models.steps import computed
from tests.helpers.llava import small_llava

SUBSPACES = 8
TARGETS = r".*language_model.*\.(gate_proj|up_proj|down_proj)"


@dataclass(frozen=True)
class Size:
    """What is measured: records at a time, tokens of text, of an answer, and how often each is timed."""

    micro: tuple[int, ...]
    batch: int
    text: int
    answer: int
    new: int
    repeats: int


SIZES = {"toy": Size((2,), 4, 40, 8, 4, 1), "7b": Size((4, 16), 32, 110, 32, 64, 3)}


def build(
    size: str, device: str, folder: Path, overrides: list[str] | None = None
) -> tuple[Backbone, Adapters, Shape, configuration.RunConfig]:
    """The model of that shape with random weights on the device, its adapters and what is known of it.

    Args:
        overrides: of its configuration, as ``key=value``.
    """
    if torch.device(device).index is not None:  # what waits for a GPU, or asks for its memory, means the current one
        torch.cuda.set_device(device)
    model, identity = small_llava(folder)
    dtype = "bfloat16" if size == "7b" else "float32"
    config = configuration.resolve(
        {
            "backbone": {
                "model": model,
                "identity": identity,
                "device": device,
                "dtype": dtype,
                "feature_cache": "off",
                "conversation": "vicuna_v1",
            },
            "adapter": {"targets": TARGETS},
        },
        folder,
        "perf",
        overrides,
    )
    if size == "7b":
        _published(Path(model))
    whole = backbones.load_model

    def random_weights(source: str, settings: Any, found: Any) -> Any:
        if size == "toy":
            return whole(source, settings, found)
        shape = llava_7b()
        shape.image_token_id = shape.image_token_index = _image_token(Path(source))
        with torch.device(device), seeding.torch_seeded(0, "perf"):
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.bfloat16)
            try:
                made = LlavaForConditionalGeneration(shape)
            finally:
                torch.set_default_dtype(before)
        return made.eval().requires_grad_(False)

    backbones.load_model = random_weights
    try:
        backbone = Backbone(config.backbone)
    finally:
        backbones.load_model = whole
    shape = measure(backbone.model, Llava, config.backbone, TARGETS, "built here", (0, 0, 0))
    return backbone, Adapters(backbone, config.adapter), shape, config


def _published(folder: Path) -> None:
    """Small words with the published image size."""
    file = folder / "processor_config.json"
    raw = json.loads(file.read_text())
    raw["image_processor"] |= {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    file.write_text(json.dumps({**raw, "patch_size": 14}))


def _image_token(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["image_token_index"])


def records(
    backbone: Backbone, size: Size, count: int, answered: bool, uneven: bool = False
) -> tuple[list[Any], torch.Tensor]:
    """Records of the size's lengths and random features of their images.

    Words are byte tokens of the small tokenizer, ids 3 to 249: never the image token, which comes last.

    Args:
        uneven: each record keeps a random number of its words, so that shorter rows of a batch are padded.
    """
    blank = backbone.encode("", None, "")
    room = max(0, size.text - (len(blank.prompt) - backbone.family.tokens))
    rng, lengths = seeding.generator(0, "perf-words"), seeding.generator(0, "perf-lengths")
    made = []
    for _ in range(count):
        words = tuple(int(i) for i in rng.integers(3, 250, room))
        words = words[: int(lengths.integers(0, room + 1))] if uneven else words
        answer = tuple(int(i) for i in rng.integers(3, 250, size.answer)) if answered else ()
        tokens = blank.prompt + words + answer
        spans = ((len(tokens) - len(answer), len(tokens)),) if answer else ()
        made.append(type(blank)(tokens, spans, ("",)))
    noise = seeding.generator(0, "perf-features").normal(size=(count, *backbone.family.shape)).astype(np.float32)
    return made, torch.from_numpy(noise).to(backbone.device, backbone.dtype)


def timed(work: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, float | None]:
    """Seconds of one call (mean, after one that is not counted) and the peak of device memory in bytes."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - begin) / repeats
    return seconds, float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def optimiser_step(backbone: Backbone, parameters: Any, examples: Any, features: torch.Tensor) -> Callable[[], None]:
    """A whole optimiser step over these records, to be called again and again."""
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, foreach=True)

    def backward() -> None:
        optimizer.zero_grad(set_to_none=True)
        backbone.loss(examples, features).backward()

    def step() -> None:
        backbone.layers.through(backward)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def useful_flops(kit: Any, examples: Any) -> float:
    """Floating-point operations of a step over these records, without the second forward pass of checkpointing."""
    _, _, shape, config = kit
    config = config.model_copy(update={"training": config.training.model_copy(update={"checkpointing": False})})
    lengths = (Lengths(len(e.prompt) - shape.image_tokens, len(e.tokens) - len(e.prompt)) for e in examples)
    return sum(estimate.training_flops(config, shape, length) for length in lengths)


def numbers(kit: Any, size: Size) -> dict[str, Any]:
    """Loss and gradient norm of two records, from seeded adapters: equal for two versions that compute the same."""
    backbone, adapters, _, _ = kit
    examples, features = records(backbone, size, 2, answered=True)
    rng = seeding.generator(0, "perf-numbers")
    lora = {n: tuple(p.shape) for n, p in adapters.trainable.items() if ".lora_" in n}
    adapters.load({n: rng.normal(0, 0.01, shape).astype(np.float32) for n, shape in lora.items()})
    with seeding.torch_seeded(0, "perf-numbers"), adapters.training() as parameters:
        loss = backbone.loss(examples, features)
        loss.backward()
        norm = sum((p.grad.double() ** 2).sum() for p in parameters if p.grad is not None) ** 0.5
    return {"what": "numbers", "loss": float(loss.detach()), "gradient_norm": float(norm)}


def training(kit: Any, size: Size, micro: int, checkpointing: bool, peak: float | None) -> dict[str, Any]:
    """One optimiser step over ``micro`` records."""
    backbone, adapters, shape, config = kit
    section = config.training.model_copy(update={"checkpointing": checkpointing})
    config = config.model_copy(update={"training": section})
    examples, features = records(backbone, size, micro, answered=True)
    tokens = sum(len(e.tokens) for e in examples)
    lengths = Lengths(len(examples[0].prompt) - shape.image_tokens, size.answer)
    expected = estimate.memory(config, shape, 0, micro, lengths)
    row = {
        "what": "training",
        "micro_batch": micro,
        "checkpointing": checkpointing,
        "tokens": tokens,
        "estimated_bytes": round(sum(expected.training.values())),
    }
    with (
        seeding.torch_seeded(0, "perf-training"),
        computed(backbone, config.training),
        adapters.training() as parameters,
    ):
        step = optimiser_step(backbone, parameters, examples, features)
        base = torch.cuda.memory_allocated(backbone.device) if backbone.device.type == "cuda" else 0
        try:
            with explained("in a training step", "--size"):
                seconds, most = timed(step, backbone.device, size.repeats)
        except OutOfMemory as error:
            return {**row, "error": str(error)}
    useful = useful_flops(kit, examples)
    return {
        **row,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "records_per_second": micro / seconds,
        "model_tflops": useful / seconds / 1e12,
        "mfu": useful / seconds / peak if peak else None,
        "peak_bytes": most,
        "beyond_weights_bytes": None if most is None else most - base,
    }


def answering(kit: Any, size: Size) -> list[dict[str, Any]]:
    """The same questions in one batch and one by one, each with its own mix of the subspaces."""
    backbone, adapters, _, _ = kit
    rng = seeding.generator(0, "perf-subspaces")
    names = {n: tuple(p.shape) for n, p in adapters.trainable.items() if ".lora_" in n}
    subspaces = [{n: rng.normal(0, 0.01, s).astype(np.float32) for n, s in names.items()} for _ in range(SUBSPACES)]
    adapters.load_mixture(subspaces, adapters.base_projector())
    backbone.model.generation_config.eos_token_id = None  # random weights: every answer has its full length
    examples, features = records(backbone, size, size.batch, answered=False)
    mix = rng.dirichlet([0.3] * SUBSPACES, size.batch).astype(np.float32)
    rows: list[dict[str, Any]] = []
    for batch in (size.batch, 1):
        count = size.batch if batch > 1 else min(4, size.batch)
        texts: list[str] = []

        def answer(batch: int = batch, count: int = count, texts: list[str] = texts) -> None:
            texts.clear()
            for start in range(0, count, batch):
                part = slice(start, start + batch)
                with adapters.mixed(mix[part]):
                    texts += backbone.generate(examples[part], features[part], size.new)

        seconds, most = timed(answer, backbone.device, 1)
        rows.append(
            {
                "what": "answering",
                "batch": batch,
                "subspaces": SUBSPACES,
                "questions": count,
                "answers": hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16],
                "new_tokens": size.new,
                "seconds": seconds,
                "tokens_per_second": count * size.new / seconds,
                "questions_per_second": count / seconds,
                "peak_bytes": most,
            }
        )
    one = rows[-1]["questions_per_second"]
    return [{**row, "times_batch_1": row["questions_per_second"] / one} for row in rows]


def switching(kit: Any, repeats: int = 5) -> dict[str, Any]:
    """Another client's tensors into the slot, and what was trained out of it: what stands between two clients."""
    backbone, adapters, _, _ = kit
    where = next(iter(backbone.model.parameters())).data_ptr()
    clients = [{n: t + 1e-3 * k for n, t in adapters.read().items()} for k in range(2)]
    turn = iter(range(10**6))
    seconds, _ = timed(lambda: adapters.load(clients[next(turn) % 2]), backbone.device, repeats)
    reading, _ = timed(adapters.read, backbone.device, repeats)
    same = next(iter(backbone.model.parameters())).data_ptr() == where
    size = sum(t.nbytes for t in clients[0].values())
    return {
        "what": "client switch",
        "bytes": size,
        "load_seconds": seconds,
        "read_seconds": reading,
        "model_reloaded": not same,
    }


def measured(size_name: str, device: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Everything, as it is written to the JSON file."""
    size = SIZES[size_name]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        kit = build(size_name, device, Path(folder), overrides)
        built = time.perf_counter() - begin
    backbone = kit[0]
    found = device_of(device, None, torch.get_num_threads())
    known = peak_of(found.name) is not None or device == "cpu"
    rows = [numbers(kit, size)]
    rows += [
        training(kit, size, micro, checkpointing, found.peak if known else None)
        for checkpointing in (True, False)
        for micro in size.micro
    ]
    rows += [*answering(kit, size), switching(kit)]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "size": size_name,
        "device": found.name,
        "device_bytes": found.memory,
        "peak_tflops": found.peak / 1e12 if known else None,
        "dtype": str(backbone.dtype),
        "parameters": kit[2].language + kit[2].vision.parameters + kit[2].projector,
        "build_seconds": built,
        "versions": versions(backbone.device),
        "rows": rows,
    }


#: Of a row: what says which measurement it is, and what two versions of the code must agree in.
_NAMED, _EQUAL = ("what", "micro_batch", "checkpointing", "batch"), ("loss", "gradient_norm", "answers")


def compared(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], bool]:
    """A line for each row of two results, and whether they hold the same numbers.

    Raises:
        ValueError: the results are of different devices or sizes, or rows have no counterpart.
    """
    tables = [{tuple(row.get(n) for n in _NAMED): row for row in result["rows"]} for result in (old, new)]
    for key in ("device", "size"):
        if old[key] != new[key]:
            raise ValueError(f"{key}: {old[key]!r} against {new[key]!r}; measure both versions on one machine")
    if tables[0].keys() != tables[1].keys():
        raise ValueError(f"rows differ: {sorted(map(str, tables[0].keys() ^ tables[1].keys()))}; measure both again")
    lines, same = [], True
    for name, before in tables[0].items():
        after = tables[1][name]
        seconds = [row.get("seconds", row.get("load_seconds")) for row in (before, after)]
        times = [] if None in seconds else [f"{seconds[0]:.4g} s -> {seconds[1]:.4g} s"]
        values = [f"{k} {before[k]} {'=' if before[k] == after[k] else '!='} {after[k]}" for k in _EQUAL if k in before]
        same &= all(before[k] == after[k] for k in _EQUAL if k in before)
        lines.append("  ".join([" ".join(str(n) for n in name if n is not None), *times, *values]))
    return lines, same


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save, compare; 1 if an older version computed other numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="toy")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1 or cpu")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="of the configuration (repeatable)")
    parser.add_argument("--json", type=Path, help="also save here")
    parser.add_argument("--against", type=Path, help="what --json saved in another version of the code: compare")
    args = parser.parse_args(argv)
    before = None if args.against is None else json.loads(args.against.read_text(encoding="utf-8"))
    found = measured(args.size, args.device, args.set)
    text = json.dumps(found, indent=1)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    if before is None:
        return 0
    try:
        lines, same = compared(before, found)
    except ValueError as error:
        parser.error(f"--against {args.against}: {error}")
    print("\n".join([*lines, "the same numbers" if same else "OTHER NUMBERS (!= above)"]))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
