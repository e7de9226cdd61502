"""The leaderboard as text to read: Markdown, LaTeX and the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.markup import escape
from rich.table import Table as Grid

from fcit.bench import epsilons
from fcit.bench.bootstrap import LEVEL, RESAMPLES
from fcit.bench.leaderboard import GROUPS, Leaderboard, Line, Spread, Table
from fcit.report.tables import CONSTANT, FIGURES, MEANINGS, cell, latex

BLOCKS = {"": "", "replay": "store samples", "reference": "references"}


def spread(value: Spread | None) -> str:
    """Mean and, with several seeds, the sample standard deviation."""
    if value is None:
        return "-"
    return f"{value.mean:.1f}" if value.deviation is None else f"{value.mean:.1f} ± {value.deviation:.1f}"


def _difference(line: Line) -> str:
    difference = line.difference
    return "-" if difference is None else f"{difference.estimate:+.1f} [{difference.low:.1f}, {difference.high:.1f}]"


def _three(number: float) -> str:
    """A number with three significant digits."""
    return f"{number:,.0f}" if number >= 99.95 or number == 0 else f"{number:#.3g}"


def _scaled(value: Spread | None, unit: float = 1.0) -> str:
    return "-" if value is None else _three(value.mean / unit)


def _count(value: Spread | None) -> str:
    """A number of parameters with a letter for thousands, millions, billions."""
    if value is None:
        return "-"
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value.mean >= unit:
            return f"{_three(value.mean / unit)} {letter}"
    return f"{value.mean:.0f}"


def marked(line: Line) -> str:
    """The label with its marks."""
    return line.label + (" ‡" if line.elsewhere else "")


def blocks(table: Table) -> list[tuple[str, list[Line]]]:
    """The lines block by block; ranked ones first."""
    return [(BLOCKS[group], table.of(group)) for group in GROUPS if table.of(group)]


def accuracy_head(table: Table) -> list[str]:
    """Heads of the table of figures; an Avg over some of the stages is named so."""
    figures = [table.key.avg if name == "Avg" else name for name in FIGURES]
    others = ["difference [95 %]", "by seed", "family", *table.forms, "differs in"]
    return ["row", "seeds", *figures, *table.untrained, *table.private, *others]


#: Hours of the whole run on a clock that only some runs have, and CPU seconds, which only some engines know.
SIMULATED, CPU = "simulated_hours", ("client_cpu_seconds", "cpu_seconds_per_sample")
#: Columns of the table of cost: where the value stands, its unit, its heads with a federation and without one (none:
#: the column makes no sense there).
COST = (
    ("up", 1e6, "MB up", ""),
    ("down", 1e6, "MB down", ""),
    ("client_seconds", 1.0, "client s", "s/task"),
    ("client_memory_bytes", 1e6, "client MB", "kept MB"),
    ("server_bytes", 1e6, "server MB", "state MB"),
    ("trainable", None, "trainable", "trainable"),
    ("stored", None, "stored", "stored"),
    ("active", None, "active", "active"),
    ("seconds_per_sample", 1.0, "s/sample", "s/sample"),
    (CPU[0], 1.0, "client CPU s", "CPU s/task"),
    (CPU[1], 1.0, "CPU s/sample", "CPU s/sample"),
    (SIMULATED, 1.0, "simulated h", ""),
)


def _cost_columns(table: Table) -> list[tuple[str, float | None, str]]:
    """Key, unit (None: a count) and head of the columns of a table of cost."""
    columns = [(key, unit, central if table.key.centralised else head) for key, unit, head, central in COST]
    absent = {key for key in (SIMULATED, *CPU) if not any(line.cost[key] for line in table.lines)}
    return [column for column in columns if column[2] and column[0] not in absent]


#: Costs that only a federation has.
FEDERATED = tuple(key for key, _, _, central in COST if not central)


def cost_head(table: Table) -> list[str]:
    """Heads of the table of cost."""
    return ["row", *(head for _, _, head in _cost_columns(table))]


def accuracy_cells(table: Table, line: Line) -> list[str]:
    """One row of the table of figures."""
    figures = [spread(line.figures[name]) for name in FIGURES]
    by_seed = line.difference.by_seed.values() if line.difference else ()
    single = " ".join(f"{value:+.1f}" for value in by_seed) or "-"
    private = [_three(max(line.epsilons[head].values)) if head in line.epsilons else "-" for head in table.private]
    return [
        marked(line),
        line.seeds,
        *figures,
        *(spread(line.untrained.get(head)) for head in table.untrained),
        *private,
        _difference(line),
        single,
        line.family or "-",
        *(spread(line.forms.get(name)) for name in table.forms),
        "; ".join(line.differs),
    ]


def constant_cells(table: Table) -> list[str]:
    """The row of the best constant answer, as :func:`accuracy_cells`; empty if unknown."""
    if table.constant is None:
        return []
    figures = {"Last": table.constant.last, "Avg": table.constant.avg}
    others = ["-" for _ in accuracy_head(table)[2 + len(FIGURES) : -1]]
    return [CONSTANT, "-", *(cell(figures.get(name)) for name in FIGURES), *others, ""]


def cost_cells(table: Table, line: Line) -> list[str]:
    """One row of the table of cost: a client in a round (or a task), the server, a sample."""
    values = [(line.cost[key], unit) for key, unit, _ in _cost_columns(table)]
    return [marked(line), *(_count(value) if unit is None else _scaled(value, unit) for value, unit in values)]


def _left_out(table: Table) -> list[str]:
    reasons: dict[str, dict[str, None]] = {}
    for line in table.lines:
        for dataset, why in (line.difference.left_out if line.difference else {}).items():
            reasons.setdefault(f"{dataset} ({why})", {})[line.row.label] = None
    rows = sum(line.difference is not None for line in table.lines)
    return [
        reason if len(labels) == rows else f"{reason}, for {', '.join(labels)}" for reason, labels in reasons.items()
    ]


def _seeds(table: Table) -> list[str]:
    """Rows with other seeds than most rows."""
    each = {line.row.label: tuple(sorted(line.runs)) for line in table.lines}
    usual, _ = Counter(each.values()).most_common(1)[0]
    others = [f"{label} has {', '.join(map(str, seeds))}" for label, seeds in each.items() if seeds != usual]
    return [f"Seeds are {', '.join(map(str, usual))}; {'; '.join(others)}."] if others else []


def _elsewhere(table: Table) -> list[str]:
    """What rows marked ‡ differ in; what all of them share is said once."""
    labels: dict[str, list[str]] = {}
    for line in table.lines:
        if line.elsewhere:
            labels.setdefault("; ".join(line.elsewhere), []).append(line.label)
    return [
        f"‡ {'every row' if len(names) == len(table.lines) > 1 else ', '.join(names)}: {text}."
        for text, names in labels.items()
    ]


def _compared(table: Table) -> str:
    """What differences are to: the baseline, and the rows that are compared with others."""
    others: dict[str, list[str]] = {}
    for line in table.lines:
        if line.difference and line.against != table.baseline:
            others.setdefault(line.against, []).append(line.row.label)
    apart = [f"{', '.join(labels)} minus {against}" for against, labels in others.items()]
    usual = [f"row minus {table.baseline}"] if table.baseline is not None else []
    return "; ".join([*usual, *apart])


def notes(table: Table) -> list[str]:
    """Notes below the table."""
    sentences = [
        "Mean ± sample standard deviation over seeds. Ranked by Last; references and methods that store "
        "samples stand apart and are not ranked."
    ]
    if table.key.reduced:
        sentences.append(
            "Reduced numbers: for looking ahead, not to be held against full ones of this or other tables."
        )
    if table.key.stages:
        sentences.append(
            "Stages that were not evaluated leave no MFT, BWT and forgetting, and no Avg over the whole course."
        )
    if table.forms:
        sentences.append(
            "form share: answers after the last stage that have the form their question demands, e.g. one letter. "
            "content forgetting: what is forgotten although the form of answers is mended; form forgetting: the rest."
        )
    if table.baseline is None:
        sentences.append(
            f"The baseline has no finished run here, so there are no differences to it; settings and versions "
            f"are compared with {table.reference}."
        )
    if any(line.difference for line in table.lines):
        sentences.append(
            f"difference: {_compared(table)} in points of Last, over the seeds both have; {LEVEL:.0%} "
            f"interval of a paired bootstrap over test records ({RESAMPLES:,} resamples within each dataset and "
            "seed). It is about the questions asked of these trained models, not about other seeds: how much "
            "those change is under by seed. The questions are the same for every seed, so it is a little narrow."
        )
        sentences += [
            f"The difference leaves out {reason}, so it is not that of the column Last." for reason in _left_out(table)
        ]
    if table.constant is not None:
        last = [row for row in table.constant.scores if row][-1]
        each = ", ".join(f"{name} {score:.1f}" for name, score in last.items())
        sentences.append(
            f"{CONSTANT}: one text to every question of a dataset, the best of some that were tried, so a lower bound "
            f"({each}). A dataset that is not above it shows no learning, unless its rule can be met by an empty text "
            "or by all answers at once: 100 tells of the rule."
        )
    sentences += [text for name, text in MEANINGS.items() if any(h.partition(" (")[0] == name for h in table.untrained)]
    sentences += table.apart
    sentences += _seeds(table)
    if any(line.dagger for line in table.lines):
        sentences.append("† our definition.")
    sentences += _elsewhere(table)
    if any(line.cost["up"] for line in table.lines):
        sentences.append(
            "kept MB: what training keeps of earlier tasks; state MB: subspaces and state of the method; s/sample: per "
            "answer."
            if table.key.centralised
            else "MB up and down, client s, client MB: of one client in one round; s/sample: per answer."
        )
    if any(line.cost[key] for line in table.lines for key in CPU):
        sentences.append(
            "CPU s: the same of a core alone; what else the machine did hardly changes it, and lengthens the others."
        )
    if any(line.cost[SIMULATED] for line in table.lines):
        sentences.append(
            "simulated h: of the whole run, on the clock of devices.profile (downloads, training, uploads; evaluation "
            "takes no time on it)."
        )
    for head in table.private:
        lines = [line for line in table.lines if head in line.epsilons]
        runs = [(line.row.label, run.results) for line in lines for run in line.runs.values()]
        sentences += epsilons.sentences(head, runs)
    if table.waiting:
        sentences.append(f"No finished run yet: {', '.join(table.waiting)}.")
    return sentences


def _markdown_rows(table: Table, head: list[str], cells: Any, last: list[str] | None = None) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for title, rows in blocks(table):
        if title:
            lines.append(f"| *{title}* |" + " |" * (len(head) - 1))
        lines += [f"| {' | '.join(c.replace('|', '/') for c in cells(line))} |" for line in rows]
    return lines + ([f"| {' | '.join(last)} |"] if last else [])


def markdown(board: Leaderboard) -> str:
    """All tables as Markdown."""
    parts = [f"# {board.name}", ""]
    for table in board.tables:
        accuracy = _markdown_rows(table, accuracy_head(table), partial(accuracy_cells, table), constant_cells(table))
        parts += [f"## {table.key.title}", "", *accuracy, ""]
        if any(table_line.cost["up"] for table_line in table.lines):
            parts += [*_markdown_rows(table, cost_head(table), partial(cost_cells, table)), ""]
        parts += [*(f"- {note}" for note in notes(table)), ""]
    return "\n".join(parts)


def tex(board: Leaderboard) -> str:
    """Tables for the LaTeX package booktabs, the notes as comments."""
    parts = []
    for table in board.tables:
        kinds: list[tuple[str, list[str], Callable[[Line], list[str]]]] = [
            ("accuracy", accuracy_head(table), partial(accuracy_cells, table))
        ]
        if any(line.cost["up"] for line in table.lines):
            kinds.append(("cost", cost_head(table), partial(cost_cells, table)))
        for kind, head, cells in kinds:
            rows = [head]
            for title, lines in blocks(table):
                rows += [[title, *[""] * (len(head) - 1)]] if title else []
                rows += [cells(line) for line in lines]
            if kind == "accuracy" and table.constant is not None:
                rows.append(constant_cells(table))
            parts.append(latex(rows, f"{board.name}: {table.key.title} ({kind})"))
        parts += [f"% {note}" for note in notes(table)]
    text = "\n".join(parts) + "\n"
    for sign, command in (("±", r"$\pm$"), (" †", r"$^\dagger$"), (" ‡", r"$^\ddagger$")):
        text = text.replace(sign, command)
    return text


#: Columns of the compact table, and those left if they do not fit.
COMPACT = (
    ("seeds", "Last", "Avg", "forgetting", "difference [95 %]", "MB up", "MB down", "simulated h"),
    ("seeds", "Last", "Avg", "forgetting", "difference [95 %]"),
    ("seeds", "Last", "difference [95 %]"),
    ("Last",),
)


def terminal(table: Table, name: str, width: int) -> Grid:
    """The compact table, in columns that fit."""
    filled, names = {}, accuracy_head(table)
    constant = dict(zip(names, constant_cells(table), strict=False))
    for line in table.lines:
        cells = dict(zip(names, accuracy_cells(table, line), strict=True))
        filled[line.row.label] = cells | dict(zip(cost_head(table), cost_cells(table, line), strict=True))

    def needs(columns: tuple[str, ...]) -> int:
        return 1 + sum(
            3 + max(len(head), *(len(c.get(head, "-")) for c in [*filled.values(), constant]))
            for head in ("row", *columns)
        )

    known = {"Avg", *names, *cost_head(table)}
    compact = [
        (*(table.key.avg if head == "Avg" else head for head in columns if head in known), *table.private)
        for columns in COMPACT
    ]
    compact.insert(0, (*compact[0], *table.untrained))
    columns = next((columns for columns in compact if needs(columns) <= width), compact[-1])
    grid = Grid(title=f"{name}: {table.key.title}", title_justify="left")
    grid.add_column("row", overflow="fold")
    for head in columns:
        grid.add_column(escape(head), justify="right", no_wrap=True)
    for title, lines in blocks(table):
        grid.add_section()
        if title:
            grid.add_row(f"[dim]{title}[/dim]")
        for line in lines:
            grid.add_row(*(escape(filled[line.row.label][head]) for head in ("row", *columns)))
    if constant:
        grid.add_section()
        grid.add_row(*(escape(constant.get(head, "-")) for head in ("row", *columns)))
    return grid
