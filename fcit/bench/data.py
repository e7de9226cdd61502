"""The leaderboard as data for other programs: CSV and JSON, with the value of every seed."""

from __future__ import annotations

import json
from typing import Any

from fcit.bench import epsilons
from fcit.bench.bootstrap import LEVEL, RESAMPLES
from fcit.bench.leaderboard import COSTS, Leaderboard, Line, Spread
from fcit.bench.plan import TableKey
from fcit.bench.tables import FEDERATED, notes
from fcit.evaluation.matrix import FORM_FIGURES, AccuracyMatrix
from fcit.report.tables import CONSTANT, FIGURES, csv_text


def to_csv(board: Leaderboard) -> str:
    """One line per row, plain numbers; cost in bytes, seconds and parameters."""
    head = [
        "benchmark",
        "setting",
        "split",
        "reduced",
        "evaluated_after",
        "test_data",
        "group",
        "row",
        "method",
        "family",
        "our_definition",
        "seeds",
        "planned",
    ]
    federated = any(not table.key.centralised for table in board.tables)
    costs = [name for name in COSTS.values() if federated or name not in FEDERATED]
    head += [part for name in (*FIGURES, *FORM_FIGURES, *costs) for part in (name, f"{name}_sd")]
    private = [head for head in epsilons.KINDS if any(head in table.private for table in board.tables)]
    untrained = list(dict.fromkeys(name for table in board.tables for name in table.untrained))
    head += [part for name in untrained for part in (name, f"{name}_sd")]
    rows = [[*head, *private, "baseline", "difference", "low", "high", "differs_in", "made_elsewhere"]]
    for table in board.tables:
        for line in table.lines:
            key, difference = table.key, line.difference
            values = [
                key.benchmark,
                key.setting,
                key.split,
                "; ".join(key.reduced),
                " ".join(map(str, key.stages)),
                key.test_data,
                line.group,
                line.row.label,
                str(line.row.config.method["name"]),
                line.family,
                str(line.dagger).lower(),
                str(len(line.runs)),
                str(len(line.row.seeds)),
            ]
            more = (
                *(line.forms.get(name) for name in FORM_FIGURES),
                *(line.cost[name] for name in costs),
                *(line.untrained.get(name) for name in untrained),
            )
            for value in (*line.figures.values(), *more):
                both = (None, None) if value is None else (value.mean, value.deviation)
                values += ["" if v is None else f"{v:.6g}" for v in both]
            spent = [line.epsilons.get(head) for head in private]
            values += ["" if value is None else f"{max(value.values):.6g}" for value in spent]
            values += (
                [""] * 4
                if difference is None
                else [line.against, *(f"{v:.4f}" for v in (difference.estimate, difference.low, difference.high))]
            )
            rows.append([*values, "; ".join(line.differs), "; ".join(line.elsewhere)])
        if table.constant is not None:
            rows.append(_constant_csv(rows[0], table.key, table.constant))
    return csv_text(rows)


def _constant_csv(head: list[str], key: TableKey, matrix: AccuracyMatrix) -> list[str]:
    """The line of the best constant answer."""
    values = {
        "benchmark": key.benchmark,
        "setting": key.setting,
        "split": key.split,
        "test_data": key.test_data,
        "reduced": "; ".join(key.reduced),
        "evaluated_after": " ".join(map(str, key.stages)),
        "group": "constant",
        "row": CONSTANT,
    }
    values |= {n: f"{v:.6g}" for n, v in (("Last", matrix.last), ("Avg", matrix.avg)) if v is not None}
    return [values.get(name, "") for name in head]


def _json_line(line: Line) -> dict[str, Any]:
    apart = FEDERATED if line.row.config.centralised else ()

    def both(value: Spread | None) -> dict[str, Any] | None:
        return None if value is None else {"mean": value.mean, "sd": value.deviation, "values": list(value.values)}

    difference = line.difference
    return {
        "row": line.row.label,
        "method": line.row.config.method,
        "fedopt": line.row.config.fedopt,
        "group": line.group,
        "family": line.family,
        "our_definition": line.dagger,
        "seeds": list(line.runs),
        "planned_seeds": list(line.row.seeds),
        "runs": [run.name for run in line.runs.values()],
        "figures": {name: both(value) for name, value in line.figures.items()},
        "untrained": {name: both(value) for name, value in line.untrained.items()},
        "forms": {name: both(value) for name, value in line.forms.items()},
        "cost": {name: both(value) for name, value in line.cost.items() if name not in apart},
        "difference": None
        if difference is None
        else {
            "baseline": line.against,
            "estimate": difference.estimate,
            "low": difference.low,
            "high": difference.high,
            "level": LEVEL,
            "resamples": RESAMPLES,
            "by_seed": difference.by_seed,
            "datasets": list(difference.datasets),
            "left_out": difference.left_out,
        },
        **{head.replace(" ", "_"): both(value) for head, value in line.epsilons.items()},
        "differs_in": line.differs,
        "made_elsewhere": line.elsewhere,
        "datasets": {str(seed): run.matrix.scores[-1] for seed, run in line.runs.items()},
        "unseen": {str(seed): run.matrix.unseen for seed, run in line.runs.items() if run.matrix.unseen},
        "held_out": {str(seed): run.matrix.held_out for seed, run in line.runs.items() if run.matrix.held_out},
    }


def to_json(board: Leaderboard) -> str:
    """All tables as JSON, with the value of every seed."""
    tables = [
        {
            **table.key._asdict(),
            "title": table.key.title,
            "baseline": table.baseline,
            "rows": [_json_line(line) for line in table.lines],
            "waiting": table.waiting,
            "notes": notes(table),
            "best_constant_answer": table.constant and table.constant.to_json(),
        }
        for table in board.tables
    ]
    return json.dumps({"bench": board.name, "tables": tables}, indent=1, ensure_ascii=False) + "\n"
