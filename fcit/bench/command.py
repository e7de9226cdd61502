"""``fcit bench``: carry out missing runs, then write the tables."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fcit.bench import data, folders, leaderboard, page, plan, published, seeds, tables
from fcit.bench.plan import Plan, Planned
from fcit.bench.progress import BenchWatcher
from fcit.bench.schedule import Outcome, Schedule, gpus
from fcit.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED, ConfigError
from fcit.io.console import console
from fcit.io.files import write_bytes, write_text
from fcit.io.threads import cores

PAGE = 140  # characters of a line that no terminal bounds: tables of many methods
NAMED = 5  # runs that a message names


@dataclass(frozen=True)
class BenchOptions:
    """Options of the command line."""

    file: Path
    table: bool = False
    dry_run: bool = False
    only: str = ""
    rows: tuple[str, ...] = ()
    seeds: str | None = None
    jobs: int | None = None
    fresh: bool = False
    into: Path | None = None
    source: Path | None = None


def bench(options: BenchOptions) -> int:
    """Run a bench file; returns the exit code.

    Raises:
        ConfigError: mistakes in the file, folders of other runs. DataError: unusable data.
    """
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: must be at least 1")
    if options.source is not None and options.dry_run:
        raise ConfigError("--from takes runs over, which a dry run does not; leave one of them out")
    screen = console(PAGE)
    made, chosen = _wanted(options)
    if options.dry_run:
        return _list(screen, made, chosen, options.jobs)
    if options.source is not None:
        _take(made, options.source)
        made, chosen = _wanted(options)
    folders.check(made.runs if options.table else chosen, options.fresh and not options.table)
    outcome = Outcome() if options.table else _work(screen, made, chosen, options)
    if not options.table and chosen != made.runs:
        folders.check([run for run in made.runs if folders.state(run) == "done"], False)
    with folders.alone(made.folder):
        small = _tables(screen, made)
    for name, why in outcome.failed.items():
        print(f"fcit: {name} failed ({why}); see {made.folder / name / folders.LOG}", file=sys.stderr)
    if options.into is not None and small:
        with folders.alone(made.folder):
            _publish(screen, made, small, options.into)
    if outcome.stopped:
        print(f"stopped; `fcit bench {options.file}` goes on", file=sys.stderr)
        return EXIT_INTERRUPTED if outcome.stopped == signal.SIGINT else EXIT_STOPPED
    if outcome.failed:
        them = "it" if len(outcome.failed) == 1 else "them"
        print(f"failed runs: {len(outcome.failed)}; `fcit bench {options.file}` tries {them} again", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _wanted(options: BenchOptions) -> tuple[Plan, list[Planned]]:
    """The bench with all seeds requested so far, and the runs that this call selects.

    Raises:
        ConfigError: there is none.
    """
    made = plan.load(options.file)
    requested = None if options.seeds is None else seeds.parse(options.seeds)
    more = seeds.remembered(made.folder)
    if requested is not None and not options.table:
        rows = seeds.named(made, options.rows)
        more = {**more, **{row.slug: [*more.get(row.slug, []), *requested] for row in rows}}
        if not options.dry_run:
            seeds.remember(made, more)
    made = seeds.extended(made, more)
    chosen = seeds.chosen(made, options.rows, requested)
    matches = [run for run in chosen if options.only in run.name or options.only in run.row.label]
    if not chosen:
        raise ConfigError(f"--seeds {options.seeds!r}: no run has one of these seeds; without --table they are added")
    if not matches:
        names = ", ".join(dict.fromkeys(run.row.label for run in made.runs))
        raise ConfigError(f"--only {options.only!r}: no run is called like that (rows: {names})")
    return made, matches


def _list(screen: Console, made: Plan, chosen: list[Planned], jobs: int | None) -> int:
    from fcit.bench import expected  # needs torch, which tables do not
    from fcit.doctor.fitting import hours

    states = {"done": "done ", "begun": "begun", "new": "     "}
    missing = [run for run in chosen if folders.state(run) != "done"]
    with screen.status("estimating times"):
        times = expected.expected(made.runs, chosen, _at_a_time(made, missing, gpus(missing), jobs))
    for run in chosen:
        problem, seconds = folders.foreign(run), times.seconds.get(run.name)
        shown = "OTHER" if problem else states[folders.state(run)]
        takes = "" if seconds is None else f"  {hours(seconds)}"
        screen.print(f"{shown} {run.folder}{takes}", highlight=False, markup=False, soft_wrap=True)
        if problem:
            screen.print(f"      {problem}", highlight=False, markup=False, soft_wrap=True)
    lines = [f"{len(chosen)} runs, {len(chosen) - len(missing)} done; baseline {made.baseline}"]
    if missing:
        unknown = f"; {times.unknown} of unknown length beside" if times.unknown else ""
        lines.append(
            f"{len(missing)} missing, {times.jobs} at a time: about {hours(times.together)} (by {times.known}){unknown}"
        )
    for line in lines:
        screen.print(line, highlight=False, markup=False, soft_wrap=True)
    return EXIT_OK


def _at_a_time(made: Plan, missing: list[Planned], devices: list[str], jobs: int | None) -> int:
    """Runs that are carried out at a time; 1 if there is nothing to do."""
    return max(1, min(jobs or made.jobs or len(devices) or cores(), len(missing)))


def _work(screen: Console, made: Plan, chosen: list[Planned], options: BenchOptions) -> Outcome:
    """Carry out the runs that are not finished."""
    missing = [run for run in chosen if folders.state(run) != "done"]
    if not missing:
        return Outcome()
    print("preparing data", file=sys.stderr)
    folders.prepare(missing)
    devices = gpus(missing)
    jobs = _at_a_time(made, missing, devices, options.jobs)
    refresh = Refresh(made)
    with BenchWatcher(screen, made.name, len(chosen), len(chosen) - len(missing), jobs, refresh) as watcher:
        return Schedule(missing, jobs, watcher, devices).work()


class Refresh:
    """Writes the leaderboard while a bench runs; an error in writing is reported once and stops nothing.

    Args:
        made: the bench.
    """

    def __init__(self, made: Plan) -> None:
        self.made, self._told = made, False
        self._known: leaderboard.Known = {}

    def __call__(self) -> None:
        try:
            with folders.alone(self.made.folder):
                _write(leaderboard.collect(self.made, self._known))
        except Exception as error:  # noqa: BLE001  (tables are written again at the end, where the error would be reported)
            if not self._told:
                print(f"the leaderboard cannot be refreshed: {type(error).__name__}: {error}", file=sys.stderr)
            self._told = True


def _write(board: leaderboard.Leaderboard) -> None:
    """Write the files of a leaderboard except its figures, each atomically."""
    texts = {"md": tables.markdown, "csv": data.to_csv, "json": data.to_json, "tex": tables.tex}
    for ending, writer in texts.items():
        write_text(board.folder / f"leaderboard.{ending}", writer(board))
    page.write_page(board)


def _tables(screen: Console, made: Plan) -> list[Path]:
    """Write the leaderboard and show it; returns its files that are small enough to be published."""
    board = leaderboard.collect(made)
    if not board.tables:
        screen.print("no run has finished yet: no tables", highlight=False)
        return []
    _write(board)
    pictures = page.write_figures(board)
    for table in board.tables:
        screen.print(tables.terminal(table, board.name, screen.width))
    path = made.folder / "leaderboard"
    screen.print(f"tables: {path}.md .csv .json .tex", highlight=False, soft_wrap=True)
    screen.print(f"page:   {path}.html", highlight=False, soft_wrap=True)
    return [*(path.with_suffix(f".{ending}") for ending in ("md", "csv", "json")), *pictures]


def _publish(screen: Console, made: Plan, small: list[Path], into: Path) -> None:
    """Pack the finished runs and copy the small files, unless that would lose runs that are there.

    Raises:
        ConfigError: it would.
    """
    packed = into / published.FILE
    if packed.is_file() and (lost := published.lost(made.runs, packed)):
        raise ConfigError(
            f"--into {into}: nothing was copied, {packed} has runs that this bench has not finished or does not plan: "
            f"{', '.join(lost[:NAMED])}{', ...' if len(lost) > NAMED else ''}; `--table --from {into} --into {into}` "
            f"takes those of rows of the file over first, other runs need another folder"
        )
    published.pack(made.runs, packed)
    for file in small:
        write_bytes(into / file.name, file.read_bytes())
    screen.print(f"copies: {into}", highlight=False, soft_wrap=True)


def _take(made: Plan, source: Path) -> None:
    """Take published runs over, also of further seeds, and say what became of each that was not."""
    path = published.locate(source)
    further = published.further(made, path)
    wider = seeds.extended(made, further)
    taken = published.take(wider.runs, path)
    print(f"{path}: {taken.sentence}", file=sys.stderr)
    for problem in taken.refused:
        print(f"fcit: not taken over: {problem}", file=sys.stderr)
    done = {run.name for run in wider.runs if folders.state(run) == "done"}
    kept = {slug: [seed for seed in numbers if f"{slug}-s{seed}" in done] for slug, numbers in further.items()}
    if any(kept.values()):
        before = seeds.remembered(made.folder)
        seeds.remember(made, {slug: [*before.get(slug, []), *kept.get(slug, [])] for slug in {**before, **kept}})
