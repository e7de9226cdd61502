"""The leaderboard of a bench's finished runs: figures over seeds, cost, differences and remarks."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcit import registry
from fcit.bench import bootstrap, epsilons
from fcit.bench.bootstrap import Difference
from fcit.bench.file import OWN
from fcit.bench.folders import state
from fcit.bench.overrides import flat, text_of
from fcit.bench.plan import Plan, Planned, Row, TableKey
from fcit.config import RunConfig
from fcit.config.effects import Effect, effects
from fcit.data.fingerprints import changes
from fcit.errors import FCITError
from fcit.evaluation import personal
from fcit.evaluation.matrix import FORM_FIGURES, AccuracyMatrix
from fcit.report import scope
from fcit.report.tables import FIGURES, constant_matrix, untrained
from fcit.runs.reader import Run

#: Blocks of a table: only the first is ranked.
GROUPS = ("", "replay", "reference")


@dataclass(frozen=True)
class Spread:
    """Values over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass
class Line:
    """One row of a table with its results."""

    row: Row
    runs: dict[int, Run]  # finished runs by seed
    group: str
    family: str  # of methods; empty if it has none
    dagger: bool
    figures: dict[str, Spread | None]
    cost: dict[str, Spread | None]
    difference: Difference | None = None
    against: str = ""  # label of the row it is compared with
    differs: list[str] = field(default_factory=list)  # settings that differ from that one's
    elsewhere: list[str] = field(default_factory=list)  # the same of machine, versions and training data
    forms: dict[str, Spread] = field(default_factory=dict)  # figures about the form of answers, by name
    epsilons: dict[str, Spread] = field(default_factory=dict)  # of differential privacy, by head of their column
    untrained: dict[str, Spread | None] = field(default_factory=dict)  # what was not trained (yet), likewise

    @property
    def label(self) -> str:
        """The label, with a dagger for our definitions."""
        return self.row.label + (" †" if self.dagger else "")

    @property
    def seeds(self) -> str:
        """Number of finished seeds, and of how many if some are missing."""
        done, planned = len(self.runs), len(self.row.seeds)
        return str(done) if done == planned else f"{done} of {planned}"


@dataclass
class Table:
    """Comparable rows, ranked ones first, by Last."""

    key: TableKey
    lines: list[Line]
    baseline: str | None  # None: it has no finished run in this table
    reference: str  # the row that settings and environments are compared with: the baseline if possible
    waiting: list[str]  # rows without a finished run
    constant: AccuracyMatrix | None = None  # of the best constant answers; None if unknown
    apart: list[str] = field(default_factory=list)  # one sentence each: why runs on other test data are not here

    @property
    def private(self) -> list[str]:
        """Heads of the columns of epsilons that some row has."""
        return [head for head in epsilons.KINDS if any(head in line.epsilons for line in self.lines)]

    @property
    def untrained(self) -> list[str]:
        """Heads of the columns of figures about what was not trained (yet) that some row has."""
        heads = dict.fromkeys(head for line in self.lines for head in line.untrained)
        return [head for head in heads if any(line.untrained.get(head) for line in self.lines)]

    @property
    def forms(self) -> list[str]:
        """The figures about the form of answers that some row has."""
        return [name for name in FORM_FIGURES if any(name in line.forms for line in self.lines)]

    def of(self, group: str) -> list[Line]:
        """Rows of one block."""
        return [line for line in self.lines if line.group == group]


@dataclass
class Leaderboard:
    """All tables of a bench."""

    name: str
    folder: Path
    tables: list[Table]


#: Key in ``cost`` of results.json -> name in the table.
COSTS = {
    "up_per_client_round": "up",
    "down_per_client_round": "down",
    "client_seconds": "client_seconds",
    "server_bytes": "server_bytes",
    "client_memory_bytes": "client_memory_bytes",
    "parameters.trainable": "trainable",
    "parameters.stored": "stored",
    "parameters.active": "active",
    "seconds_per_sample": "seconds_per_sample",
    "client_cpu_seconds": "client_cpu_seconds",
    "cpu_seconds_per_sample": "cpu_seconds_per_sample",
    "simulated_hours": "simulated_hours",
}
#: Those of them that a run without a federation has of a task, whatever rounds the method made of it.
OF_A_TASK = ("client_seconds", "client_cpu_seconds")


