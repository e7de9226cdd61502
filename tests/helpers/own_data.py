"""A run over a few records of one's own, as files that a test may spoil."""

import json
from pathlib import Path

import yaml
from PIL import Image

from fcit import config as configuration
from fcit.data.benchmark import Benchmark, open_benchmark
from tests.helpers.runs import BACKBONE

CLIENTS, RECORDS = 3, 12


def make_own(tmp_path: Path) -> Path:
    """Twelve training records and four questions of one's own, for three clients, one round."""
    root = tmp_path / "data"
    (root / "instructions").mkdir(parents=True)
    (root / "datasets").mkdir()
    train, test = [], []
    for i in range(RECORDS):
        Image.new("RGB", (40 + i, 30), (20 * i, 100, 50)).save(root / "datasets" / f"{i}.png")
        human = {"from": "human", "value": f"<image>\nWhich color is number {i}?"}
        train.append({"image": f"{i}.png", "conversations": [human, {"from": "gpt", "value": "red"}]})
    for i in range(4):
        Image.new("RGB", (40, 30), (20 * i, 10, 50)).save(root / "datasets" / f"q{i}.png")
        test.append({"question_id": i, "image": f"q{i}.png", "text": "Which color is it?", "answer": "red"})
    (root / "instructions" / "train.json").write_text(json.dumps(train, indent=1))
    (root / "instructions" / "test.json").write_text(json.dumps(test, indent=1))
    spec = {
        "name": "mine",
        "datasets": {"colors": {"train": "train.json", "test": "test.json"}},
        "tasks": [["colors"]],
        "partition": {"reserve": 2},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec))
    raw = {
        "name": "own",
        "benchmark": "mine.yaml",
        "method": "disco",
        "data_root": str(root),
        "federation": {"clients": CLIENTS, "clients_per_round": CLIENTS, "rounds": 1},
        "output": str(tmp_path / "runs"),
        "backbone": BACKBONE,
        "training": {"batch_size": 4},
        "evaluation": {"max_new_tokens": 2},
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def opened(own: Path, *overrides: str) -> Benchmark:
    return open_benchmark(configuration.load(own, list(overrides)))


def rows(own: Path, change, file: str = "train.json") -> Path:
    """Change the rows of an instruction file in place."""
    path = own.parent / "data" / "instructions" / file
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1))
    return path
