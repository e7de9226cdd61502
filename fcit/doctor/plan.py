"""What a run would do, stage by stage: participants, orders, bytes; behind ``fcit run --dry-run``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from fcit import registry
from fcit.config import RunConfig
from fcit.config.async_checks import buffer_of
from fcit.config.per_client_checks import answerers
from fcit.data.benchmark import Benchmark
from fcit.data.stream import Stream, open_stream
from fcit.doctor.fitting import gb
from fcit.errors import FCITError
from fcit.federation import ranks
from fcit.federation.formats import BESIDE, BYTES
from fcit.federation.sampling import sample
from fcit.federation.thin import Thin, wire_of
from fcit.methods.base import Method
from fcit.models.layout import A, B
from fcit.models.shapes import Shape, shape_of

#: The tasks of a shard; what stands for a subspace, where one is opened for each.
Tasks = tuple[int, ...]
Trained = tuple[int, Tasks]

_SHOWN = 8  # participants of a first round that are named


@dataclass(frozen=True)
class Stage:
    """What one stage comes to.

    Attributes:
        tasks: data sets that are learnt.
        clients: that take part in any round.
        first: participants of the first round, in the order of its slots; empty if the server draws them in secret, or
            the simulated clock decides.
        describing: orders to describe a shard, before its first training.
        measuring: orders to measure a shard, before the first round.
        training: orders to train.
        answering: orders to answer questions, before the first stage or after it; None where the questions are not at
            hand.
        down: bytes to the clients, ``up`` from them: tensors that every method sends, and pieces of ``factors: flora``
            and ``fedex``; without what some methods send beside.
    """

    tasks: list[str]
    clients: int
    first: list[int]
    describing: int
    measuring: int
    training: int
    answering: int | None
    down: float
    up: float

    @property
    def orders(self) -> int:
        """All of them, as far as they are known."""
        return self.describing + self.measuring + self.training + (self.answering or 0)


def stages(config: RunConfig, stream: Stream, shape: Shape) -> Iterator[Stage]:
    """The plan of every stage, from the configuration and the numbers of questions alone.

    A training order carries one subspace and the shared projector, and its update what is trained of them; an order to
    answer carries all subspaces. A method that does not train one common subspace is taken to open one for each task.
    """
    method: Method = registry.resolve("method", config.method["name"])(config)
    rounds = config.federation.rounds if method.trains else 0
    one = method.common(0) is not None and method.common(0) == method.common(1)
    seen, known = set[Tasks](), set[Trained]()
    wire, thin = wire_of(config, method.pooled), Thin.of(config, method.pooled)
    number, back = BYTES[wire], BYTES[wire] if thin is None else thin.bytes
    adapter, projector = shape.adapter(config.adapter.rank), shape.projector
    sent = 0 if config.adapter.projector == "frozen" else projector
    own = projector if config.adapter.projector == "per_subspace" else 0
    for stage in range(stream.stage_count):
        slots, participations, first = stream.slots(stage), list[list[Trained]](), list[int]()
        for round_ in range(rounds):
            clients = sample(config.federation, config.seed, stage, round_)
            first = first or ([] if _by_clock(config) else clients)
            participations.append(list(zip(clients, [tasks or (stage,) for tasks in slots], strict=True)))
        pairs = {pair for drawn in participations for pair in drawn}
        homes = [[(client, () if one else tasks) for client, tasks in drawn] for drawn in participations]
        pieces = _pieces(config, shape, homes, begun=seen if not one else {()} if stage else set())
        each = len(set(slots)) if method.pooled == "task" else 1 if method.pooled else _updates(config)
        training = rounds * each
        up = back * sum(each * (_updated(config, shape, turn) + sent) for turn in range(rounds))
        seen = seen | {tasks or (stage,) for tasks in slots}
        answering = _answering(config, stream, method, stage)
        before = _untouched(config, stream, method) if stage == 0 else 0
        mixture = (1 if one else len(seen)) * (adapter + own) + max(sent - own, 0)
        yield Stage(
            tasks=[name for tasks in dict.fromkeys(slots) for task in tasks for name in stream.tasks[task]],
            clients=each if method.pooled else len({client for client, _ in pairs}),
            first=[] if method.pooled or config.privacy.secret else first,
            describing=len(pairs - known) if method.needs_stats else 0,
            measuring=each if method.measures else 0,
            training=training,
            answering=None if answering is None else answering + before,
            down=number * training * (_begun(config, shape) + sent)
            + BESIDE[wire] * (pieces + (answering or 0) * mixture),
            up=up,
        )
        known |= pairs


def _by_clock(config: RunConfig) -> bool:
    """Whether time, simulated or real, decides who takes part; their number is taken to be what the seed would draw."""
    return config.federation.mode == "async" or config.federation.over_select > 1 or not config.devices.always


def _updates(config: RunConfig) -> int:
    """Updates of a round that count."""
    return buffer_of(config) if config.federation.mode == "async" else config.federation.clients_per_round


def _last(stream: Stream, stage: int) -> bool:
    return stage == stream.stage_count - 1


def _begun(config: RunConfig, shape: Shape) -> float:
    """Numbers of an adapter that a training order carries; pieces come beside."""
    per_client = registry.resolve("factors", config.factors).per_client
    numbers = sum(inner + (0 if per_client else outer) for inner, outer in shape.adapted)
    return ranks.expected(config) * numbers


def _pieces(config: RunConfig, shape: Shape, rounds: list[list[Trained]], begun: set[Tasks]) -> float:
    """Numbers of the pieces that the orders of a stage bring beside their adapters (``factors: flora``, ``fedex``).

    A client is sent what it has not got of its subspace's; one that trained another subspace before, all of them.

    Args:
        rounds: the participations of each, by client and subspace.
        begun: subspaces that were trained in an earlier stage.
    """
    rule = registry.resolve("factors", config.factors)()
    pieces: dict[Tasks, list[int]] = {}  # their ranks
    held: dict[int, tuple[Tasks, int]] = {}  # the subspace that a client trained last, and how many pieces it has
    numbers = 0
    for drawn in rounds:
        for client, home in drawn:
            there = pieces.setdefault(home, [config.adapter.rank] if rule.adds_itself and home in begun else [])
            last, count = held.get(client, (home, 0))
            numbers += sum(map(shape.products, there[count if last == home else 0 :]))
            held[client] = home, len(there)
        for home in dict.fromkeys(home for _, home in drawn):
            if rank := rule.added([ranks.assigned(config, client) for client, other in drawn if other == home]):
                pieces[home].append(rank)
    return numbers


def _updated(config: RunConfig, shape: Shape, turn: int) -> float:
    """Numbers that are trained of an adapter in a subspace's ``turn``-th round (``factors:``)."""
    rule = registry.resolve("factors", config.factors)()
    frozen = [*rule.frozen([A, B], turn), *([B] if rule.per_client else [])]
    rows = sum(inner for inner, _ in shape.adapted) * (A not in frozen)
    columns = sum(outer for _, outer in shape.adapted) * (B not in frozen)
    return ranks.expected(config) * (rows + columns)