def _method(config: RunConfig) -> Any:
    """The method with its options; None if it can no longer be imported."""
    try:
        return registry.resolve("method", str(config.method["name"]))(config)
    except FCITError:
        return None


def _group(method: Any) -> str:
    if getattr(method, "group", "") in GROUPS[1:]:
        return str(method.group)
    apart = ("needs_task_at_inference", "last_stage_only", "pooled")
    return "reference" if any(getattr(method, name, False) for name in apart) else ""


def _spread(values: list[Any]) -> Spread | None:
    """None unless every run has the value."""
    return Spread(tuple(float(v) for v in values)) if values and None not in values else None


def _cost(run: Run) -> dict[str, Any]:
    """The cost of a run by dotted key."""
    cost = flat(run.results.get("cost") or {})
    if run.config.centralised and "client_rounds" in cost:
        of_a_task = cost["client_rounds"] / len(run.matrix.scores)
        cost |= {key: cost[key] * of_a_task for key in OF_A_TASK if key in cost}
    return cost


def _line(row: Row, runs: dict[int, Run]) -> Line:
    method = _method(row.config)
    summaries = [run.matrix.summary() for run in runs.values()]
    # Without a sequence of stages figures over stages are undefined.
    known = ("Last", "form share") if getattr(method, "last_stage_only", False) else (*FIGURES, *FORM_FIGURES)
    forms = {name: _spread([run.matrix.form_summary().get(name) for run in runs.values()]) for name in FORM_FIGURES}
    costs = [_cost(run) for run in runs.values()]
    spent = [epsilons.of_run(run.results) for run in runs.values()]
    private = {head: _spread([each[head] for each in spent]) for head in epsilons.KINDS}
    return Line(
        row,
        runs,
        _group(method),
        str(getattr(method, "family", "")),
        bool(getattr(method, "dagger", False)),
        {name: _spread([s[name] for s in summaries]) if name in known else None for name in FIGURES},
        {name: _spread([cost.get(key) for cost in costs]) for key, name in COSTS.items()},
        forms={name: value for name, value in forms.items() if value is not None and name in known},
        epsilons={head: value for head, value in private.items() if value is not None},
    )


def probe(run: Planned) -> None:
    """Make of a finished run by itself what tables are made of; raises whatever its files lead to."""
    found = Run(run.folder)
    if not found.results:
        raise ValueError(f"{found.folder.results.name} is empty")
    scope.tested(found)
    _environment_of(found)
    line = _line(run.row, {run.seed: found})
    for spread in (*line.figures.values(), *line.cost.values()):
        if spread is not None and not math.isfinite(spread.mean):
            raise ValueError(f"a figure is {spread.mean}")
    _add_untrained([line])
    bootstrap.difference("probe", line.runs, line.runs)
    _constant([line])
    list(found.events)


def _settings(config: RunConfig, effect: Effect) -> dict[str, Any]:
    """The settings of one effect by dotted key; options of parts change results."""
    known = effects(RunConfig)
    values = flat(config.model_dump(mode="json"))
    return {key: value for key, value in values.items() if known.get(key, Effect.RESULTS) is effect}


def differing_settings(config: RunConfig, baseline: RunConfig) -> list[str]:
    """Settings that differ from the baseline's; options of another method or optimiser are not compared."""
    row, reference = _settings(config, Effect.RESULTS), _settings(baseline, Effect.RESULTS)
    for family in ("method", "fedopt"):
        if row[f"{family}.name"] != reference[f"{family}.name"]:
            for values in (row, reference):
                for key in [k for k in values if k.startswith(f"{family}.")]:
                    del values[key]
            if family == "fedopt":
                row["fedopt"], reference["fedopt"] = config.fedopt["name"], baseline.fedopt["name"]
    keys = [key for key in {**row, **reference} if key not in OWN and row.get(key) != reference.get(key)]
    return [f"{key} {text_of(row.get(key))}, not {text_of(reference.get(key))}" for key in keys]


