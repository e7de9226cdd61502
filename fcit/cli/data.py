"""``fcit data``: render the built-in data sets, download a published benchmark, check what lies on disk."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fcit.cli.commands import Add
from fcit.cli.completion import completed, overrides, yaml_files
from fcit.errors import EXIT_OK, EXIT_USAGE, ConfigError, FCITError
from fcit.io import bounded

if TYPE_CHECKING:
    from rich.table import Table

    from fcit.data.benchmark import Benchmark
    from fcit.data.checks.findings import Findings
    from fcit.data.spec import BenchmarkSpec
    from fcit.evaluation.following import Demand

_EXAMPLE = """\
fcit data make --root /tmp/fcit-data            render the built-in data sets
  fcit data download fcit-task --root /data/fcit  what the hub has, and where the rest is found
  fcit data check fcit-task --root /data/fcit     files, records, a sample of images, the partition
  fcit data check fcit-task --root /data/fcit --all --json   every image; findings as JSON
  fcit data check --config configs/fcit/task-hom-disco.yaml data_root=/data/fcit   as a run's model reads it, before
                                                  anything trains
  fcit data check mine.yaml --root /data          the same for a benchmark of your own

exit codes of check: 0 every setting that was checked can run, 2 something is missing or broken"""


def arguments(add: Add) -> None:
    """Declare the command and its actions."""
    parser = add(
        "data",
        None,
        "render, download and check data",
        _EXAMPLE,
        "`fcit data ACTION --help` explains an action. Published benchmarks: `fcit list benchmark`.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")

    make = action("make", "render the built-in data sets")
    make.add_argument("--root", type=Path, help="data root (default: the cache folder)")
    make.add_argument("--dataset", action="append", help="only this one (can be repeated)")
    make.set_defaults(work=_make)

    download = action(
        "download", "fetch what is on the Hugging Face hub, say where the rest is found; can be interrupted"
    )
    check = action("check", "report what is missing or broken in a benchmark's files")
    named = "a shipped benchmark (see `fcit list benchmark`) or a YAML file"
    download.add_argument("benchmark", help=named)
    download.add_argument("--root", type=Path, required=True, help="data root")
    download.set_defaults(work=_download)
    check.add_argument("benchmark", nargs="?", help=named)
    changes = check.add_argument("overrides", nargs="*", metavar="key=value", help="with --config: change a setting")
    completed(changes, overrides)
    check.add_argument("--root", type=Path, help="data root")
    config = check.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the configuration of a run instead: every record and question is tokenised for its model and judged, "
        "as before training, and nothing is run",
    )
    completed(config, yaml_files)
    check.set_defaults(work=_check)
    check.add_argument("--all", action="store_true", help="decode every image and read every client file")
    check.add_argument("--setting", help="only this one: homogeneous, heterogeneous or centralised (default: all)")
    check.add_argument("--beta", action="append", help="only this partition (can be repeated; default: 0.5, 1.0, 5.0)")
    check.add_argument(
        "--clients", type=int, default=50, help="client files a delivered partition must have (default: 50)"
    )
    check.add_argument("--json", action="store_true", help="print the findings as JSON")


def _make(args: argparse.Namespace) -> int:
    from rich.progress import track

    from fcit.data.mini.render import FOLDERS, VERSION, ensure
    from fcit.io.cache import cache_folder

    root = args.root or cache_folder() / VERSION
    names = args.dataset or list(FOLDERS)
    for name in track(names, description="rendering", disable=not sys.stderr.isatty()):
        if name not in FOLDERS:
            raise ConfigError(f"--dataset: no mini dataset {name!r} (there are: {', '.join(FOLDERS)})")
        ensure(name, root)
        print(f"{name}: {root / 'instructions' / FOLDERS[name]}")
    return EXIT_OK


def _spec(name: str) -> BenchmarkSpec:
    from fcit import registry
    from fcit.data.spec import read_spec

    if registry.is_own(name):
        raise ConfigError(
            f"benchmark: {name} is code, which says itself where its records are; name the YAML file of a benchmark "
            "(`fcit run` prepares and checks what code brings)"
        )
    spec = read_spec(name)
    if spec.source == "mini":
        raise ConfigError(f"benchmark: {name!r} is rendered when it is first used; `fcit data make` does it now")
    return spec


def _download(args: argparse.Namespace) -> int:
    from fcit.data.download import download

    spec = _spec(args.benchmark)
    download(spec, args.root, lambda text: print(text, flush=True))
    again = f"fcit data check {args.benchmark} --root {args.root} --all"
    print(f"checking {args.root} with a sample of the images; `{again}` looks at all")
    return _report(_look(args, spec))


def _opened(args: argparse.Namespace) -> Benchmark:
    from fcit import config as configuration
    from fcit.data.benchmark import open_benchmark

    raw = {"benchmark": args.benchmark, "data_root": str(args.root)}
    return open_benchmark(configuration.resolve(raw, Path.cwd(), "fcit data check"), trains=False)


def _forms(benchmark: Benchmark, names: list[str]) -> Iterator[tuple[str, Demand]]:
    """The forms of answers that the test questions of data sets demand; of those that can be read."""
    from fcit.evaluation.following import demand

    for name in names:
        try:
            records = benchmark.test(name)
        except FCITError:
            continue  # which is reported elsewhere
        yield name, demand(benchmark.datasets[name], records)


def _check(args: argparse.Namespace) -> int:
    from fcit.evaluation.constant import constants, without_java

    if args.config is not None:
        changes = [word for word in (args.benchmark, *args.overrides) if word is not None]
        if not all("=" in word for word in changes) or args.root or args.setting or args.beta or args.all:
            raise ConfigError(
                "--config: the configuration names benchmark, data_root, setting and beta, and everything is looked "
                "at; leave the other options out here (key=value changes a setting, e.g. data_root=/data/fcit)"
            )
        return _configured(args, changes)
    if args.overrides:
        raise ConfigError(f"{args.overrides[0]}: settings are those of a configuration, which --config FILE names")
    if args.benchmark is None or args.root is None:
        raise ConfigError(
            "data check: name a benchmark and --root, or a run's configuration with --config, e.g. "
            "`fcit data check fcit-task --root /data/fcit`"
        )
    spec = _spec(args.benchmark)
    if not bounded.is_dir(args.root):
        fill = f"`fcit data download {args.benchmark} --root ...` fills one"
        own = f"name the one that holds the folders {spec.instructions!r} and {spec.images!r}"
        raise ConfigError(f"--root: no folder {args.root} that can be looked into; {fill if spec.sources else own}")
    findings = _look(args, spec)
    benchmark, names = _opened(args), [d.name for d in findings.datasets if d.test]
    best, forms = constants(benchmark, names, without_java), dict(_forms(benchmark, names))
    if args.json:
        more = {
            "constants": {name: constant._asdict() for name, constant in best.items()},
            "forms": {name: asdict(form) for name, form in forms.items()},
        }
        print(json.dumps({**findings.to_json(), **more}, indent=1))
        return EXIT_OK if findings.good else EXIT_USAGE
    code = _report(findings)
    for name, constant in best.items():
        rule = spec.datasets[name].scorer
        by = f" by our rule `{without_java(rule)}`" if without_java(rule) != rule else ""
        print(f"{name}: best constant answer {constant.score:.1f}{by} ({bounded.shown(constant.text)})")
    for name, form in forms.items():
        print(f"{name}: form of answers: {form}")
    return code


def _configured(args: argparse.Namespace, changes: list[str]) -> int:
    """Every check of its data that a run makes before it trains, for the model it names.

    Raises:
        ConfigError: what would stop the run.
    """
    from rich.table import Table

    from fcit import config as configuration
    from fcit.data.benchmark import Benchmark
    from fcit.data.checks import before_run
    from fcit.data.stream import open_stream
    from fcit.evaluation.reachable import warnings
    from fcit.io.console import console
    from fcit.models.judging import judge_of

    config = configuration.load(args.config, changes)
    benchmark = open_stream(config)
    if not isinstance(benchmark, Benchmark):
        raise ConfigError(
            "--config: with stream: site the data are at the sites; `fcit client check SITE.yaml` looks there"
        )
    benchmark.judged_by(partial(judge_of, config.backbone))
    benchmark.prepare()
    if benchmark.spec.source == "mini":  # rendered here: a run takes it as it is
        benchmark.look()
    benchmark.divide()
    findings = before_run.findings(benchmark, warnings(benchmark))
    if args.json:
        print(json.dumps({"good": True, **findings}, indent=1))
        return EXIT_OK
    most = config.backbone.max_length
    table = Table(title=f"{benchmark.spec.name} as {config.backbone.model} reads it (backbone.max_length {most})")
    for column in ("data set", "split", "format"):
        table.add_column(column)
    for column in ("records", "unusable", "tokens (mean)", "tokens (most)", "turns dropped"):
        table.add_column(column, justify="right")
    for name, splits in findings["tokens"].items():
        for split, counts in splits.items():
            form = benchmark.formats.get(name, "") if split == "train" else ""
            numbers = [counts[key] for key in ("records", "unusable", "mean", "longest")]
            table.add_row(name, split, form, *(f"{number:,}" for number in [*numbers, counts.get("turns_dropped", 0)]))
    screen = console()
    screen.print(table)
    for warning in findings["warnings"]:
        screen.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    return EXIT_OK


def _look(args: argparse.Namespace, spec: BenchmarkSpec) -> Findings:
    from fcit.data.checks.inspection import BETAS, SETTINGS, Inspection
    from fcit.io.cache import cache_folder

    wanted = getattr(args, "setting", None)
    if wanted and wanted not in SETTINGS:
        raise ConfigError(f"--setting: {wanted!r} is none of {', '.join(SETTINGS)}")
    if wanted == "heterogeneous" and not spec.heterogeneous:
        spec.slots(5, args.benchmark)  # says what is missing
    try:
        betas = [str(float(beta)) for beta in getattr(args, "beta", None) or BETAS]
    except ValueError:
        raise ConfigError(f"--beta: {args.beta} must be numbers, e.g. --beta 0.5") from None
    if getattr(args, "clients", 1) < 1:
        raise ConfigError(f"--clients: {args.clients} must be 1 or more")
    every, clients = getattr(args, "all", False), getattr(args, "clients", 50)
    look = Inspection(spec, args.root, cache_folder(), every, clients)
    return look.look([wanted] if wanted else SETTINGS, betas)


def _report(findings: Findings) -> int:
    """Print tables of the findings and their first problems in words; the exit code says whether all is well."""
    from rich.table import Table

    from fcit.io.console import console

    screen = console()
    table = Table(title=f"{findings.benchmark} under {findings.root}")
    left = ("data set", "format", "")
    for column in ("data set", "format", "files", "train", "test", "images looked at", "bad images", "bad records", ""):
        table.add_column(column, justify="left" if column in left else "right")
    for d in findings.datasets:
        existing = sum(size is not None for size in d.files.values())
        numbers = [f"{n:,}" if n is not None else "?" for n in (d.train, d.test, d.images, d.bad_images, d.bad_records)]
        table.add_row(d.name, d.format or "?", f"{existing}/{len(d.files)}", *numbers, "ok" if d.good else "FAIL")
    screen.print(table)
    screen.print(_counts("what the training records are", {d.name: d.conversations for d in findings.datasets}))
    screen.print(_counts("what the images looked at are", {d.name: d.pictures for d in findings.datasets}))
    table = Table(title="what can run")
    for column in ("setting", "beta", "client files", "", ""):
        table.add_column(column)
    for s in findings.settings:
        table.add_row(s.setting, s.beta, s.partition, "ok" if s.runs else "FAIL", s.why)
    screen.print(table)
    problems = [p for d in findings.datasets for p in d.problems] + [
        p for part in findings.partitions for p in part.problems
    ]
    for problem in problems:
        screen.print(problem, highlight=False, markup=False, soft_wrap=True)
    notes = [n for d in findings.datasets for n in d.notes] + [n for part in findings.partitions for n in part.notes]
    for note in dict.fromkeys(notes):  # a note on a partition is the same for every beta
        screen.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    return EXIT_OK if findings.good else EXIT_USAGE


def _counts(title: str, rows: dict[str, dict[str, int]]) -> Table:
    """A table of counts, a row for each data set and a column for each kind that one of them has."""
    from rich.table import Table

    columns = list(dict.fromkeys(column for counts in rows.values() for column in counts))
    table = Table("data set", title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for name, counts in rows.items():
        table.add_row(name, *(f"{counts[column]:,}" if column in counts else "?" for column in columns))
    return table
