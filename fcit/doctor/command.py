"""`fcit doctor --config FILE`: does it fit, what goes where, how long will it take, and what would help."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from fcit import registry
from fcit.config import RunConfig
from fcit.config.per_client_checks import answerers
from fcit.data.benchmark import Benchmark, open_benchmark
from fcit.doctor import timing
from fcit.doctor.devices import Device, device_of
from fcit.doctor.fitting import gb, hours, machine_problems, per_device, smallest, too_large, within, workers_of
from fcit.doctor.images import Looked, look
from fcit.doctor.models import check_models
from fcit.doctor.timing import Speed, Work
from fcit.errors import EXIT_OK, ConfigError, FCITError
from fcit.methods.base import Method
from fcit.models import estimate
from fcit.models.estimate import Lengths
from fcit.models.families.base import AnySize
from fcit.models.features import features_size
from fcit.models.judging import judge_of
from fcit.models.memory import is_out_of_memory
from fcit.models.shapes import HERE, Shape, shape_of
from fcit.models.steps import compiles

#: Assumed: share of a GPU's peak that training reaches with compiled layers and without, and answering; and that
#: answering in batches reaches of its bandwidth.
COMPILED, REACHED, STREAMED = 0.5, 0.35, 0.5
#: The same of what matrix products reach on a CPU: in a demo run of the built-in model (1.45 minutes on one core).
ON_CPU = 0.25
_TYPICAL = " x ".join(map(str, AnySize.typical))  # pixels of an image whose size is not known
_WIDTH = 72  # of the tables, so that their titles stand on one line


def doctor(config: RunConfig, gpu_gb: float | None, probe: bool, console: Console) -> int:
    """Print what a configuration needs.

    Raises:
        ConfigError: its models would not load, or it cannot fit; the sentence says what would.
    """
    if gpu_gb is not None and config.backbone.device == "cpu":
        config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"device": "cuda"})})
    models = check_models(config.backbone, estimate.sees(config))
    if models.problems:
        raise ConfigError(models.problems, config.name)
    shape = shape_of(config.backbone, config.adapter.targets)
    problems = _too_short(config, shape) if not models.local else []
    device = device_of(config.backbone.device, gpu_gb, config.backbone.threads)
    with console.status("counting records"):
        data = _data(config, models.local)
    subspaces = _subspaces(config)
    shape, lengths = _largest(shape, data, config.backbone.max_length)
    workers = per_device(config)
    room = device.memory / workers
    config = estimate.with_batches(config, shape, subspaces, room, lengths)
    config = estimate.planned(config, shape, subspaces, within(room), lengths)
    size = estimate.largest_micro(config, shape, subspaces, within(room), lengths)
    shown = size or smallest(config)
    console.print(_device_table(config, shape, subspaces, shown, lengths, device, workers))
    console.print(_machine_table(config, shape, subspaces, shown, lengths, data))
    problems += [] if size else [too_large(config, shape, subspaces, room, lengths, device)]
    problems += machine_problems(config, shape, subspaces, shown, lengths)
    if problems:
        raise ConfigError(problems, config.name)
    can_run = device.here and models.local and shape.source.startswith(HERE)  # nothing is downloaded for it
    with console.status("timing a step"):
        try:
            speed = timing.measured(config, lengths, shown, subspaces, data.work) if probe and can_run else None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(_no_room(shown, device, error), config.name) from None
    console.print(_time_table(config, shape, lengths, device, data, speed))
    again = ", activations computed again" if config.training.checkpointing else ""
    unknown = [f"data: {data.why}"] if data.why else []
    for line in [*models.lines, *unknown, *_pictured(config, shape, data)]:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(
        f"{config.name}: fits on {device.name}, {shown} records at a time{again}; sizes from {shape.source}; "
        f"{'the longest record has' if data.longest else 'assumed'} {lengths.text} tokens of text and {lengths.answer} "
        f"of an answer beside {lengths.pictured(shape)} of {'its images' if data.images else 'an image'}, "
        f"{lengths.record(shape):,} together (backbone.max_length: {config.backbone.max_length:,})",
        highlight=False,
        soft_wrap=True,
    )
    return EXIT_OK


def _no_room(records: int, device: Device, error: BaseException) -> str:
    """What to do where the estimate has room and a step that is timed has none."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
    return (
        f"training.micro_batch: memory ran out when a step was timed ({reason}), although by the estimate {records} "
        f"records at a time fit into {device.name} where nothing else uses it; end what does (nvidia-smi lists it), "
        "set fewer, or time nothing (--no-probe)"
    )


