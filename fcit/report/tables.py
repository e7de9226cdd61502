"""Tables of runs as rows of text, and their forms as CSV and for LaTeX."""

from __future__ import annotations

import csv
import io
import re

from fcit import registry
from fcit.evaluation import personal
from fcit.evaluation.matrix import FORM_FIGURES, AccuracyMatrix
from fcit.report import heat
from fcit.runs.reader import Run

#: The same text for every question: a model below that has learnt nothing (:mod:`fcit.evaluation.constant`).
CONSTANT = "best constant answer"
PARTICIPANTS = 20  # sites or clients that a table names
FIGURES = ("Last", "Avg", "MFT", "BWT", "forgetting")
#: Figures about what was not trained (yet) and what they mean, in a sentence.
MEANINGS = {
    "unseen": "unseen: mean score on data sets before they are trained, over all stages before.",
    "unseen gain": "unseen gain: the same minus the untouched model's score.",
    "FWT": "FWT: score right before a data set is trained, minus the untouched model's.",
    "general": "general: mean over held-out data sets, which are never trained, after the last stage.",
    "general lost": "general lost: the same of the untouched model minus that.",
    "own": "own: mean over clients of the score on records of their own shards, kept out of training, after the stage.",
    "own worst": "own worst: the same over the worst tenth of them.",
    "own tuned": "own tuned: with a round of local training more; own alone: of adapters that clients train alone.",
    "own private": "own private: the same where factors stay with clients, each with its own.",
    "helped": "helped: percentage of clients for whom the run's model is better than the one they train alone.",
}


def cell(value: float | None) -> str:
    """A score with one decimal, or a dash."""
    return "-" if value is None else f"{value:.1f}"


def summary(runs: list[Run], brief: bool = False) -> list[list[str]]:
    """Head and one row per run: figures of merit, subspaces, traffic in MB (where there is a federation), minutes.

    The runs must have one scope (:func:`fcit.report.scope.groups`). Averages over different stages have a column
    each. Without the families of methods and the figures about the form of answers (which only some runs have) it is
    brief enough for a terminal.
    """
    avgs = sorted({run.matrix.avg_name for run in runs if run.matrix.avg is not None}, key=lambda n: (n != "Avg", n))
    avgs = avgs or ["Avg"]
    traffic = [] if all(run.config.centralised for run in runs) else ["down", "up"]
    wire = [{"down": "MB sent", "up": "MB back"}[way] for way in traffic]
    formed = FORM_FIGURES if not brief and any(run.matrix.form_summary() for run in runs) else ()
    family = [] if brief else ["family"]
    rows = [["run", "method", *family, "Last", *avgs, *FIGURES[2:], *formed, "subspaces", *wire, "minutes"]]
    for run in runs:
        results, matrix = run.results, run.matrix
        seconds, figures = results["seconds"], matrix.summary()
        rows.append(
            [
                run.name,
                run.method,
                *(run.family or "-" for _ in family),
                cell(matrix.last),
                *(cell(matrix.avg if name == matrix.avg_name else None) for name in avgs),
                *(cell(figures[f]) for f in FIGURES[2:]),
                *(cell(matrix.form_summary().get(f)) for f in formed),
                str(results["subspaces"]),
                *("-" if run.config.centralised else f"{results['traffic'][way] / 1e6:.1f}" for way in traffic),
                f"{sum(seconds.values()) / 60:.1f}",
            ]
        )
    return rows


def untrained(matrices: list[AccuracyMatrix]) -> tuple[list[str], list[list[float | None]]]:
    """Heads of the figures about what was not trained (yet), and those of every matrix.

    Figures over different held-out data sets have a column each, which names them.
    """
    held_out = {", ".join(matrix.held_out_names) for matrix in matrices if matrix.held_out}

    def head(name: str, matrix: AccuracyMatrix) -> str:
        apart = name.startswith("general") and len(held_out) > 1
        return f"{name} ({', '.join(matrix.held_out_names)})" if apart else name

    each = [{head(name, matrix): value for name, value in matrix.untrained().items()} for matrix in matrices]
    order = list(MEANINGS)
    heads = sorted({head for figures in each for head in figures}, key=lambda h: (order.index(h.partition(" (")[0]), h))
    return heads, [[figures.get(head) for head in heads] for figures in each]


