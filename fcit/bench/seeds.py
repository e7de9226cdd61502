"""Additional seeds for some rows of a bench: ``fcit bench FILE --rows NAME --seeds 3,4``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fcit import registry
from fcit.bench.plan import Plan, Planned, Row
from fcit.errors import ConfigError
from fcit.io import bounded
from fcit.io.files import write_json

#: File in the bench folder: folder name of a row -> seeds requested on the command line.
FILE = "seeds.json"


def parse(text: str) -> list[int]:
    """The seeds of ``--seeds 3,4``.

    Raises:
        ConfigError: something else than whole numbers from 0 on, or one twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise ConfigError(f"--seeds {text!r}: must be whole numbers from 0 on, e.g. --seeds 3,4")
    numbers = [int(part) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--seeds {text!r}: names one seed twice")
    return numbers


def remembered(folder: Path) -> dict[str, list[int]]:
    """Seeds requested earlier, by row.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / FILE
    if not bounded.is_file(path):
        return {}
    try:
        raw = json.loads(bounded.read_text(path, bounded.YAML_LENGTH))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"not readable ({error}); remove it, or ask for the seeds again", str(path)) from None
    good = isinstance(raw, dict) and all(
        isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds) for seeds in raw.values()
    )
    if not good:
        raise ConfigError("must name seeds by row; remove it, or ask for the seeds again", str(path))
    return dict(raw)


def remember(made: Plan, more: Mapping[str, Sequence[int]]) -> None:
    """Store requested seeds, so that later calls and tables include these runs."""
    write_json(made.folder / FILE, {slug: list(dict.fromkeys(numbers)) for slug, numbers in more.items()})


def extended(made: Plan, more: Mapping[str, Sequence[int]]) -> Plan:
    """The plan with further seeds of some rows, by the rows' folder names; rows that no longer exist are ignored."""
    rows = [replace(row, seeds=tuple(dict.fromkeys([*row.seeds, *more.get(row.slug, ())]))) for row in made.rows]
    return made.of(rows)


def named(made: Plan, labels: Sequence[str]) -> list[Row]:
    """The rows of these labels (all rows, if there are none).

    Raises:
        ConfigError: no row is called like that.
    """
    names = list(dict.fromkeys(row.label for row in made.rows))
    for label in labels:
        if label not in names:
            raise ConfigError(
                f"--rows {label!r}: no row is called that{registry.nearest(label, names)} (rows: {', '.join(names)})"
            )
    return [row for row in made.rows if not labels or row.label in labels]


def chosen(made: Plan, labels: Sequence[str], wanted: Sequence[int] | None) -> list[Planned]:
    """The runs of rows with these labels and of these seeds; without either, all."""
    slugs = {row.slug for row in named(made, labels)}
    return [run for run in made.runs if run.row.slug in slugs and (wanted is None or run.seed in wanted)]
