"""The accuracy matrix as cells: scores of what was trained, of what was not trained yet, of what never is."""

from __future__ import annotations

from typing import Literal, NamedTuple

from fcit.evaluation.matrix import AccuracyMatrix

Kind = Literal["", "trained", "unseen", "held-out"]  # "": it was not asked

UNTOUCHED = "0"  # the stage before the first


class Cell(NamedTuple):
    """A score and what it is of."""

    value: float | None = None
    kind: Kind = ""


class HeatRow(NamedTuple):
    """One row: the stage, its cells in the order of :func:`columns`, the mean of what was trained."""

    stage: str
    cells: list[Cell]
    mean: float | None


def columns(matrix: AccuracyMatrix) -> list[str]:
    """Data sets of the run, then the held-out ones."""
    return [*matrix.datasets, *matrix.held_out_names]


def rows(matrix: AccuracyMatrix) -> list[HeatRow]:
    """A row for every stage after which something was asked; the first, "0", of the untouched model."""
    heat = []
    for number, trained in enumerate([{}, *matrix.scores]):
        unseen, held_out = matrix.unseen.get(number, {}), matrix.held_out.get(number, {})
        if not trained and not unseen and not held_out:
            continue
        own = [
            Cell(trained[name], "trained")
            if name in trained
            else Cell(unseen[name], "unseen")
            if name in unseen
            else Cell()
            for name in matrix.datasets
        ]
        own += [Cell(held_out[n], "held-out") if n in held_out else Cell() for n in matrix.held_out_names]
        heat.append(HeatRow(str(number), own, sum(trained.values()) / len(trained) if trained else None))
    return heat