def summary_untrained(runs: list[Run]) -> list[list[str]]:
    """Head and one row per run as :func:`summary`, of figures about what was not trained; only the head without any."""
    heads, figures = untrained([run.matrix for run in runs])
    rows = [[run.name, run.method, *map(cell, values)] for run, values in zip(runs, figures, strict=True)]
    return [["run", "method", *heads], *(rows if heads else [])]


def untrained_rows(run: Run) -> list[list[str]]:
    """Head and one row for every stage: scores of data sets not trained by then, and of the held-out ones.

    Only the head if none was asked. Stage 0: of the untouched model.
    """
    matrix = run.matrix
    names = [name for name in heat.columns(matrix) if any(name in row for row in _untrained_scores(matrix).values())]
    rows = [["stage", *names]]
    for stage, row in sorted(_untrained_scores(matrix).items()):
        rows.append([str(stage), *(cell(row.get(name)) for name in names)])
    return rows


def personal_rows(run: Run) -> list[list[str]]:
    """Head and one row for every stage, and for all: scores of clients' own models; only the head without any."""
    models = [head for name in personal.MODELS for head in (name, f"{name} worst")]
    heads = [*models, "helped %", "tuning helps %"]
    rows = [["after stage", "clients", *heads]]
    own = run.results.get("personal") if run.finished else None
    for stage, figures in {**own["stages"], "all": own}.items() if own else ():
        scores = [figures.get(name, {}).get(key) for name in personal.MODELS for key in ("mean", "worst")]
        rows.append([stage, str(figures["clients"]), *map(cell, (*scores, figures["helped"], figures["tuning_helps"]))])
    return rows


def participant_rows(run: Run) -> list[list[str]]:
    """Head and one row for every site, or client with factors of its own, worst first: its mean over the last row.

    Only the head where participants were not scored one by one. No more than :data:`PARTICIPANTS`, the rest is counted.
    """
    own = (run.results.get("sites") or run.results.get("clients") or {}) if run.finished else {}
    kind = "site" if "sites" in (run.results if run.finished else {}) else "client"
    scores = sorted(own.items(), key=lambda pair: pair[1])
    rows = [[name, cell(score)] for name, score in scores[:PARTICIPANTS]]
    if left := len(scores) - len(rows):
        rows.append([f"and {left} more", f"up to {cell(scores[-1][1])}"])
    return [[kind, "Last"], *rows]


def held_out_rules(run: Run) -> list[list[str]]:
    """Head and one row for every further figure of a held-out data set's rules, of the untouched model and at the end.

    Only the head for an unfinished run, or if the rules have none.
    """
    rows = [["dataset", "figure", "untouched", "last"]]
    also = run.results.get("held_out", {}).get("also", {}) if run.finished else {}
    before, after = also.get("before", {}), also.get("after", {})
    for dataset, figures in after.items():
        rows += [
            [dataset, registry.label(name), cell(before.get(dataset, {}).get(name)), cell(value)]
            for name, value in figures.items()
        ]
    return rows


def _untrained_scores(matrix: AccuracyMatrix) -> dict[int, dict[str, float]]:
    stages = matrix.unseen.keys() | matrix.held_out.keys()
    return {stage: matrix.unseen.get(stage, {}) | matrix.held_out.get(stage, {}) for stage in stages}


def constant_matrix(run: Run) -> AccuracyMatrix | None:
    """The matrix of the best constant answers, or None if they are not known for all data sets."""
    matrix, known = run.matrix, run.constants
    if any(name not in known for row in matrix.scores for name in row):
        return None
    return AccuracyMatrix(matrix.datasets, [{name: known[name] for name in row} for row in matrix.scores])


