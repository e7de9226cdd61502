"""Variants of greedy answers, each by the product's own switches: who decodes, what is mixed, which batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from fcit import seeding
from fcit.config.kinds import Decoder
from fcit.config.schema import Evaluation
from fcit.models.decoding.batches import Batches
from fcit.models.decoding.capture import CudaGraphs
from fcit.models.decoding.greedy import Greedy
from tests.perf import gpu, subspaces
from tests.perf.variants import Column, Row, Variant, release, synchronise

COLUMNS = (
    Column("batch", "batch"),
    Column("subspaces", "subspaces"),
    Column("prefill, s", "prefill_seconds", form=".3f"),
    Column("ms a token", "step_ms", form=".1f"),
    Column("16 tokens, s", "seconds_16_new", form=".2f"),
    Column("peak GB", "peak_bytes", 1e-9, ".1f"),
    Column("first token equal %", "first_equal", 100, ".0f"),
    Column("tokens equal %", "tokens_equal", 100, ".0f"),
)
#: Questions at a time and tokens of an answer, by size.
BATCHES, NEW = {"7b": (64, 16, 1), "toy": (4, 2, 1)}, {"7b": 24, "toy": 6}
#: Batches of questions that have different lengths.
UNEVEN = 4

Ask = Callable[[int], list[list[int]]]


class Decoding:
    """A model that answers with a mixture of subspaces, and transformers' answers by subspaces, weights and batch."""

    def __init__(self, kit: Any, size: str) -> None:
        self.backbone, self.adapters = kit[:2]
        self.size, self.new = gpu.SIZES[size], NEW[size]
        self.answers: dict[tuple[int, bool, int], np.ndarray] = {}
        #: Those of our decoder with the mixture in the backbone's number format, uncompiled.
        self.uncompiled: dict[tuple[int, bool, int], np.ndarray] = {}
        for model in (self.backbone.model, self.backbone.model.get_base_model()):
            model.generation_config.eos_token_id = None  # random weights: every answer has its full length

    def load(self, count: int, as_backbone: bool) -> None:
        """Put this many subspaces into the mixture."""
        rng = seeding.generator(0, "perf-levers")
        lora = {n: tuple(p.shape) for n, p in self.adapters.trainable.items() if ".lora_" in n}
        first = {n: rng.normal(0, 0.01, shape).astype(np.float32) for n, shape in lora.items()}
        rolled = [{n: np.roll(t, k, axis=-1) for n, t in first.items()} for k in range(count)]
        self.adapters.load_mixture(rolled, self.adapters.base_projector(), as_backbone)

    @contextmanager
    def mixed(self, batch: int, count: int, one_task: bool, negligible: float) -> Iterator[None]:
        """Each question's weights: of one task, whose two subspaces have nearly all, or of any task."""
        weights = subspaces.mix(count, batch)
        if not one_task:
            weights = seeding.generator(0, "perf-mix").dirichlet([0.3] * count, batch).astype(np.float32)
        with self.adapters.mixed(weights, negligible):
            yield

    def agree(self, row: Row, key: tuple[int, bool, int], tokens: np.ndarray) -> None:
        """How many tokens are those of transformers: all of them, the first of each answer, and those of steps."""
        if key in self.answers:
            same = tokens == self.answers[key]
            row |= {"tokens_equal": float(same.mean()), "first_equal": float(same[:, 0].mean())}
            row["next_equal"] = next_equal(tokens, self.answers[key])

    def captures(self) -> int:
        """How many steps the decoder at hand has captured as CUDA graphs."""
        greedy = self.backbone.answering.greedy
        return greedy.capture.captured if greedy is not None and isinstance(greedy.capture, CudaGraphs) else 0

    def captured(self, row: Row, tokens: np.ndarray, ask: Ask) -> None:
        """How many steps were captured as CUDA graphs, and how many of their tokens steps that are not say, too."""
        answering = self.backbone.answering
        greedy = answering.greedy
        if greedy is None or not isinstance(greedy.capture, CudaGraphs):
            return
        row["captured_steps"] = greedy.capture.captured
        greedy.release()
        answering.greedy = Greedy(self.backbone.family.language, answering.rows)
        try:
            row["uncaptured_equal"] = next_equal(np.array(ask(self.new)), tokens)
        finally:
            answering.release()
            del answering.greedy  # the next one captures, and counts, anew