def _environment_of(run: Run) -> dict[str, str]:
    """Everything that the last bits of a run depend on: settings, versions, machine."""
    environment = run.environment
    values = _settings(run.config, Effect.BITS)
    values |= {key: environment.get(key, "-") for key in ("fcit", "source", "python", "platform", "cpus", "processor")}
    values |= dict(environment.get("libraries") or {})
    values |= {k: v for k, v in (environment.get("backend") or {}).items() if k != "threads"}
    return {key: str(value) for key, value in values.items()}


def differing_environments(line: Line, reference: Line) -> list[str]:
    """Differences in environment between two rows; a seed is compared with the same seed if possible."""
    differences: dict[str, set[str]] = {}
    for seed, run in line.runs.items():
        pairs = [
            _environment_of(r) for r in ([reference.runs[seed]] if seed in reference.runs else reference.runs.values())
        ]
        values = _environment_of(run)
        for key in dict.fromkeys([*values, *(key for pair in pairs for key in pair)]):
            reference_values = sorted({pair.get(key, "-") for pair in pairs})
            if values.get(key, "-") not in reference_values:
                differences.setdefault(key, set()).add(f"{values.get(key, '-')}, not {' or '.join(reference_values)}")
    return [f"{key} {' and '.join(sorted(texts))}" for key, texts in differences.items()]


def differing_seeds(line: Line) -> list[str]:
    """Differences in environment between the seeds of one row, which a mean over them hides."""
    by_key: dict[str, dict[str, list[int]]] = {}
    environments = {seed: _environment_of(run) for seed, run in line.runs.items()}
    for key in dict.fromkeys(key for values in environments.values() for key in values):
        for seed, values in environments.items():
            by_key.setdefault(key, {}).setdefault(values.get(key, "-"), []).append(seed)
    return [
        f"{key} {' and '.join(f'{value} (seed {_listed(seeds)})' for value, seeds in groups.items())}"
        for key, groups in by_key.items()
        if len(groups) > 1
    ]


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


#: Differences computed before, by their owner, the row's seeds and the baseline's.
Known = dict[tuple[str, tuple[int, ...], tuple[int, ...]], Difference | None]


def _difference(owner: str, line: Line, baseline: Line, known: Known) -> Difference | None:
    """A row's difference from the baseline; computed once for the same seeds, as finished runs do not change."""
    key = (owner, tuple(line.runs), tuple(baseline.runs))
    if key not in known:
        known[key] = bootstrap.difference(owner, line.runs, baseline.runs)
    return known[key]


def _constant(lines: list[Line]) -> AccuracyMatrix | None:
    """The best constant answers to the questions of a table; None if runs disagree or have none."""
    runs = [run for line in lines for run in line.runs.values() if run.constants]
    if len({json.dumps(run.constants, sort_keys=True) for run in runs}) != 1:
        return None
    # A row evaluated only at the end has no average over stages.
    return max((constant_matrix(run) for run in runs), key=lambda m: len(m.evaluated) if m else 0)


def differing_training(line: Line, reference: Line) -> list[str]:
    """Differences in training data and the user's code between two rows, seed by seed."""
    sentences = [
        f"training: {change.sentence('there', 'here')}"
        for seed, run in line.runs.items()
        if seed in reference.runs
        for change in scope.trained_apart(reference.runs[seed], run)
    ]
    return list(dict.fromkeys(sentences))


def differing_held_out(line: Line, reference: Line) -> list[str]:
    """Differences in held-out data sets that both rows asked."""
    first = next(iter(reference.runs.values())).data
    sentences = [
        f"held out: {change.sentence('there', 'here')}"
        for run in line.runs.values()
        for change in (changes.compare(first, run.data, "held-out") if first and run.data else [])
        if "-" not in (change.before, change.now)
    ]
    return list(dict.fromkeys(sentences))