def _subspaces(config: RunConfig) -> int:
    """Subspaces at the end: one for a method that trains the same one in every stage, else as many as tasks."""
    method = registry.resolve("method", config.method["name"])(config)
    if method.common(0) is not None and method.common(0) == method.common(1):
        return 1
    return estimate.stages(config)


@dataclass(frozen=True)
class Data:
    """What is known of a run's data.

    Attributes:
        work: counted in them; None: they are not here, or cannot be used, and ``why``.
        longest: tokens of the longest record, and of the longest answer; None: no model has tokenised them.
        images: their sizes, where the model sees images at their own.
    """

    work: Work | None = None
    longest: tuple[int, int] | None = None
    images: Looked | None = None
    why: str = ""


def _data(config: RunConfig, here: bool) -> Data:
    """What is known of a run's data.

    Args:
        here: whether the model is on this machine, so that records can be tokenised; nothing is downloaded for it.
    """
    try:
        benchmark = open_benchmark(config)
    except FCITError as error:
        return Data(why=_first(error))
    work, longest, why = None, None, ""
    try:
        if here:
            benchmark.judged_by(partial(judge_of, config.backbone))
        benchmark.prepare()
        if here and benchmark.spec.source == "mini":  # rendered here: a run takes it as it is
            benchmark.look()
        train = [verdict for (_, split), verdict in benchmark.verdicts.items() if split == "train" and verdict.count]
        longest = (max(v.longest for v in train), max(v.most for v in train)) if train else None
        work = timing.counted(benchmark, config)
    except FCITError as error:
        why = _first(error)
    return Data(work, longest, _images(benchmark, config) if here else None, why)


def _images(benchmark: Benchmark, config: RunConfig) -> Looked | None:
    """Sizes of the images, also where records do not fit into ``max_length``; None where they cannot be read."""
    try:
        return look(benchmark, config)
    except FCITError:  # the same problem as that of the records, which is told
        return None


def _first(error: FCITError) -> str:
    """The first problem, in a line."""
    if not isinstance(error, ConfigError) or len(error.problems) == 1:
        return str(error).splitlines()[0]
    return f"{error.problems[0]}; and {len(error.problems) - 1} more problems"


def _largest(shape: Shape, data: Data, longest: int) -> tuple[Shape, Lengths]:
    """The model's sizes for the largest image, and whole conversations: what is largest decides what fits.

    Args:
        longest: ``backbone.max_length``.
    """
    images = data.images.record if data.images else None
    if data.images is not None:
        tokens = round(shape.vision.tokens * data.images.most / shape.image_tokens)
        shape = replace(shape, vision=replace(shape.vision, tokens=tokens))
    # Where nothing was tokenised a record has the assumed text, as far as a run would take it.
    assumed = Lengths(images=images)
    pictured = assumed.pictured(shape)
    room = max(2, longest - pictured)
    whole, answer = data.longest or (min(assumed.record(shape), longest), min(assumed.answer, room - 1))
    return shape, Lengths(max(1, whole - answer - pictured), answer, images)


def _too_short(config: RunConfig, shape: Shape) -> list[str]:
    """Where no record can be tokenised here: whether ``max_length`` has room for an image at all."""
    if shape.image_tokens < config.backbone.max_length:
        return []
    return [
        f"backbone.max_length: {config.backbone.max_length:,} tokens, and an image has {shape.image_tokens:,} "
        f"(of {_TYPICAL} pixels where the model sees images at their own size); raise it, or bound images with "
        "backbone.max_pixels"
    ]


