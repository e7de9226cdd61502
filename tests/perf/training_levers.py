"""Variants of a training step: the product's own switches, old and new, and what else was tried beside them.

``as is`` is how runs trained before there were the switches; ``autocast, compiled`` is how they train on a GPU now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from clients.worker.micro_batches import OutOfMemory, explained
from fcit import seeding
from fcit.config import Training
from fcit.doctor.devices import peak_of
from fcit.models.steps import computed
from tests.perf import gpu
from tests.perf.variants import Column, Row, Variant, compiled, release, reset_peak, synchronise

COLUMNS = (
    Column("records", "records"),
    Column("ms a step", "seconds", 1e3, ".0f"),
    Column("tokens/s", "tokens_per_second", form=".0f"),
    Column("MFU %", "mfu", 100, ".1f"),
    Column("first step, s", "first_seconds", form=".1f"),
    Column("peak GB", "peak_bytes", 1e-9, ".1f"),
    Column("gradient gap, LoRA %", "gradient_gap_lora", 100, ".1f"),
    Column("projector %", "gradient_gap_projector", 100, ".1f"),
)
#: Records of the gradients that are compared, and optimiser steps that are not counted.
_CHECKED, _WARM = 2, 2


class TrainingStep:
    """A model whose training step is measured, and the gradients it should have."""

    def __init__(self, kit: Any, size: str) -> None:
        self.kit, self.size = kit, gpu.SIZES[size]
        self.backbone, self.adapters = kit[:2]
        self.layers = list(self.backbone.model.get_base_model().model.language_model.layers)
        self.start = self.adapters.read()
        self.reference: dict[str, torch.Tensor] = {}
        cuda = self.backbone.device.type == "cuda"
        self.peak = peak_of(torch.cuda.get_device_name(self.backbone.device)) if cuda else None

    def fill(self) -> None:
        """Factors away from their start, where A has no gradient; the projector as the backbone came with it."""
        random = seeding.generator(0, "perf-levers")
        lora = {n: tuple(p.shape) for n, p in self.adapters.trainable.items() if ".lora_" in n}
        self.adapters.load(
            self.start | {n: random.normal(0, 0.01, shape).astype(np.float32) for n, shape in lora.items()}
        )

    def timed(self, row: Row, count: int, ways: Sequence[Way], uneven: bool) -> None:
        """Optimiser steps over so many records: the first, which may compile, and the median of those after two."""
        self.fill()
        examples, features = gpu.records(self.backbone, self.size, count, answered=True, uneven=uneven)
        times, layers = [], self.backbone.layers
        layers.begin()
        layers.apart = False
        with ExitStack() as stack:
            stack.enter_context(seeding.torch_seeded(0, "perf-levers"))
            parameters = stack.enter_context(self.adapters.training())
            for way in ways:
                stack.enter_context(way(self))
            step = gpu.optimiser_step(self.backbone, parameters, examples, features)
            with explained("in a training step", "--size"):
                for _ in range(_WARM + self.size.repeats):
                    synchronise()
                    begin = time.perf_counter()
                    step()
                    synchronise()
                    times.append(time.perf_counter() - begin)
            row |= {"ran_compiled": layers.used, "compile_failed": layers.failed, "apart": layers.apart}
        seconds, tokens = float(np.median(times[_WARM:])), sum(len(e.tokens) for e in examples)
        row |= {"records": count, "tokens": tokens, "first_seconds": times[0], "seconds": seconds, "steps": times}
        row["tokens_per_second"] = tokens / seconds
        if self.peak is not None:
            row["mfu"] = gpu.useful_flops(self.kit, examples) / seconds / (self.peak[0] * 1e12)

    def gradients(self, ways: Sequence[Way]) -> tuple[float, dict[str, torch.Tensor]]:
        """Loss of a small batch without dropout, and its gradients by name, float32 on the CPU."""
        self.fill()
        examples, features = gpu.records(self.backbone, self.size, _CHECKED, answered=True)
        with ExitStack() as stack:
            stack.enter_context(without_dropout(self))
            stack.enter_context(self.adapters.training())
            for way in ways:
                stack.enter_context(way(self))

            def once() -> torch.Tensor:
                for parameter in self.adapters.trainable.values():
                    parameter.grad = None
                loss = self.backbone.loss(examples, features)
                loss.backward()
                return loss.detach()

            loss = self.backbone.layers.through(once)
            named = {n: p.grad for n, p in self.adapters.trainable.items() if p.grad is not None}
            return float(loss), {n: grad.detach().float().cpu().clone() for n, grad in named.items()}

    def compare(self, row: Row, ways: Sequence[Way]) -> None:
        """Relative distance of the gradients from the reference's, over LoRA factors and over the projector."""
        begin = time.perf_counter()
        row["loss_without_dropout"], gradients = self.gradients(ways)
        row["gradient_check_seconds"] = time.perf_counter() - begin
        for part, mark in (("lora", ".lora_"), ("projector", "projector")):
            names = [n for n in self.reference if mark in n]
            if names:
                gap = sum(((gradients[n] - self.reference[n]).double() ** 2).sum() for n in names)
                whole = sum((self.reference[n].double() ** 2).sum() for n in names)
                row[f"gradient_gap_{part}"] = float(gap / whole) ** 0.5


