"""How long a run takes: its own records and questions, a few of each data set, timed here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fcit import config as configuration
from fcit import registry, seeding
from fcit.config import RunConfig
from fcit.config.async_checks import buffer_of
from fcit.config.kinds import epochs_of
from fcit.config.per_client_checks import answerers
from fcit.config.schema import Evaluation
from fcit.data.benchmark import Benchmark
from fcit.data.collate import images_of
from fcit.data.records import Record, TestRecord
from fcit.doctor.fitting import workers_of
from fcit.methods.base import Method
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.estimate import Lengths
from fcit.models.feature_store import BATCH
from fcit.models.layout import Layout
from fcit.models.patches import Features
from fcit.models.steps import computed

_COUNTED = 10  # clients whose shards are counted in files that others made; of what is rendered here, all
_TIMES = 3  # the middle one of so many counts
_LONG = 1.0  # seconds; what takes longer is hardly disturbed by others
_PATIENCE = 60.0  # seconds for one kind of measurement; a large model on a CPU is timed on fewer data sets


@dataclass(frozen=True)
class Trained:
    """What is trained on of one task: records in all rounds together, and a few of them."""

    records: float
    some: Sequence[Record]


@dataclass(frozen=True)
class Tested:
    """Questions of one data set in all stages together, a few of them, its longest answer allowed, and its size."""

    questions: int
    some: Sequence[TestRecord]
    longest: int
    size: int


@dataclass(frozen=True)
class Work:
    """How much a run does.

    Attributes:
        images: all images of the benchmark.
        seen: of these, the expected number that is encoded: training images of clients that are sampled, test images.
    """

    trained: list[Trained]
    tested: list[Tested]
    images: int
    seen: float
    image_root: Path

    @property
    def records(self) -> float:
        return sum(part.records for part in self.trained)

    @property
    def questions(self) -> int:
        return sum(part.questions for part in self.tested)


@dataclass(frozen=True)
class Speed:
    """Seconds per training record, question and image, and how that is known."""

    record: float
    question: float
    known: str
    image: float = 0.0
    start: float = 0.0  # seconds to load the model and to compile its layers


@dataclass
class _Sum:
    """Seconds weighted by how often they are spent."""

    seconds: float = 0.0
    weight: float = 0.0
    begin: float = field(default_factory=time.perf_counter)

    def add(self, seconds: float, weight: float) -> None:
        self.seconds += seconds * weight
        self.weight += weight

    @property
    def late(self) -> bool:
        return time.perf_counter() - self.begin > _PATIENCE

    @property
    def mean(self) -> float:
        return self.seconds / self.weight if self.weight else 0.0


def counted(benchmark: Benchmark, config: RunConfig) -> Work:
    """The work of a run, counted in its data: shards of a few clients, every test set.

    A client is among those sampled in R rounds of k out of n clients with probability 1 - (1 - k/n)^R.
    """
    federation, count = config.federation, config.federation.clients
    clients = range(0, count, 1 if benchmark.spec.source == "mini" else max(1, count // _COUNTED))
    method: Method = registry.resolve("method", config.method["name"])(config)
    slots = [task for stage in benchmark.stages for task in stage]
    # A server update of asynchronous runs, which is a round, takes another number of updates.
    share = buffer_of(config) / federation.clients_per_round if federation.mode == "async" else 1.0
    parts, means = list[Trained](), dict[int, tuple[float, Sequence[Record]]]()
    images = seen = 0.0
    for task in sorted(set(slots)):
        shards = [benchmark.shard(k, task) for k in clients]
        mean, some = sum(map(len, shards)) / len(shards), max(shards, key=len)[: config.training.batch_size]
        means[task] = mean, some
        if method.trains:
            times = slots.count(task) * federation.rounds * share
            parts.append(Trained(mean * times * epochs_of(config.training.epochs, [task]), some))
            seen += mean * federation.clients * (1 - (1 - 1 / federation.clients) ** times)
        images += mean * federation.clients
    for number, tasks in enumerate(benchmark.stages):
        extra = method.extra_rounds(number) if method.trains else None
        if extra is not None:  # timed as if their records were a task's
            epochs = epochs_of(method.training(number, federation.rounds).epochs, tasks)
            parts.append(Trained(extra.most * epochs * extra.count * len(tasks), parts[-1].some))
    tested: dict[str, int] = {}
    for stage in config.evaluation.stages(len(benchmark.stages)):
        for name in benchmark.evaluation(stage - 1):
            tested[name] = tested.get(name, 0) + answerers(config)
    for name, times in _untrained(benchmark, config).items():
        tested[name] = tested.get(name, 0) + times
    tests = {name: benchmark.test(name) for name in tested}
    questions = [
        Tested(
            times * len(tests[name]),
            tests[name][: config.evaluation.at_once],
            config.evaluation.longest(benchmark.owner(name).datasets[name].max_new_tokens),
            len(tests[name]),
        )
        for name, times in tested.items()
    ]
    shown = sum(map(len, tests.values()))
    for trained, count, name in _personal(benchmark, config, method, means):
        parts.append(trained)
        longest = config.evaluation.longest(benchmark.datasets[name].max_new_tokens)
        questions.append(Tested(count, tests[name][: config.evaluation.at_once], longest, size=1))
    return Work(parts, questions, round(images + shown), seen + shown, benchmark.image_root)


def _untrained(benchmark: Benchmark, config: RunConfig) -> dict[str, int]:
    """How often data sets are asked that are not trained (yet)."""
    evaluation, count = config.evaluation, benchmark.stage_count
    times = dict.fromkeys(benchmark.held_out, 1 + answerers(config) * len(evaluation.stages(count, held_out=True)))
    for stage in [0, *evaluation.stages(count)] if evaluation.unseen else []:
        trained = benchmark.evaluation(stage - 1) if stage else []
        for name in benchmark.evaluation(count - 1):
            if name not in trained:  # before the first stage the untouched model answers, once
                times[name] = times.get(name, 0) + (answerers(config) if stage else 1)
    return times


def _personal(
    benchmark: Benchmark, config: RunConfig, method: Method, means: Mapping[int, tuple[float, Sequence[Record]]]
) -> Iterator[tuple[Trained, int, str]]:
    """What clients' own models come to (``evaluation.personal``), by stage and task, at most.

    Args:
        means: by task the mean number of a shard's records that are trained on, and a few of them.

    Returns:
        what is trained on, the number of questions, and a data set that they are like.
    """
    settings, federation = config.evaluation.personal, config.federation
    if settings is None or method.pooled or not method.trains:
        return
    rule = registry.resolve("factors", config.factors)
    tuned = not (rule.per_client or rule.adds_itself)
    alone = (settings.alone or federation.rounds) if method.layout == Layout() else 0
    for stage in config.evaluation.stages(len(benchmark.stages)):
        tasks = list(dict.fromkeys(benchmark.stages[stage - 1]))
        clients = min(settings.clients, federation.clients) / len(tasks)
        for task in tasks:
            mean, some = means[task]
            kept = min(settings.most, mean * settings.share / (1 - settings.share))
            records = clients * (alone + tuned) * mean * epochs_of(config.training.epochs, [task])
            yield Trained(records, some), round(clients * (1 + tuned + bool(alone)) * kept), benchmark.tasks[task][0]


def measured(config: RunConfig, lengths: Lengths, micro: int, subspaces: int, work: Work | None) -> Speed:
    """Steps and batches of answers, timed.

    With ``work``, on the run's own records; else on texts of the assumed lengths. Pictures are blank (their features
    are made once and kept). A tuned model stops where the right answer ends, which the untouched one does not:
    as many tokens are generated as the longest right answer of a batch has. Half of the subspaces of the end are
    mixed, as in the middle of the run.

    Raises:
        ConfigError: the model cannot be loaded, so that no run would.
    """
    begin = time.perf_counter()
    backbone = Backbone(_threads(config), config.data.pictures)
    adapters = Adapters(backbone, config.adapter)
    start = time.perf_counter() - begin
    words, answer = "What is in this picture? " * (lengths.text // 8), "a small red cup " * (lengths.answer // 5)
    if work is None:
        record = Record.single("", words, answer)
        question = TestRecord("", ("",), words, answer)
        trained = [Trained(1.0, [record] * micro)]
        tested = [Tested(1, [question] * min(config.evaluation.at_once, 8), lengths.answer, size=1)]
    else:
        trained, tested = work.trained, work.tested
    root = None if work is None else work.image_root
    training = _training(config, backbone, adapters, trained, micro, root)
    method: Method = registry.resolve("method", config.method["name"])(config)
    with backbone.answering.by(method.answers_by):
        answering = _answering(backbone, adapters, tested, (subspaces + 1) // 2, config.evaluation, root)
    backbone.answering.release()
    known = "measured here, on blank images" + ("" if work is None else " and the run's own texts")
    looking = 0.0 if work is None else _looking(backbone, work)
    return Speed(training, answering, known, looking, start + backbone.layers.seconds)


def _threads(config: RunConfig) -> configuration.Backbone:
    """The backbone with the threads that a worker would have."""
    ray = config.federation.engine == "ray"
    if config.backbone.device != "cpu" or config.backbone.threads or not (ray or workers_of(config) > 1):
        return config.backbone
    return config.backbone.model_copy(update={"threads": config.ray.num_cpus if ray else 1})


def _training(
    config: RunConfig,
    backbone: Backbone,
    adapters: Adapters,
    trained: Sequence[Trained],
    micro: int,
    root: Path | None,
) -> float:
    """Seconds per record: forward and backward a micro-batch at a time, and a record's share of an AdamW step.

    As a run computes it; what is compiled, is compiled in the step that does not count.
    """
    total, encoder = _Sum(), backbone.encoder_below(root)
    with (
        seeding.torch_seeded(0, "doctor"),
        computed(backbone, config.training),
        adapters.training() as parameters,
    ):
        optimizer = torch.optim.AdamW(parameters, lr=0.0, foreach=True)
        for part in trained:
            if total.late:
                break
            examples = [e for e in encoder.encoded(part.some[:micro]) if not isinstance(e, str)]
            features = backbone.vision.blank(images_of(examples), root)

            def step(examples: list = examples, features: Features = features) -> None:
                backbone.layers.through(lambda: backbone.loss(examples, features).backward())

            if examples:
                total.add(_timed(step, backbone.device) / len(examples), part.records)
        stepping = _timed(optimizer.step, backbone.device) if total.weight else 0.0
        optimizer.zero_grad(set_to_none=True)
    return total.mean + stepping / config.training.batch_size


def _answering(
    backbone: Backbone,
    adapters: Adapters,
    tested: Sequence[Tested],
    subspaces: int,
    settings: Evaluation,
    root: Path | None,
) -> float:
    """Seconds per question, a batch at a time under a mixture; compiled where a run compiles whole batches."""
    total, encoder = _Sum(), backbone.encoder_below(root)
    adapters.load_mixture([adapters.read()] * subspaces, adapters.base_projector(), settings.mixture == "backbone")
    for part in tested:
        if total.late:
            break
        questions = [e for e in encoder.encoded(part.some) if not isinstance(e, str)]
        if not questions:
            continue
        answers = list(encoder.lengths(q.answer for q in part.some if q.answer))
        longest = min(max(answers, default=part.longest), part.longest)
        features = backbone.vision.blank(images_of(questions), root)
        mix = np.full((len(questions), subspaces), 1.0 / subspaces, dtype=np.float32)
        compiles = backbone.answering.compiles(settings.compile, part.size)
        with adapters.mixed(mix if subspaces > 1 else None):

            def answer(
                q: list = questions, f: Features = features, n: int = longest, compiles: bool = compiles
            ) -> None:
                with backbone.answering.compiled() if compiles else nullcontext():
                    backbone.generate(q, f, n)

            if compiles and "prompts" not in backbone.layers.kinds:
                answer()  # the first prompts are not compiled yet
            total.add(_timed(answer, backbone.device) / len(questions), part.questions)
    return total.mean


def _looking(backbone: Backbone, work: Work) -> float:
    """Seconds per image: read, scaled, through the vision tower, ``BATCH`` at a time."""
    names = list(dict.fromkeys(image for part in work.tested for q in part.some for image in q.images))[:BATCH]
    if not names:
        return 0.0
    return _timed(lambda: backbone.vision.computed(work.image_root, names), backbone.device) / len(names)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds: the middle one of three, after one that does not count; of what takes over a second, the first."""
    seconds = []
    for number in range(1 + _TIMES):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
        if number and seconds[-1] > _LONG:
            return seconds[-1]
    return statistics.median(seconds[1:])