def _pictured(config: RunConfig, shape: Shape, data: Data) -> list[str]:
    """What the images of the data are to the model, where that depends on their sizes."""
    if shape.vision.together > 1:  # all become one size
        return []
    if data.images is None:
        return [
            f"images: their sizes are not known here; assumed {_TYPICAL} pixels each, "
            f"{shape.image_tokens:,} tokens in a prompt"
        ]
    images = data.images
    looked = f"all {images.images:,}" if images.whole else f"{images.images:,} of about {images.all:,.0f}, a sample,"
    each = estimate.feature_bytes(config, shape, images.numbers)
    return [
        f"images: {looked} looked at: {images.least:,} to {images.most:,} tokens each in a prompt, {images.mean:,.0f} "
        f"on average, {images.record:,} in one record at most; kept features of one take {gb(each)} on average"
    ]


# ---------------------------------------------------------------------- time


def _assumed(config: RunConfig, shape: Shape, lengths: Lengths, device: Device) -> Speed:
    """Training by FLOPs; answers also by how often all weights are read: once per token of a batch."""
    cpu = config.backbone.device == "cpu"
    decides = registry.resolve("method", config.method["name"])(config).layout.decides
    compiled = compiles(config.training, config.backbone, [torch.device("cpu" if cpu else "cuda")], decides)
    reached = ON_CPU if cpu else REACHED
    trained = COMPILED if compiled and not cpu else reached
    record = estimate.training_flops(config, shape, lengths) / (trained * device.peak)
    weights = estimate.memory(config, shape, 1, 1, lengths).always["language model"]
    read = lengths.answer * weights / (STREAMED * device.bandwidth) / config.evaluation.at_once
    question = estimate.answering_flops(config, shape, lengths) / (reached * device.peak) + read
    of = f"{device.peak / 1e12:.2g} TFLOP/s measured here" if cpu else f"{device.peak / 1e12:.3g} TFLOP/s"
    known = f"assumed {trained:.0%} of {of}, answering {reached:.0%}"
    return Speed(record, question, known)


def _parts(config: RunConfig, work: Work, speed: Speed) -> dict[str, float]:
    """Seconds of a run by what for, with its workers side by side."""
    workers = workers_of(config)
    # Kept features are made once; without a cache an image is encoded whenever it is needed.
    looks = work.seen if config.backbone.feature_cache == "disk" else work.records + work.questions
    seconds = {
        f"training on {work.records:,.0f} records, {workers} worker{'s' * (workers > 1)}": work.records * speed.record,
        f"answering {work.questions:,} questions": work.questions * speed.question,
        f"looking at {looks:,.0f} images, at most": looks * speed.image,
    }
    return {what: value / workers for what, value in seconds.items()}


class Estimates:
    """Seconds that runs will take, by formula alone; the data of several runs are counted once where they are alike."""

    #: Sections that what is counted depends on.
    _COUNTED = frozenset(
        {"benchmark", "setting", "stream", "seed", "data", "federation", "asynchronous", "evaluation", "backbone"}
    )

    def __init__(self) -> None:
        self._known: dict[str, Data] = {}

    def of(self, config: RunConfig) -> float | None:
        """Seconds of a run; None if its models or data are not here, or cannot be used."""
        try:
            models = check_models(config.backbone, estimate.sees(config))
            if models.problems:
                return None
            shape = shape_of(config.backbone, config.adapter.targets)
        except FCITError:
            return None
        data = self._data(config, models.local)
        if data.work is None:
            return None
        shape, lengths = _largest(shape, data, config.backbone.max_length)
        device = device_of(config.backbone.device, None, config.backbone.threads)
        return sum(_parts(config, data.work, _assumed(config, shape, lengths, device)).values())

    def _data(self, config: RunConfig, here: bool) -> Data:
        method = registry.resolve("method", config.method["name"])
        by_method = method.extra_rounds is not Method.extra_rounds or config.evaluation.personal is not None
        more = f"{config.method} {config.factors}" if by_method else f"{method.trains} {answerers(config)}"
        text = config.model_dump_json(include=set(self._COUNTED))
        key = f"{text} {config.training.epochs} {config.training.batch_size} {more}"
        if key not in self._known:
            self._known[key] = _data(config, here)
        return self._known[key]