def constant_row(run: Run) -> list[str]:
    """The row below an accuracy matrix; empty if unknown, e.g. for old run folders."""
    if not run.constants:
        return []
    whole = constant_matrix(run)
    cells = [cell(run.constants.get(name)) for name in run.matrix.datasets]
    return [CONSTANT, *cells, cell(whole.last if whole else None)]


def matrix_rows(run: Run) -> list[list[str]]:
    """Head and one row per evaluated stage; last the best constant answer, if known."""
    matrix = run.matrix
    rows = [["stage", *matrix.datasets, "mean"]]
    for number, row in enumerate(matrix.scores, start=1):
        if row:
            rows.append([str(number), *(cell(row.get(n)) for n in matrix.datasets), cell(sum(row.values()) / len(row))])
    return rows + [row for row in [constant_row(run)] if row]


def forms(run: Run) -> list[list[str]]:
    """Head and one row for every dataset of the last evaluated stage, then their means: the form of its answers.

    Columns: the form demanded; the share of answers that has it when the dataset was first seen, and last; score and
    content score last; forgetting, and its two parts. Only the head where nothing is known of forms.
    """
    heads = "dataset,form,share at first,share at last,score,content score,forgetting,of content,of form"
    rows = [heads.split(",")]
    matrix = run.matrix
    last = matrix.evaluated[-1] - 1
    if not matrix.form_summary() or last >= len(matrix.contents):
        return rows
    demanded = run.results.get("forms", {}) if run.finished else {}
    firsts: dict[str, float] = {}
    for row in matrix.shares:
        firsts = {**row, **firsts}
    losses, scores, contents, shares = matrix.losses, matrix.scores[last], matrix.contents[last], matrix.shares[last]
    for name in (name for name in matrix.datasets if name in scores):
        loss = losses.get(name)
        parts = [loss.score, loss.content, loss.form] if loss else [None] * 3
        values = [firsts.get(name), shares.get(name), scores[name], contents.get(name), *parts]
        rows.append([name, " or ".join(demanded.get(name, {})) or "-", *map(cell, values)])
    content = sum(contents.values()) / len(contents) if contents else None
    parts = [matrix.forgetting, matrix.content_forgetting, matrix.form_forgetting]
    return [*rows, ["mean", "-", "-", *map(cell, [matrix.share, matrix.last, content, *parts])]]


def rules(run: Run) -> list[list[str]]:
    """Head and one row for every score by an additional rule, beside the rule of the matrix; after the last stage.

    Only the head for an unfinished run, or if the benchmark names no additional rules.
    """
    rows = [["dataset", "rule", "score", "other rule", "its score"]]
    results = run.results if run.finished else {}
    names = results.get("scorers", {})
    for dataset, others in results.get("also", {}).items():
        rule = registry.label(names[dataset]) if dataset in names else "-"
        head = [dataset, rule, cell(run.matrix.scores[-1].get(dataset))]
        rows += [[*head, registry.label(other), cell(score)] for other, score in others.items()]
    return rows


def noted(rows: list[list[str]], remark: str) -> list[list[str]]:
    """Rows with the remark about their numbers in a last column, for files without a title."""
    return [[*rows[0], "numbers"], *([*row, remark] for row in rows[1:])] if remark else rows


def csv_text(rows: list[list[str]]) -> str:
    """Comma-separated values; a dash becomes an empty field."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([["" if c == "-" else c for c in row] for row in rows])
    return file.getvalue()


_LATEX = str.maketrans(
    {
        "&": r"\&",
        "%": r"\%",
        "_": r"\_",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
    }
)


_FIGURE = re.compile(r"-|[-+]?\d[\d.,]*( ± [\d.]+| [-+ \d.]+)?( \[.*\])?")


def latex(rows: list[list[str]], caption: str) -> str:
    """A table for the LaTeX package booktabs; columns of figures are right-aligned."""
    head, *body = rows
    texts = [not any(_FIGURE.fullmatch(c) for c in col) for col in zip(*body, strict=True)]
    columns = "".join("l" if text else "r" for text in texts) or "l" * len(head)
    lines = [" & ".join(c.translate(_LATEX) for c in row) + r" \\" for row in rows]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
