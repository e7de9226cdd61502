"""From a bench file to its runs: all configurations are resolved and checked before the first run starts."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fcit import config as configuration
from fcit import registry
from fcit.bench.file import BenchFile, Block, Lines, Location, Problems, read, unknown_setting
from fcit.bench.overrides import Overrides, flat, named, slug, text_of
from fcit.config import RunConfig, async_checks
from fcit.config.effects import Effect, effects
from fcit.data.benchmark import open_benchmark
from fcit.errors import FCITError
from fcit.evaluation.matrix import over
from fcit.report.scope import ScoreScope


class TableKey(NamedTuple):
    """Properties that runs of one table share."""

    benchmark: str
    setting: str
    split: str
    reduced: tuple[str, ...]  # why its numbers do not cover the whole benchmark; empty: they do
    per_client: bool  # each client answered with factors of its own
    stages: tuple[int, ...]  # evaluated stages, from 1; empty: all
    test_data: str = ""  # named if finished runs were scored on several, see fcit.report.scope

    @classmethod
    def of(cls, config: RunConfig, count: int) -> TableKey:
        """The table of a configuration whose benchmark has ``count`` stages."""
        stages = config.evaluation.stages(count)
        some = () if len(stages) == count else tuple(stages)
        return cls(config.benchmark, config.setting, *ScoreScope.of(config), some)

    @property
    def centralised(self) -> bool:
        """Whether its runs have no federation."""
        return self.setting == "centralised"

    @property
    def parts(self) -> list[str]:
        """Its values as texts, e.g. for names of folders."""
        name = registry.label(self.benchmark)
        name = Path(name).stem if name.endswith((".yaml", ".yml")) else name
        stages = f"stages {' '.join(map(str, self.stages))}" if self.stages else ""
        return [name, self.setting, self.split, " ".join(self.reduced), "per client" * self.per_client, stages]

    @property
    def remark(self) -> str:
        """The remark about its numbers; empty for full ones of the test split after every stage."""
        stages = ", ".join(map(str, self.stages))
        after = f"evaluated after stage{'s' * (len(self.stages) > 1)} {stages} only" if self.stages else ""
        return ", ".join(
            filter(None, [ScoreScope(self.split, self.reduced, self.per_client).label, after, self.test_data])
        )

    @property
    def title(self) -> str:
        """The title of the table; reduced numbers are marked as such."""
        return ", ".join(filter(None, [*self.parts[:2], self.remark]))

    @property
    def avg(self) -> str:
        """The name of its Avg."""
        return over(list(self.stages)) if len(self.stages) > 1 else "Avg"


#: Settings that determine the table; shown in its title, not in labels.
TABLE_AXES = frozenset(key for key, effect in effects(RunConfig).items() if effect is Effect.SCOPE)
#: Settings that may differ between two folders of one run.
RECORDED = frozenset(key for key, effect in effects(RunConfig).items() if effect is Effect.RECORD)


@dataclass(frozen=True)
class Row:
    """A row of a table: one configuration and its seeds."""

    label: str
    table: TableKey
    slug: str
    seeds: tuple[int, ...]
    config: RunConfig  # with the first seed
    line: int
    baseline: str | None = None  # label of the row that its block names for it; None: the bench's


@dataclass(frozen=True)
class Planned:
    """One run."""

    row: Row
    seed: int
    folder: Path
    config: RunConfig

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name


@dataclass(frozen=True)
class Plan:
    """All runs of a bench file."""

    file: Path
    name: str
    folder: Path
    baseline: str
    jobs: int | None
    rows: list[Row]
    runs: list[Planned]

    def of(self, rows: list[Row]) -> Plan:
        """The same bench with these rows."""
        return replace(self, rows=rows, runs=list(_runs(rows, self.folder)))


@dataclass(frozen=True)
class _Draft:
    """A row before its configuration is resolved."""

    block: Block
    at: Location  # of the block
    values: dict[str, tuple[Any, int]]  # of the axes, with lines

    def label(self, lines: Lines, problems: Problems, config: RunConfig | None) -> str:
        shown = {k: v for k, (v, _) in self.values.items() if k not in TABLE_AXES}
        if self.block.label is None:
            if shown:
                return " / ".join(named(k, v) for k, v in shown.items())
            return "" if config is None else registry.label(str(config.method["name"]))
        return self._filled("label", self.block.label, lines, problems)

    def baseline(self, lines: Lines, problems: Problems) -> str | None:
        """The label of the row that this one is compared with, if its block names one."""
        given = self.block.baseline
        return None if given is None else self._filled("baseline", given, lines, problems)

    def _filled(self, key: str, text: str, lines: Lines, problems: Problems) -> str:
        """A text of the block with the row's values in the places of axes."""
        known = {**self.block.set, **{k: v for k, (v, _) in self.values.items()}}
        for name in re.findall(r"\{([^{}]*)\}", text):
            if name not in known:
                allowed = ", ".join(known) or "none"
                problems.add(lines.of((*self.at, key)), f"{key}: {{{name}}} is no axis here (allowed: {allowed})")
        return re.sub(r"\{([^{}]*)\}", lambda m: text_of(known.get(m[1], "")), text)


