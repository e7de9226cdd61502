"""The report: one self-contained HTML page over one or more runs, and its figures and tables as files."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from fcit.config.kinds import Way
from fcit.data.benchmark import open_benchmark
from fcit.data.images.opening import open_image
from fcit.errors import FCITError
from fcit.io.files import write_text
from fcit.report import faults, figures, heat, hours, notes, scope, tables
from fcit.runs.reader import Prediction, Run

SAMPLES = 4  # predictions shown per dataset
THUMBNAIL = 128  # pixels, longer side


def shade(value: float | None, top: float = 100.0) -> str:
    """Background and text colour of a heat-map cell, bluer for larger values; readable in both themes."""
    if value is None:
        return ""
    share = min(1.0, max(0.0, value / top))
    ink = "#fff" if share > 0.5 else "inherit"
    return f"background:rgb(38 99 171 / {0.06 + 0.94 * share:.2f});color:{ink}"


def _thumbnail(root: Path, image: str, way: Way) -> str:
    """An image as a data URL, as the model saw it.

    Raises:
        DataError: it cannot be read.
    """
    small = open_image(root, image, way)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _picture(root: Path | None, image: str, way: Way) -> str | None:
    """An image as a data URL, if it is on this machine and readable."""
    try:
        return None if root is None else _thumbnail(root, image, way)
    except FCITError:
        return None


def _picked(predictions: list[Prediction]) -> list[Prediction]:
    """A few predictions, wrong and right ones, in record order."""
    wrong = [p for p in predictions if p.mark is not None and p.mark < 0.5]
    right = [p for p in predictions if p not in wrong]
    half = SAMPLES // 2
    chosen = wrong[: max(half, SAMPLES - len(right))] + right[: max(half, SAMPLES - len(wrong))]
    return sorted(chosen[:SAMPLES], key=predictions.index)


def _samples(run: Run) -> list[dict[str, Any]]:
    """Per dataset some predictions of the last evaluated stage, with their images; none of sites, which keep theirs."""
    if run.config.stream == "site":
        return []
    try:
        root: Path | None = open_benchmark(run.config).image_root
    except FCITError:
        root = None  # the data are on another machine: shown without images
    samples = []
    for dataset in run.matrix.datasets:
        if not any(dataset in row for row in run.matrix.scores):
            continue
        items = []
        for prediction in _picked(run.predictions(dataset)):
            pictures = [_picture(root, image, run.config.data.pictures) for image in prediction.images]
            weights = sorted(zip(prediction.mix or [], run.subspaces, strict=False), reverse=True)
            items.append(
                {"p": prediction, "pictures": pictures, "weights": [(n, w) for w, n in weights if w >= 0.01][:3]}
            )
        samples.append({"dataset": dataset, "items": items})
    return samples


def _mixes(run: Run) -> dict[str, Any] | None:
    """Mean weight of every subspace for every dataset, after the last stage."""
    last = {e["dataset"]: e["mix"] for e in run.of("scored") if e.get("mix") is not None}
    names = run.subspaces
    if not last or len(names) < 2:
        return None
    rows = [(d, [m[i] if i < len(m) else 0.0 for i in range(len(names))]) for d, m in last.items()]
    return {"columns": names, "rows": rows}


def _trained(run: Run) -> dict[str, list[str]]:
    """Datasets whose tasks trained each subspace, by the record of the rounds."""
    try:
        tasks = open_benchmark(run.config).spec.tasks
    except FCITError:
        return {}
    by_subspace: dict[str, set[str]] = {}
    for event in run.of("round"):
        for name, numbers in zip(event["subspaces"], event.get("tasks", []), strict=False):
            by_subspace.setdefault(name, set()).update(d for t in numbers for d in tasks[t])
    return {name: sorted(datasets) for name, datasets in by_subspace.items()}


def _one(run: Run) -> dict[str, Any]:
    finished = run.finished
    settings = (run.folder.config).read_text(encoding="utf-8")
    rounds = run.of("round")
    return {
        "run": run,
        "slug": "".join(c if c.isalnum() else "-" for c in run.name),
        "numbers": scope.label(run),
        "accepted": scope.accepted(run),
        "matrix": run.matrix,
        "heat": heat.rows(run.matrix),
        "summary": [(run.matrix.avg_name if n == "Avg" else n, v) for n, v in run.matrix.summary().items()]
        + list(run.matrix.form_summary().items()),
        "rules": tables.rules(run),
        "forms": tables.forms(run),
        "held_out": tables.held_out_rules(run),
        "participants": tables.participant_rows(run),
        "own": tables.personal_rows(run),
        "constant": tables.constant_row(run),
        "rounds": rounds,
        "faults": faults.faults(run),
        "notes": notes.notes(run),
        "mixes": _mixes(run) if finished else None,
        "trained": _trained(run),
        "tables": run.results.get("method_tables", []) if finished else [],
        "samples": _samples(run) if finished else [],
        "clients": Markup(figures.svg(figures.clients, run, title=f"Clients per round of {run.name}"))
        if rounds and not run.config.centralised
        else None,
        "course": Markup(figures.svg(figures.course, run, title=f"Course of the training of {run.name}"))
        if rounds
        else None,
        "settings": settings,
        "environment": json.dumps(run.environment, indent=1),
    }


def render(runs: list[Run]) -> str:
    """The page as text.

    Raises:
        RunError: a run has not evaluated any stage yet.
    """
    environment = Environment(
        loader=PackageLoader("fcit.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(shade=shade, cell=tables.cell)
    finished = [run for run in runs if run.finished]
    charts = {
        "forgetting": figures.svg(figures.forgetting, runs, title="Score of every dataset over the stages"),
        "means": figures.svg(figures.means, runs, title="Mean over the datasets seen"),
    }
    split = [run for run in runs if figures.split(run)]
    if split:
        charts["forms"] = figures.svg(figures.forms, split, title="What was lost of content and of form")
    if clocked := [run for run in finished if hours.curve(run)]:
        charts["hours"] = figures.svg(hours.against_hours, clocked, title="Accuracy against simulated hours")
    if real := [run for run in finished if hours.curve(run, hours.REAL)]:
        charts["real_hours"] = figures.svg(hours.against_hours, real, hours.REAL, title="Accuracy against real hours")
    if finished:
        charts["seconds"] = figures.svg(figures.seconds, finished, title="Where the time went")
    return environment.get_template("page.html").render(
        title=" · ".join(run.name for run in runs),
        runs=[_one(run) for run in runs],
        comparisons=[
            (remark, tables.summary(members), tables.summary_untrained(members))
            for remark, members in scope.groups(finished)
        ],
        notes=scope.notes(finished),
        charts={name: Markup(text) for name, text in charts.items()},
        untrained=[
            text for name, text in tables.MEANINGS.items() if any(name in run.matrix.untrained() for run in runs)
        ],
    )


def write_page(runs: list[Run], path: Path) -> None:
    """Write the page alone."""
    write_text(path, render(runs))


def write_all(runs: list[Run], folder: Path) -> Path:
    """Write page, ``figures/*.{svg,pdf}`` and ``tables/*.{csv,tex}``; returns the page's path."""
    write_page(runs, folder / "report.html")
    finished = [run for run in runs if run.finished]
    drawn: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("matrices", figures.matrices, (runs,)),
        ("forgetting", figures.forgetting, (runs,)),
        ("means", figures.means, (runs,)),
    ]
    if split := [run for run in runs if figures.split(run)]:
        drawn.append(("forms", figures.forms, (split,)))
    if clocked := [run for run in finished if hours.curve(run)]:
        drawn.append(("hours", hours.against_hours, (clocked,)))
    if real := [run for run in finished if hours.curve(run, hours.REAL)]:
        drawn.append(("real-hours", hours.against_hours, (real, hours.REAL)))
    if finished:
        drawn.append(("seconds", figures.seconds, (finished,)))
    for run in runs:
        if run.of("round"):
            drawn += [] if run.config.centralised else [(f"clients-{run.name}", figures.clients, (run,))]
            drawn.append((f"course-{run.name}", figures.course, (run,)))
    for name, maker, arguments in drawn:
        files = (folder / "figures" / f"{name}.{ending}" for ending in ("svg", "pdf"))
        figures.save(figures.draw(maker, *arguments), *files)
    write_tables(runs, folder / "tables")
    return folder / "report.html"


def write_tables(runs: list[Run], folder: Path) -> None:
    """Write every table of a report as ``*.csv`` and ``*.tex``."""
    for name, rows, caption, remark in _tables(runs):
        write_text(folder / f"{name}.csv", tables.csv_text(tables.noted(rows, remark)))
        write_text(folder / f"{name}.tex", tables.latex(rows, scope.titled(caption, remark)))


def _tables(runs: list[Run]) -> Iterator[tuple[str, list[list[str]], str, str]]:
    """File name, rows, caption of every table, and the remark about its numbers."""
    for run in runs:
        remark = scope.label(run)
        yield f"matrix-{run.name}", tables.matrix_rows(run), f"Accuracy matrix of {run.name}", remark
        if len(untrained := tables.untrained_rows(run)) > 1:
            yield f"untrained-{run.name}", untrained, f"Scores of {run.name} on what was not trained", remark
        if len(held_out := tables.held_out_rules(run)) > 1:
            yield f"held-out-{run.name}", held_out, f"Further figures of what {run.name} held out", remark
        if len(each := tables.participant_rows(run)) > 1:
            yield f"participants-{run.name}", each, f"Scores of {run.name} by {each[0][0]}, worst first", remark
        if len(own := tables.personal_rows(run)) > 1:
            yield f"own-{run.name}", own, f"Scores of clients of {run.name} on their own records", remark
        if len(forms := tables.forms(run)) > 1:
            yield f"forms-{run.name}", forms, f"Form of the answers of {run.name}, last stage", remark
        if len(rules := tables.rules(run)) > 1:
            yield f"rules-{run.name}", rules, f"Scores of {run.name} by other rules, last stage", remark
        if len(rows := faults.table(run)) > 1:
            yield f"faults-{run.name}", rows, f"Faults of {run.name}", ""
    parts = scope.groups([run for run in runs if run.finished])
    for remark, members in parts:
        apart = re.sub(r"\W+", "-", f" {remark}").rstrip("-") if len(parts) > 1 else ""
        yield f"comparison{apart}", tables.summary(members), "Comparison", remark
        if len(untrained := tables.summary_untrained(members)) > 1:
            yield f"comparison-untrained{apart}", untrained, "Comparison on what was not trained", remark