# ---------------------------------------------------------------------- tables


def _device_table(
    config: RunConfig, shape: Shape, subspaces: int, micro: int, lengths: Lengths, device: Device, workers: int
) -> Table:
    memory = estimate.memory(config, shape, subspaces, micro, lengths)
    table = Table(title=f"{device.name}, {gb(device.memory)}", title_justify="left", min_width=_WIDTH)
    table.add_column("of one worker")
    table.add_column("memory", justify="right")
    parts = {
        "always": memory.always,
        f"training, {micro} at a time": memory.training,
        f"answering, {config.evaluation.at_once} at a time": memory.answering,
        f"looking at images, {shape.vision.together} at a time": memory.looking,
    }
    for title, part in parts.items():
        table.add_row(f"[bold]{title}[/bold]", f"[bold]{gb(sum(part.values()))}[/bold]")
        for name, size in part.items():
            table.add_row(f"  {name}", gb(size))
    table.add_section()
    each = f", each of {workers} workers" if workers > 1 else ""
    table.add_row(f"at most, with {subspaces} subspace{'s' * (subspaces > 1)}{each}", gb(memory.peak))
    return table


def _machine_table(config: RunConfig, shape: Shape, subspaces: int, micro: int, lengths: Lengths, data: Data) -> Table:
    folder, taken = features_size()
    table = Table(title="main memory and disk", title_justify="left", min_width=_WIDTH)
    table.add_column("what")
    table.add_column("size", justify="right")
    for title, part in (
        ("worker, main memory", estimate.worker_memory(config, shape, subspaces, micro, lengths)),
        ("server, main memory", estimate.server_memory(config, shape, subspaces)),
    ):
        table.add_row(f"[bold]{title}[/bold]", f"[bold]{gb(sum(part.values()))}[/bold]")
        for name, size in part.items():
            table.add_row(f"  {name}", gb(size))
    table.add_row("updates of a round, on disk", gb(estimate.spilled(config, shape)))
    if kept := estimate.remembered(config, shape, subspaces):
        table.add_row("what clients keep, on disk, all together", gb(kept))
    if config.backbone.feature_cache == "disk":
        limit = wanted = config.backbone.feature_cache_gb * 1e9
        whole = ""
        count = data.images.all if data.images else data.work.images if data.work else None
        if count is not None:
            size = count * estimate.feature_bytes(config, shape, data.images.numbers if data.images else None)
            whole, wanted = f" (all {count:,.0f}: {gb(size)})", min(limit, size)
        table.add_row(f"frozen features, at most backbone.feature_cache_gb{whole}", gb(wanted))
        table.add_row(f"  there already: {folder}", gb(taken))
    return table


def _time_table(
    config: RunConfig, shape: Shape, lengths: Lengths, device: Device, data: Data, speed: Speed | None
) -> Table:
    work = data.work
    speed = speed or _assumed(config, shape, lengths, device)
    table = Table(title=f"time ({speed.known})", title_justify="left", min_width=_WIDTH)
    table.add_column("what")
    table.add_column("time", justify="right")
    table.add_row("1000 training records", hours(1000 * speed.record))
    table.add_row("1000 questions", hours(1000 * speed.question))
    if work is None:
        table.add_row("the whole run: not known", "-")
        return table
    parts = _parts(config, work, speed)
    for what, seconds in parts.items():
        if seconds:
            table.add_row(what, hours(seconds))
    table.add_row("the whole run", hours(speed.start + sum(parts.values())))
    return table
