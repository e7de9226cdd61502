"""``fcit report``: shows and compares runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from fcit.cli.commands import Add
from fcit.cli.completion import completed, run_folders
from fcit.errors import EXIT_OK, ConfigError

FIGURES = (".png", ".svg", ".pdf")  # what --figure can end with


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add(
        "report",
        _report,
        "show and compare runs",
        "fcit report runs/demo-disco-1 runs/demo-finetune-1 --output comparison --open",
        "Prints tables, and writes one HTML page, figures (SVG, PDF) and tables (CSV, LaTeX). Unfinished runs are\n"
        "shown as far as they go.",
    )
    completed(command.add_argument("runs", type=Path, nargs="+", help="run folders"), run_folders)
    command.add_argument(
        "--output", type=Path, help="folder for page, figures and tables (default: RUN/report, or report)"
    )
    command.add_argument("--figure", type=Path, help="also draw the accuracy matrices here (PNG, SVG or PDF)")
    command.add_argument("--open", action="store_true", help="open the page in the browser of this machine")


def _report(args: argparse.Namespace) -> int:
    from fcit.io.console import console
    from fcit.report import figures, terminal
    from fcit.report.page import write_all
    from fcit.runs.reader import Run

    if args.figure is not None and args.figure.suffix.lower() not in FIGURES:
        raise ConfigError(f"--figure: {str(args.figure)!r} must end with {', '.join(FIGURES)}")
    screen = console()
    runs = [Run(path) for path in args.runs]
    terminal.show(screen, runs)
    output = args.output or (runs[0].path / "report" if len(runs) == 1 else Path("report"))
    try:
        page = write_all(runs, output)
        if args.figure is not None:
            args.figure.parent.mkdir(parents=True, exist_ok=True)
            figures.save(figures.matrices(runs), args.figure)
    except OSError as error:
        raise ConfigError(
            f"the page cannot be made in {output} ({error}); name a folder that can be written and has room, "
            "--output DIR"
        ) from None
    if args.figure is not None:
        screen.print(f"picture: {args.figure}", highlight=False, soft_wrap=True)
    screen.print(f"page:    {page}", highlight=False, soft_wrap=True)
    screen.print(f"figures: {output / 'figures'}  tables: {output / 'tables'}", highlight=False, soft_wrap=True)
    if args.open:
        screen.print(_opened(page), highlight=False, soft_wrap=True)
    return EXIT_OK


def _opened(page: Path) -> str:
    """Open a page in the browser; what happened, in a sentence."""
    import webbrowser

    if webbrowser.open(page.resolve().as_uri()):
        return "opened in the browser"
    return f"no browser is at hand here; open {page.resolve()} in one"
