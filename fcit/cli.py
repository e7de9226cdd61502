"""The ``fcit`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from fcit import __version__, cli_adapters, cli_data, cli_deploy, cli_evaluate
from fcit.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, ConfigError, FCITError

_EXAMPLES = """\
examples:
  fcit run configs/demo-disco.yaml                       one run, in the folder runs/
  fcit run configs/task-disco.yaml seed=1 training.lr=0.002
  fcit run configs/task-disco.yaml method=finetune setting=heterogeneous
  fcit resume runs/task-disco-1                          go on after an interruption
  fcit report runs/demo-disco-1 runs/demo-finetune-1     compare runs, draw their matrices
  fcit bench configs/bench/demo.yaml                     many runs and the table that compares them
  fcit list                                              methods, scorers, benchmarks
  fcit list settings                                     every setting with its default
  fcit check-method ./mine.py:MyMethod                   test a method of your own
  fcit evaluate --predictions merge.jsonl --dataset iconqa --root /data/fcit   score others' predictions officially
  fcit export runs/task-disco-1 --to my-adapters         peft adapters that others can load
  fcit chat my-adapters --image cat.png "What is this?"  ask them, see which spoke
  fcit data check fcit-task --root /data/fcit            is the published benchmark complete? also: data download
  fcit deploy init /srv/fcit --clients 3 --host HOST     several machines; then up, register, submit
  fcit client start SITE.yaml                            one of their sites
  fcit doctor                                            check this machine and the built-in model
  fcit doctor --config configs/24gb/disco.yaml           will it fit, and how long will it take