def _drafts(file: BenchFile, lines: Lines) -> Iterator[_Draft]:
    """Every row of every block, in the order of the file."""
    blocks: list[tuple[Block, Location]] = [(block, ("rows", n)) for n, block in enumerate(file.rows)]
    if file.axes:
        blocks.insert(0, (Block.model_validate({"axes": file.axes}), ()))
    for block, at in blocks:
        axes = [
            [(key, value, lines.of((*at, "axes", key, n))) for n, value in enumerate(values)]
            for key, values in block.axes.items()
            if unknown_setting(key) is None
        ]
        for chosen in itertools.product(*axes):
            yield _Draft(block, at, {key: (value, line) for key, value, line in chosen})


class _Resolver:
    """Resolves drafts to rows and collects their mistakes."""

    def __init__(self, path: Path, file: BenchFile, lines: Lines, problems: Problems) -> None:
        self.file, self.lines, self.problems = file, lines, problems
        self.folder = path.parent
        self.base = self.folder / Path(file.base).expanduser()
        home = self._config({}, (), {}, 0)
        self.home = None if home is None else home[1]

    def _config(
        self, block_set: dict[str, Any], at: Location, values: dict[str, tuple[Any, int]], line: int
    ) -> tuple[RunConfig, TableKey] | None:
        """The resolved configuration of a row and its table, or None after adding its mistakes."""
        overrides = Overrides(self.folder)
        for given, where in ((self.file.set, ()), (block_set, at)):
            for key, value in given.items():
                if unknown_setting(key) is None:
                    overrides.add(key, value, self.lines.of((*where, "set", key)))
        for key, (value, value_line) in values.items():
            overrides.add(key, value, value_line)
        try:
            config = configuration.load(self.base, overrides.texts())
            table = TableKey.of(config, len(open_benchmark(config).stages))
        except FCITError as error:
            for problem in getattr(error, "problems", [str(error)]):
                self.problems.add(overrides.line(problem, line or self.lines.of(("base",))), problem)
            return None
        return config if "backbone.threads" in overrides.values else _with_threads(config), table

    def row(self, draft: _Draft) -> Row | None:
        """The row, or None after adding its mistakes."""
        line = max((at for _, at in draft.values.values()), default=self.lines.of(draft.at))
        resolved = self._config(draft.block.set, draft.at, draft.values, line)
        label = draft.label(self.lines, self.problems, resolved[0] if resolved else None)
        baseline = draft.baseline(self.lines, self.problems)
        if resolved is None or self.home is None:
            return None
        config, table = resolved
        if re.fullmatch(r"cuda:[1-9]\d*", config.backbone.device):
            self.problems.add(
                line, f"backbone.device: {config.backbone.device!r}; a bench gives every run its GPU, say 'cuda'"
            )
        if problem := async_checks.simulated(config):
            self.problems.add(line, problem)
        away = [part for part, at_home in zip(table.parts, self.home.parts, strict=True) if part and part != at_home]
        seeds = tuple(draft.block.seeds or self.file.seeds)
        return Row(label, table, slug(" ".join([*away, label])), seeds, config, line, baseline)


