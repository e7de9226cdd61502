import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fcit import config as configuration
from fcit.bench import expected, leaderboard, plan
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.runs.folder import RunDir

BASE = {"benchmark": "fcit-mini-short", "method": "disco", "federation": {"rounds": 2, "clients_per_round": 3}}
ENVIRONMENT = {"fcit": "0", "python": "3", "libraries": {"torch": "2.6"}, "backend": {"machine": "x86_64"}}
COST = {
    "client_rounds": 6,
    "up_per_client_round": 400_000.0,
    "down_per_client_round": 500_000.0,
    "client_seconds": 0.5,
    "server_bytes": 2_000_000,
    "client_memory_bytes": 0.0,
    "parameters": {"trainable": 97_536, "stored": 390_144, "active": 97_536},
    "seconds_per_sample": 0.004,
}


@pytest.fixture(autouse=True)
def a_minute(monkeypatch):
    """What the formula says of every run; counting records would take longer than all these tests."""
    monkeypatch.setattr(expected, "Estimates", lambda: SimpleNamespace(of=lambda config: 60.0))


@pytest.fixture
def write(tmp_path: Path):
    """Write a bench file (text, or keys that are added to a small one) beside a base; returns its path."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def make(text: str = "", **keys) -> Path:
        path = tmp_path / "bench.yaml"
        small = {"name": "small", "base": "base.yaml", "output": str(tmp_path / "out")}
        path.write_text(text or yaml.safe_dump({**small, **keys}, sort_keys=False))
        return path

    return make


@pytest.fixture
def planned(write):
    """The plan of a small bench file with these keys."""
    return lambda **keys: plan.load(write(**keys))


def finish(
    run: plan.Planned,
    marks: dict[str, list[float]],
    cost: dict | None = None,
    score: float | None = None,
    environment: dict | None = None,
    untrained: dict[str, dict[str, float]] | None = None,
) -> None:
    """Leave behind what a run of one stage with these marks leaves; ``score`` for a dataset without marks."""
    folder = RunDir.place(run.folder, configuration.dump(run.config), environment or ENVIRONMENT)
    row = {name: round(100 * sum(values) / len(values), 4) for name, values in marks.items()}
    for name, values in marks.items():
        lines = [
            {"question_id": str(n), "image": "", "prompt": "", "text": "", "answer": "", "mark": mark}
            for n, mark in enumerate(values)
        ]
        _write(folder.predictions / "stage-1" / f"{name}.jsonl", lines)
    if score is not None:
        row["captions"] = score
        line = {"question_id": "0", "image": "", "prompt": "", "text": "", "answer": ""}
        _write(folder.predictions / "stage-1" / "captions.jsonl", [line])
    matrix = AccuracyMatrix.of(list(row), [row], untrained or {})
    folder.matrix.write_text(json.dumps(matrix.to_json()))
    results = {"method": run.config.method["name"], "setting": run.config.setting, **matrix.summary()}
    folder.results.write_text(json.dumps(results if cost is None else {**results, "cost": cost}))


def _write(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def board(planned):
    """Two seeds of fine-tuning and DISCO, one of two of DISCO with another rate, references."""
    made = planned(
        seeds=[0, 1],
        set={"evaluation.samples": 4},
        rows=[
            {"axes": {"method": ["finetune", "disco", "joint"]}},
            {"axes": {"method": ["disco"], "training.lr": [0.001]}},
            {"axes": {"method": ["zero_shot"]}, "seeds": [0]},
        ],
    )
    marks = {"finetune": [1, 0, 0, 0], "disco": [1, 1, 0, 0], "joint": [1, 1, 1, 0], "disco / lr=0.001": [1, 1, 1, 1]}
    for run in made.runs:
        label = run.row.label
        if label == "zero_shot" or (label, run.seed) == ("disco / lr=0.001", 1):
            continue
        environment = {**ENVIRONMENT, "libraries": {"torch": "9.9"}} if label == "joint" else ENVIRONMENT
        values = [1.0, *marks[label][1:]] if run.seed == 0 else [0.0, *marks[label][1:]]
        finish(run, {"a": values}, COST if label == "disco" else None, 50.0, environment)
    return made, leaderboard.collect(made)