exit codes: 0 done, 1 the run failed (resumable), 2 bad input, 75 stopped on request (resumable), 130 Ctrl-C
"""


def _execute(path: Path, accept_changed_data: bool = False) -> int:
    """Run or resume a run folder on its engine; print the final table."""
    from rich.console import Console

    from fcit.progress import ConsoleWatcher
    from fcit.report import terminal
    from fcit.simulation import execute

    console = Console(width=None if sys.stdout.isatty() else 120)
    with ConsoleWatcher(console, path.name) as watcher:
        try:
            run = execute(path, watcher, accept_changed_data)
        except KeyboardInterrupt:
            print(f"\ninterrupted; `fcit resume {path}` goes on from the last checkpoint", file=sys.stderr)
            return EXIT_INTERRUPTED
    terminal.ending(console, run)
    return EXIT_OK


def _run(args: argparse.Namespace) -> int:
    from fcit import config as configuration
    from fcit.data.benchmark import open_benchmark
    from fcit.simulation import create

    config = configuration.load(args.config, args.overrides)
    print(f"preparing data under {open_benchmark(config).root}", file=sys.stderr)
    path = create(config).path
    print(f"run folder {path.resolve()}", file=sys.stderr)
    return _execute(path)


def _resume(args: argparse.Namespace) -> int:
    from fcit.run_dir import BELONGS, RunDir

    run = RunDir.open(args.run)
    if run.results.is_file():
        print(f"{args.run} is already finished; `fcit report {args.run}` shows it")
        return EXIT_OK
    belongs = run.path / BELONGS
    if belongs.is_file():
        deployment = belongs.read_text(encoding="utf-8").strip()
        also = " --accept-changed-data" * args.accept_changed_data
        raise ConfigError(
            f"{args.run} is run on sites; `fcit deploy submit {deployment} --resume {args.run}{also}` goes on"
        )
    return _execute(args.run, args.accept_changed_data)


def _report(args: argparse.Namespace) -> int:
    from rich.console import Console

    from fcit.report import figures, terminal
    from fcit.report.page import write_all
    from fcit.results import Run

    console = Console(width=None if sys.stdout.isatty() else 120)
    runs = [Run(path) for path in args.runs]
    terminal.show(console, runs)
    output = args.output or (runs[0].path / "report" if len(runs) == 1 else Path("report"))
    page = write_all(runs, output)
    if args.figure is not None:
        args.figure.parent.mkdir(parents=True, exist_ok=True)
        figures.save(figures.matrices(runs), args.figure)
        console.print(f"picture: {args.figure}", highlight=False, soft_wrap=True)
    console.print(f"page:    {page}", highlight=False, soft_wrap=True)
    console.print(f"figures: {output / 'figures'}  tables: {output / 'tables'}", highlight=False, soft_wrap=True)
    return EXIT_OK


def _bench(args: argparse.Namespace) -> int:
    from fcit.bench.command import Wishes, bench

    rows = tuple(args.rows or ())
    return bench(
        Wishes(args.file, args.table, args.dry_run, args.only, rows, args.seeds, args.jobs, args.fresh, args.into)
    )


def _list(args: argparse.Namespace) -> int:
    from fcit import registry
    from fcit.data.spec import read_spec, shipped

    families = ["method", "fedopt", "factors", "robust", "scorer", "engine", "tracker", "benchmark"]
    for family in [args.family] if args.family else families:
        print(f"{family}:")
        if family == "settings":
            from fcit.config import settings

            for key, default, text in settings():
                print(f"  {key + ' = ' + default:44} {text}".rstrip())
            continue
        if family == "benchmark":
            for name in shipped():
                print(f"  {name:20} {read_spec(name).description.strip()}")
            continue
        for name in sorted(registry.FAMILIES[family]):
            part = registry.resolve(family, name)
            text = getattr(part, "summary", "") or (part.__doc__ or "").strip().splitlines()[0]
            sign = " †" if getattr(part, "dagger", False) else ""  # our own definition
            print(f"  {name + sign:20} {text}")
    return EXIT_OK


def _check_method(args: argparse.Namespace) -> int:
    from fcit import config as configuration
    from fcit import registry
    from fcit.methods.contract import check

    overrides = [f"method.{option}" for option in args.options]
    method = configuration.resolve({"method": args.name}, Path.cwd(), "check-method", overrides).method
    name = method.pop("name")
    good = True
    for what, wrong in check(name, method):
        good &= wrong is None
        print(f"{'ok  ' if wrong is None else 'FAIL'} {what}" + (f"\n     {wrong}" if wrong else ""))
    print(f"{registry.label(name)} {'keeps the contract' if good else 'breaks the contract'}")
    return EXIT_OK if good else EXIT_FAILED


def _doctor(args: argparse.Namespace) -> int:
    from fcit.environment import check, own_packages_first

    own_packages_first()
    if args.config is None:
        if args.overrides or args.gpu_gb or args.no_probe:
            raise ConfigError("doctor: name the configuration, e.g. fcit doctor --config configs/24gb/disco.yaml")
        return _checked(check())
    from rich.console import Console

    from fcit import config as configuration
    from fcit.doctor.command import doctor

    config = configuration.load(args.config, args.overrides)
    return doctor(config, args.gpu_gb, not args.no_probe, Console(width=None if sys.stdout.isatty() else 120))


def _checked(checks: Iterable[tuple[str, bool, str]]) -> int:
    good = True
    for what, fine, detail in checks:
        good &= fine
        print(f"{'ok  ' if fine else 'FAIL'} {what}: {detail}", flush=True)
    return EXIT_OK if good else EXIT_FAILED


def _client(args: argparse.Namespace) -> int:
    from fcit.environment import own_packages_first

    own_packages_first()
    if args.action == "start":
        from clients.start import start

        return start(args.site)
    if args.action == "audit":
        from clients.audit import command

        return command(args.site)
    from clients.check import check

    return _checked(check(args.site))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fcit",
        description="Federated continual instruction tuning of multimodal language models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fcit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, work, text: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(work=work)
        return command

    run = add("run", _run, "run a configuration", "fcit run configs/task-disco.yaml seed=1 federation.beta=0.5")
    run.add_argument("config", type=Path, help="YAML file")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting, e.g. training.lr=0.002")
    resume = add("resume", _resume, "go on with an interrupted run", "fcit resume runs/task-disco-1")
    resume.add_argument("run", type=Path, help="run folder")
    resume.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="go on although data or own code are not what they were; the run says so from then on",
    )
    report = add(
        "report",
        _report,
        "show and compare runs: tables, one page to look at, figures (SVG, PDF), CSV, LaTeX",
        "fcit report runs/a-1 runs/b-1 --output ab",
    )
    report.add_argument("runs", type=Path, nargs="+", help="run folders")
    report.add_argument(
        "--output", type=Path, help="folder for page, figures and tables (default: RUN/report, or report)"
    )
    report.add_argument("--figure", type=Path, help="also draw the accuracy matrices here (PNG, SVG or PDF)")
    bench = add(
        "bench", _bench, "run a bench file: many runs, one table", "fcit bench configs/bench/demo.yaml --jobs 2"
    )
    bench.add_argument("file", type=Path, help="YAML file with base, seeds and axes or rows")
    bench.add_argument("--table", action="store_true", help="run nothing, only make the tables of what is finished")
    bench.add_argument("--dry-run", action="store_true", help="list the runs and which are done")
    bench.add_argument("--only", default="", metavar="TEXT", help="run only rows or folders whose name contains this")
    bench.add_argument(
        "--rows", action="append", metavar="NAME", help="run only the row of this label (can be repeated)"
    )
    bench.add_argument(
        "--seeds", metavar="N,N", help="run these seeds of the rows, also seeds that the file does not name"
    )
    bench.add_argument("--jobs", type=int, help="runs at a time (default: the file's, else one per GPU or core)")
    bench.add_argument("--fresh", action="store_true", help="remove and repeat runs that are not the file's any more")
    bench.add_argument("--into", type=Path, metavar="FOLDER", help="also copy the small results there, to be committed")
    listing = add("list", _list, "what can be chosen", "fcit list method")
    families = ["method", "fedopt", "factors", "robust", "scorer", "engine", "tracker", "benchmark", "settings"]
    listing.add_argument("family", nargs="?", choices=families)
    contract = add(
        "check-method", _check_method, "check that a method keeps the contract", "fcit check-method ./mine.py:MyMethod"
    )
    contract.add_argument("name", help="a registered name, package.module:Name or ./file.py:Name")
    contract.add_argument("options", nargs="*", metavar="key=value", help="options of the method, e.g. mix=argmax")
    data = add("data", None, "render, download and check data", cli_data.EXAMPLE)
    cli_data.arguments(data)
    cli_adapters.arguments(add)
    cli_evaluate.arguments(add)
    deploy = add("deploy", None, "the operator's side of a federation on separate machines", cli_deploy.EXAMPLE)
    cli_deploy.arguments(deploy)
    client = add("client", _client, "a site of such a federation", "fcit client check SITE.yaml")
    client.add_argument("action", choices=["start", "check", "audit"],
                        help="run the site in the foreground; check SITE.yaml, data and connection; "
                        "verify and print what was sent")  # fmt: skip
    client.add_argument("site", type=Path, metavar="SITE.yaml")
    doctor = add(
        "doctor", _doctor,
        "check this machine, the libraries and the built-in model; with --config, what a run needs and how long",
        "fcit doctor --config configs/24gb/disco.yaml data_root=/data/fcit --gpu-gb 24",
    )  # fmt: skip
    doctor.add_argument("--config", type=Path, metavar="FILE", help="memory, disk and time of this configuration; "
                        "exit code 2 if it cannot fit")  # fmt: skip
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of it")
    doctor.add_argument("--gpu-gb", type=float, metavar="GB", help="memory of the GPU (default: as here, else 24)")
    doctor.add_argument("--no-probe", action="store_true", help="estimate time from FLOPs; load and run nothing")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from fcit.environment import quiet_libraries

    quiet_libraries()
    args = _parser().parse_args(argv)
    try:
        return int(args.work(args))
    except FCITError as error:
        print(f"fcit: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "fcit", "server", "clients"):
            raise  # a fault of ours
        need = f"this needs the package {error.name!r}, which is not installed; `make install` (or pip) brings it"
        print(f"fcit: {need}; `fcit doctor` tells what is there", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
