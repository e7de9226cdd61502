"""What passes over all programs come to: agreement on the work done, exact answers, medians, ratios, a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

#: The program that all others are compared with.
REFERENCE = "fcit-inline"
#: What must be the same for all programs: optimiser steps, records learnt, questions answered.
WORK = ("steps", "records", "answers")


class Measured(TypedDict):
    """One program in one pass; ``cpu`` is None where processes are not all children of the one started."""

    wall: float
    cpu: float | None
    work: dict[str, Any]


Pass = Mapping[str, Measured]


def expected(plan: Mapping[str, Any]) -> dict[str, int]:
    """The work that a plan amounts to."""
    shares = [share["records"] for stage in plan["stages"] for round_ in stage["rounds"] for share in round_]
    asked = [len(plan["questions"][name]["asked"]) for stage in plan["stages"] for name in stage["evaluate"]]
    steps = sum(-(-records // plan["batch_size"]) for records in shares)
    return {"steps": steps, "records": sum(shares), "answers": sum(asked)}


def check(program: str, work: Mapping[str, Any], wanted: Mapping[str, int]) -> None:
    """Hold a program to the work of the plan.

    Raises:
        ValueError: it did other work, and which.
    """
    wrong = [f"{work[name]} {name} instead of {wanted[name]}" for name in WORK if work[name] != wanted[name]]
    if wrong:
        raise ValueError(f"{program}: {', '.join(wrong)}; its time cannot be compared")


def exact(texts: Sequence[str], answers: Sequence[Sequence[str]]) -> int:
    """How many texts equal one of the answers to their question, ignoring case and blanks around them."""
    pairs = zip(texts, answers, strict=True)
    return sum(text.strip().casefold() in {a.strip().casefold() for a in right} for text, right in pairs)


def summary(passes: Sequence[Pass]) -> dict[str, dict[str, Any]]:
    """Medians of each program's seconds, and the ratio of its wall time to the reference's, pass by pass."""
    figures: dict[str, dict[str, Any]] = {}
    for program in passes[0] if passes else ():
        runs = [one[program] for one in passes]
        cpus = [run["cpu"] for run in runs if run["cpu"] is not None]
        ratios = [one[program]["wall"] / one[REFERENCE]["wall"] for one in passes if REFERENCE in one]
        figures[program] = {
            "wall": round(statistics.median(run["wall"] for run in runs), 2),
            "cpu": round(statistics.median(cpus), 2) if cpus else None,
            "ratios": [round(ratio, 4) for ratio in ratios],
            "ratio": round(statistics.median(ratios), 4) if ratios else None,
            "accuracy": round(statistics.median(run["work"]["accuracy"] for run in runs), 4),
            "loss": round(statistics.median(run["work"]["loss"] for run in runs), 4),
        }
    return figures


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary for people: ratios as median [lowest, highest]."""
    lines = [f"{'program':<12} {'wall s':>8} {'CPU s':>8}  {'wall / ' + REFERENCE:<24} {'exact':>6} {'loss':>6}"]
    for program, of in figures.items():
        cpu = "-" if of["cpu"] is None else f"{of['cpu']:.2f}"
        ratios = of["ratios"]
        ratio = f"{of['ratio']:.3f} [{min(ratios):.3f}, {max(ratios):.3f}]" if ratios else "-"
        times = f"{program:<12} {of['wall']:>8.2f} {cpu:>8}"
        lines.append(f"{times}  {ratio:<24} {100 * of['accuracy']:>5.1f}% {of['loss']:>6.3f}")
    return "\n".join(lines)