def _with_threads(config: RunConfig) -> RunConfig:
    """One thread on a CPU unless configured: results must not depend on the number of concurrent runs."""
    if config.backbone.threads or config.backbone.device != "cpu":
        return config
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"threads": 1})})


def same_run(config: RunConfig) -> str:
    """A text that is equal for configurations of the same run, whatever its name, folder and trackers."""
    settings = flat(config.model_dump(mode="json"))
    return json.dumps({key: value for key, value in settings.items() if key not in RECORDED}, sort_keys=True)


def _merged(rows: list[Row]) -> list[Row]:
    """Merge rows with the same configuration and label but different seeds.

    Rows with a common seed are left unchanged and refused later.
    """
    merged: dict[tuple[TableKey, str, str], Row] = {}
    rest: list[Row] = []
    for row in rows:
        key = (row.table, row.label, same_run(row.config.model_copy(update={"seed": 0})))
        first = merged.get(key)
        if first is None or set(first.seeds) & set(row.seeds):
            merged.setdefault(key, row)
            rest.append(row)
        else:
            merged[key] = replace(first, seeds=(*first.seeds, *row.seeds))
            rest[rest.index(first)] = merged[key]
    return rest


def _check(rows: list[Row], file: BenchFile, lines: Lines, problems: Problems) -> None:
    """Add mistakes: rows that cannot be distinguished, and a baseline that is not among them."""
    labels: dict[tuple[TableKey, str], Row] = {}
    slugs: dict[str, Row] = {}
    runs: dict[str, Row] = {}
    for row in rows:
        if len(set(row.seeds)) < len(row.seeds):
            problems.add(row.line, f"seeds: {list(row.seeds)} names one seed twice")
        first = labels.setdefault((row.table, row.label), row)
        if first is not row:
            twice = sorted(set(first.seeds) & set(row.seeds))
            again = f"; both have seed {twice[0]}: a row may be repeated with other seeds only" if twice else ""
            problems.add(row.line, f"label: two rows are called {row.label!r} (the other: line {first.line}){again}")
            continue
        if slugs.setdefault(row.slug, row) is not row:
            owner = slugs[row.slug]
            problems.add(
                row.line,
                f"label: {row.label!r} and {owner.label!r} (line {owner.line}) would share the "
                f"folder {row.slug!r}; give one another label",
            )
        for seed in row.seeds:
            same = runs.setdefault(same_run(row.config.model_copy(update={"seed": seed})), row)
            if same is not row:
                problems.add(
                    row.line,
                    f"{row.label!r}, seed {seed}, is the same run as {same.label!r} (line {same.line}); leave one out",
                )
    names = list(dict.fromkeys(row.label for row in rows))
    given = [(row.baseline, row.line) for row in rows] + [(file.baseline, lines.of(("baseline",)))]
    for baseline, line in given:
        if baseline is not None and baseline not in names:
            near = registry.nearest(baseline, names)
            problems.add(line, f"baseline: no row is called {baseline!r}{near} (rows: {', '.join(names)})")


def _runs(rows: list[Row], folder: Path) -> Iterator[Planned]:
    """The runs ordered by seed, so that an interrupted bench has complete tables for fewer seeds."""
    for position in range(max(len(row.seeds) for row in rows)):
        for row in rows:
            if position < len(row.seeds):
                seed = row.seeds[position]
                name = f"{row.slug}-s{seed}"
                update = {"seed": seed, "name": name, "output": str(folder)}
                yield Planned(row, seed, folder / name, row.config.model_copy(update=update))


def load(path: Path) -> Plan:
    """Read a bench file and resolve every run of it.

    Raises:
        ConfigError: every mistake, with the line it stands on.
    """
    file, lines, problems = read(path)
    resolver = _Resolver(path, file, lines, problems)
    rows = [row for draft in _drafts(file, lines) if (row := resolver.row(draft)) is not None]
    if not problems:
        rows = _merged(rows)
        _check(rows, file, lines, problems)
    if problems:
        raise problems.error()
    folder = Path(file.output).expanduser() / file.name
    return Plan(path, file.name, folder, file.baseline or rows[0].label, file.jobs, rows, list(_runs(rows, folder)))