def _answering(config: RunConfig, stream: Stream, method: Method, stage: int) -> int | None:
    """Orders to answer questions after a stage; None if the questions are not at hand."""
    if method.last_stage_only and not _last(stream, stage):
        return 0
    if config.stream == "site":
        return config.federation.clients
    count, evaluation, names = stream.stage_count, config.evaluation, list[str]()
    if stage + 1 in evaluation.stages(count):
        everything = evaluation.unseen and not method.last_stage_only
        names = stream.evaluation(count - 1 if everything else stage)
    asked = stream.held_out if stage + 1 in evaluation.stages(count, held_out=True) else ()
    orders = _stretches(config, stream, [*names, *asked])
    return None if orders is None else answerers(config) * orders


def _untouched(config: RunConfig, stream: Stream, method: Method) -> int:
    """Orders to the backbone as it came, before the first stage, which bring no tensors."""
    unseen = config.evaluation.unseen and not method.last_stage_only
    names = stream.evaluation(stream.stage_count - 1) if unseen else []
    return _stretches(config, stream, [*names, *stream.held_out]) or 0


def _stretches(config: RunConfig, stream: Stream, names: list[str]) -> int | None:
    """Orders to answer all questions of these data sets once; None if they are not at hand."""
    try:
        return sum(-(-len(stream.test(name)) // config.evaluation.stretch) for name in names)
    except FCITError:
        return None


def show(config: RunConfig, console: Console) -> None:
    """Print the plan of a run: its stages, and the sums.

    Raises:
        ConfigError: the benchmark or the model's sizes are not known.
    """
    stream = open_stream(config)
    if isinstance(stream, Benchmark) and stream.spec.source == "mini":
        stream.prepare()  # rendered into the cache, once for all runs
    plan = list(stages(config, stream, shape_of(config.backbone, config.adapter.targets)))
    console.print(_table(config, plan))
    if config.centralised:
        who = "one participant, without a federation"
    else:
        drawn = f"by federation.sampling: {config.federation.sampling}"
        drawn = "in secret" if config.privacy.secret else "as the clock goes" if _by_clock(config) else drawn
        who = (
            f"{_updates(config)} of {config.federation.clients} clients a round, drawn {drawn}, "
            f"{config.federation.rounds} round{'s' * (config.federation.rounds > 1)} a stage"
        )
    unknown = any(stage.answering is None for stage in plan)
    lines = [
        f"{config.name}: {registry.label(config.method['name'])} on {stream.name}, {config.setting}; {who}",
        f"orders: {sum(stage.orders for stage in plan):,}"
        + (", and those to answer questions, whose data are not here" if unknown else ""),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _table(config: RunConfig, plan: list[Stage]) -> Table:
    wire = wire_of(config, registry.resolve("method", config.method["name"]).pooled)
    title = "stages" if config.centralised else f"stages (bytes as {wire}, without what a method adds)"
    table = Table(title=title, title_justify="left")
    table.add_column("stage", justify="right")
    table.add_column("learnt")
    if not config.centralised:
        table.add_column("clients", justify="right")
        table.add_column("first round")
    for name in ("describe", "train", "answer", *(() if config.centralised else ("down", "up"))):
        table.add_column(name, justify="right")
    for number, stage in enumerate(plan, start=1):
        cells: list[Any] = [number, ", ".join(stage.tasks) or "tasks of the sites"]
        if not config.centralised:
            named = ", ".join(map(str, stage.first[:_SHOWN])) + (", ..." if len(stage.first) > _SHOWN else "")
            cells += [stage.clients, named or "-"]
        cells += [stage.describing + stage.measuring, stage.training]
        cells.append("-" if stage.answering is None else stage.answering)
        cells += [] if config.centralised else [gb(stage.down), gb(stage.up)]
        table.add_row(*map(str, cells))
    if not config.centralised and len(plan) > 1:
        table.add_section()
        summed = [sum(s.describing + s.measuring for s in plan), sum(s.training for s in plan)]
        answers = sum(s.answering or 0 for s in plan)
        size = gb(sum(s.down for s in plan)), gb(sum(s.up for s in plan))
        table.add_row("", "in all", "", "", *map(str, summed), str(answers), *size)
    return table