def next_equal(tokens: np.ndarray, wanted: np.ndarray) -> float:
    """The share of equal tokens among those that follow an equal beginning of their answer; 0 if there are none.

    The first tokens, which are those of prompts, are not counted, nor is what comes after a difference.

    Args:
        tokens: ``(B, T)``.
        wanted: ``(B, T)``.
    """
    same = tokens == wanted
    follows = np.logical_and.accumulate(same, axis=1)[:, :-1]
    return float(same[:, 1:][follows].mean()) if follows.any() else 0.0


def seconds(work: Callable[[], Any]) -> float:
    """Seconds until the device has done it."""
    synchronise()
    begin = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - begin


def timed(row: Row, new: int, ask: Ask) -> np.ndarray:
    """Time the first token and all of them, each after calls that are not counted; returns the tokens."""
    # The second captures what is left; room for one token only is another shape, for which layers are compiled again.
    row["first_seconds"] = sum(seconds(partial(ask, count)) for count in (new, new, 1))
    first, whole = seconds(lambda: ask(1)), seconds(lambda: ask(new))
    step = (whole - first) / (new - 1)
    row |= {"prefill_seconds": first, "step_ms": step * 1e3, "seconds_16_new": first + 15 * step}
    return np.array(ask(new))


def _variant(
    name: str,
    means: str,
    batch: int,
    count: int = gpu.SUBSPACES,
    *,
    decoder: Decoder = "static",
    as_backbone: bool = False,
    one_task: bool = False,
    negligible: float = 0.0,
    captured: bool = False,
    compiled: bool = False,
    limit: float = 40.0,
) -> Variant[Decoding]:
    """Greedy answers; ``captured``: on CUDA they are compared with those of steps that are not captured."""

    def work(decoding: Decoding, row: Row) -> None:
        decoding.load(count, as_backbone)
        row |= {"batch": batch, "subspaces": count}
        examples, features = gpu.records(decoding.backbone, decoding.size, batch, answered=False)
        answering, layers = decoding.backbone.answering, decoding.backbone.layers
        layers.begin()
        before = decoding.captures()
        ways = answering.compiled() if compiled else nullcontext()
        with decoding.mixed(batch, count, one_task, negligible), answering.by(decoder), ways:

            def ask(new: int) -> list[list[int]]:
                return decoding.backbone.tokens(examples, features, new)

            tokens = timed(row, decoding.new, ask)
            if captured:
                decoding.captured(row, tokens, ask)
            if compiled:
                row["captured_more"] = decoding.captures() - before
        key = count, one_task, batch
        if compiled:
            row |= {"ran_compiled": layers.used, "compile_failed": layers.failed}
            if key in decoding.uncompiled:
                row["uncompiled_equal"] = next_equal(tokens, decoding.uncompiled[key])
                row["uncompiled_first_equal"] = float((tokens == decoding.uncompiled[key])[:, 0].mean())
        elif as_backbone:
            decoding.uncompiled[key] = tokens
        if decoder == "transformers":
            decoding.answers[key] = tokens
        else:
            decoding.agree(row, key, tokens)
        answering.release()
        release()

    return Variant(name, means, work, limit, needs=45.0 if compiled else 10.0)