def _add_untrained(lines: list[Line]) -> None:
    """Add figures about what was not trained: data sets, by heads that depend on what the rows of a table held out, and
    records that were kept out of clients' shards."""
    heads, figures = untrained([run.matrix for line in lines for run in line.runs.values()])
    by_run = iter(figures)
    for line in lines:
        values = [next(by_run) for _ in line.runs]
        line.untrained = {head: _spread([each[n] for each in values]) for n, head in enumerate(heads)}
        own = [personal.columns(run.results) for run in line.runs.values()]
        line.untrained |= {head: _spread([each[head] for each in own]) for head in personal.columns({})}


Finished = dict[str, dict[int, Run]]  # label of a row -> seed -> run


def _finished(key: TableKey, plan: Plan) -> dict[str, Finished]:
    """Finished runs of a table by the test data they were scored on, which may not be compared."""
    by_test: dict[str, Finished] = {}
    for planned in plan.runs:
        if planned.row.table == key and state(planned) == "done":
            run = Run(planned.folder)
            rows = by_test.setdefault(scope.tested(run), {row.label: {} for row in plan.rows if row.table == key})
            rows[planned.row.label][planned.seed] = run
    return by_test


def _first(finished: Finished) -> Run:
    return next(run for runs in finished.values() for run in runs.values())


def _tables(key: TableKey, plan: Plan, known: Known) -> Iterator[Table]:
    """The table of a key; several if its runs were scored on different test data."""
    by_test = _finished(key, plan)
    anywhere = {label for finished in by_test.values() for label, runs in finished.items() if runs}
    for test, finished in by_test.items():
        first = _first(finished)
        remarks = [scope.called(test) if len(by_test) > 1 else "", scope.changed(first)]
        table = _table(key._replace(test_data=", ".join(filter(None, remarks))), plan, finished, known)
        others = [_first(other) for name, other in by_test.items() if name != test]
        table.apart = [scope.why_apart(first, other) for other in others]
        table.waiting = [label for label in table.waiting if label not in anywhere]
        yield table


def _table(key: TableKey, plan: Plan, finished: Finished, known: Known) -> Table:
    rows = [row for row in plan.rows if row.label in finished and row.table[:-1] == key[:-1]]
    lines = [_line(row, finished[row.label]) for row in rows if finished[row.label]]
    _add_untrained(lines)
    by_label = {line.row.label: line for line in lines}
    baseline = by_label.get(plan.baseline)
    for line in lines:
        own = by_label.get(line.row.baseline or plan.baseline)  # a block may name another one for its rows
        compared = own or baseline or lines[0]
        if line is not compared:
            owner, line.against = f"{key.title}: {line.row.label}", compared.row.label
            line.difference = _difference(owner, line, own, known) if own else None
            line.differs = differing_settings(line.row.config, compared.row.config)
            line.elsewhere = differing_environments(line, compared)
            line.elsewhere += differing_training(line, compared)
            line.elsewhere += differing_held_out(line, compared)
    for line in lines:
        line.elsewhere += differing_seeds(line)

    def rank(line: Line) -> tuple[int, float]:
        last = line.figures["Last"]
        return GROUPS.index(line.group), 0.0 if last is None else -last.mean

    waiting = [row.label for row in rows if not finished[row.label]]
    reference = (baseline or lines[0]).row.label
    lines = sorted(lines, key=rank)
    return Table(key, lines, reference if baseline else None, reference, waiting, _constant(lines))


def collect(plan: Plan, known: Known | None = None) -> Leaderboard:
    """Read all finished runs; tables without any are left out.

    Args:
        known: differences of earlier calls, which are reused; new ones are added.
    """
    known = {} if known is None else known
    keys = dict.fromkeys(run.row.table for run in plan.runs if state(run) == "done")
    return Leaderboard(plan.name, plan.folder, [table for key in keys for table in _tables(key, plan, known)])