Way = Callable[[TrainingStep], AbstractContextManager[Any]]


@contextmanager
def keys(step: TrainingStep, **training: Any) -> Iterator[None]:
    """Keys below ``training:``, as a run computes its steps with them."""
    with computed(step.backbone, Training(**training)):
        yield


OLD = partial(keys, adapter_products="float32", compile="off")
AUTOCAST = partial(keys, adapter_products="backbone", compile="off")
NEW = partial(keys, adapter_products="backbone", compile="on")


@contextmanager
def tf32(step: TrainingStep, enabled: bool = True) -> Iterator[None]:
    """Products of float32 matrices in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def compiled_layers(step: TrainingStep, **options: Any) -> Iterator[None]:
    """Every decoder layer through torch.compile."""
    with compiled(step.layers, **options):
        yield


@contextmanager
def without_dropout(step: TrainingStep) -> Iterator[None]:
    """The adapters drop nothing."""
    modules = step.backbone.model.named_modules()
    drops = [m for name, m in modules if isinstance(m, nn.Dropout) and ".lora_dropout." in name]
    before = [m.p for m in drops]
    for module in drops:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in zip(drops, before, strict=True):
            module.p = p


def _reference(step: TrainingStep, row: Row) -> None:
    lower = [p for p in step.backbone.model.parameters() if p.dtype == torch.bfloat16]
    for p in lower:
        p.data = p.data.float()
    try:
        loss, step.reference = step.gradients([partial(tf32, enabled=False), OLD])
    finally:
        for p in lower:
            p.data = p.data.bfloat16()
    norm = float(sum((g.double() ** 2).sum() for g in step.reference.values())) ** 0.5
    row |= {"records": _CHECKED, "loss_without_dropout": loss, "gradient_norm": norm}


def _variant(
    name: str, means: str, *ways: Way, uneven: bool = False, check: bool = True, limit: float = 60.0, needs: float = 8.0
) -> Variant:
    def work(step: TrainingStep, row: Row) -> None:
        count = step.size.micro[-1]
        while True:
            try:
                step.timed(row, count, ways, uneven)
                break
            except OutOfMemory:
                if count == 1:
                    raise
            count //= 2
            release()
            reset_peak()
        if check and step.reference:
            release()
            step.compare(row, ways)

    return Variant(name, means, work, limit, needs)


def variants(size: str) -> list[Variant[TrainingStep]]:
    """All variants, in the order in which they are measured."""
    slow = partial(_variant, limit=70.0, needs=20.0)
    tuned = partial(compiled_layers, mode="max-autotune-no-cudagraphs")
    cast = "training.adapter_products: backbone"
    compiled_too = f"{cast}, training.compile: on"
    again = "training.checkpointing: true"
    return [
        Variant(
            "reference",
            "weights in float32, no TF32, two records: the gradients that gaps are measured from",
            _reference,
            60.0,
        ),
        _variant("as is", "training.adapter_products: float32, training.compile: off", OLD),
        _variant("autocast", cast, AUTOCAST),
        _variant("as is, checkpointing", f"as is, {again}", partial(OLD, checkpointing=True)),
        _variant("autocast, checkpointing", f"{cast}, {again}", partial(AUTOCAST, checkpointing=True)),
        slow("autocast, compiled", compiled_too, NEW),
        slow("autocast, compiled, checkpointing", f"{compiled_too}, {again}", partial(NEW, checkpointing=True)),
        _variant("TF32", "as is, but float32 products in TF32", OLD, tf32),
        slow("TF32, compiled", "TF32, training.compile: on", partial(OLD, compile="on"), tf32),
        _variant("as is, uneven", "as is, rows of different length", OLD, uneven=True, check=False),
        _variant("autocast, uneven", f"{cast}, rows of different length", AUTOCAST, uneven=True, check=False),
        slow(
            "autocast, compiled, uneven",
            f"{compiled_too}, rows of different length",
            NEW,
            uneven=True,
            check=False,
        ),
        _variant(
            "autocast, autotuned",
            f"{cast}, layers compiled with max-autotune",
            AUTOCAST,
            tuned,
            check=False,
            limit=150.0,
            needs=60.0,
        ),
    ]