def _uneven(name: str, means: str, batch: int, by_length: bool) -> Variant[Decoding]:
    """Seconds are those of one of the batches."""

    def work(decoding: Decoding, row: Row) -> None:
        decoding.load(gpu.SUBSPACES, as_backbone=True)
        row |= {"batch": batch, "subspaces": gpu.SUBSPACES}
        backbone, number = decoding.backbone, UNEVEN * batch
        examples, features = gpu.records(backbone, decoding.size, number, answered=False, uneven=True)
        batches = Batches(Evaluation(batch_size=batch, by_length=by_length), backbone.answering)

        def answered(new: int) -> None:
            def answer(rows: list[int]) -> list[str]:
                with decoding.mixed(len(rows), gpu.SUBSPACES, one_task=True, negligible=0.0):
                    return backbone.generate([examples[n] for n in rows], features[rows], new)

            batches.answered(examples, new, answer)

        row["first_seconds"] = seconds(lambda: answered(2))
        row["seconds_16_new"] = seconds(lambda: answered(16)) / UNEVEN
        backbone.answering.release()

    return Variant(name, means, work, needs=10.0)


def _static_cache(batch: int) -> Variant[Decoding]:
    """transformers' own static cache, which runs do not use."""

    def work(decoding: Decoding, row: Row) -> None:
        decoding.load(gpu.SUBSPACES, as_backbone=False)
        row |= {"batch": batch, "subspaces": gpu.SUBSPACES}
        backbone = decoding.backbone
        with torch.no_grad(), decoding.mixed(batch, gpu.SUBSPACES, one_task=False, negligible=0.0):
            inputs = backbone._inputs(*gpu.records(backbone, decoding.size, batch, answered=False))

            def ask(new: int) -> list[list[int]]:
                return backbone.model.generate(
                    inputs_embeds=inputs["inputs_embeds"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=new,
                    do_sample=False,
                    pad_token_id=backbone.tokenizer.pad_token_id,
                    cache_implementation="static",
                ).tolist()

            decoding.agree(row, (gpu.SUBSPACES, False, batch), timed(row, decoding.new, ask))

    means = "generate(cache_implementation='static'), which compiles its step"
    # 47 s of compiling where it was measured: what is begun has time to end.
    return Variant(f"transformers' static cache, batch {batch}", means, work, 90.0, needs=75.0)


def static_name(batch: int) -> str:
    """The variant of our decoder, as runs use it, with so many questions at a time."""
    return f"static, batch {batch}"


def compiled_name(batch: int) -> str:
    """The same through compiled layers, with the mixture in the backbone's number format."""
    return f"static, mixture as backbone, compiled, batch {batch}"


def variants(size: str) -> list[Variant[Decoding]]:
    """All variants, in the order in which they are measured."""
    most, some, one = BATCHES[size]
    static, low = "evaluation.decoder: static", "evaluation.mixture: backbone"
    rows = [
        _variant(f"one by one, batch {one}", "transformers' generate, as LLaVA's own loop", one, decoder="transformers")
    ]
    rows += [
        _variant(f"transformers, batch {count}", "evaluation.decoder: transformers", count, decoder="transformers")
        for count in (some, most)
    ]
    rows += [_variant(static_name(count), static, count, captured=True) for count in (one, some, most)]
    rows += [
        _variant(f"static, mixture as backbone, batch {count}", f"{static}, {low}", count, as_backbone=True)
        for count in (one, some, most)
    ]
    compiled = f"{static}, {low}, evaluation.compile: on"
    rows += [
        _variant(compiled_name(count), compiled, count, as_backbone=True, compiled=True, limit=90.0)
        for count in ((most, some) if size == "7b" else (most,))  # a C++ compiler takes half a minute
    ]
    for count in (1, 8, 32):
        what = f"{count} subspace{'s' if count > 1 else ''}"
        task = f"{static}, {low}, {what}, questions of one task"
        rows.append(_variant(f"static, {what}", task, some, count, as_backbone=True, one_task=True))
        rows.append(
            _variant(
                f"static, {what}, negligible left out",
                f"{task}, method.negligible: {subspaces.NEGLIGIBLE}",
                some,
                count,
                as_backbone=True,
                one_task=True,
                negligible=subspaces.NEGLIGIBLE,
            )
        )
    rows += [
        _uneven(
            f"uneven, {'by length' if by_length else 'as in the file'}",
            f"{static}, {low}, {UNEVEN} batches of different lengths, evaluation.by_length: {str(by_length).lower()}",
            some,
            by_length,
        )
        for by_length in (False, True)
    ]
    return [*rows, _static_cache(some)]
