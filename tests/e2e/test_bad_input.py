"""Bad input: one clear sentence for each mistake, exit code 2, no traceback, nothing left behind."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.helpers.runs import BACKBONE


def test_all_mistakes_of_a_config_at_once(small, fcit):
    code, _, err = fcit("run", small, "method=disko", "trainng.lr=1", "federation.rounds=many", "seed=-1")
    assert code == 2
    assert "Traceback" not in err
    for part in ("did you mean 'disco'", "did you mean 'training'", "federation.rounds", "seed"):
        assert part in err
    assert not (small.parent / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["benchmark=fcit-mini-tsk"], ["fcit-mini-task"]),
        (["federation.sampling=official"], ["official", "50 clients"]),
        (["method.threshold=2"], ["method.threshold"]),
        (["backbone.model=nowhere/model", "backbone.identity=null"], ["backbone.identity"]),
        (["benchmark=fcit-mini-task", "setting=heterogeneous"], ["slots"]),
        (["training.lr"], ["key=value"]),
    ],
)
def test_refused(small, fcit, overrides, words):
    code, _, err = fcit("run", small, *overrides)
    assert code == 2
    assert "Traceback" not in err
    assert all(word in err for word in words), err


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's own benchmark: two datasets of ten records in LLaVA format."""
    root = tmp_path / "data"
    for name in ("first", "second"):
        (root / "instructions" / name).mkdir(parents=True)
        (root / "datasets" / name).mkdir(parents=True)
        train, test = [], []
        for i in range(10):
            Image.new("RGB", (40 + i, 30), (20 * i, 100, 50)).save(root / "datasets" / name / f"{i}.png")
            human = {"from": "human", "value": f"<image>\nWhich color is {name}?"}
            train.append({"image": f"{name}/{i}.png", "conversations": [human, {"from": "gpt", "value": "red"}]})
            test.append(
                {"question_id": i, "image": f"{name}/{i}.png", "text": f"Which color is {name}?", "answer": "red"}
            )
        (root / "instructions" / name / "train.json").write_text(json.dumps(train, indent=1))
        (root / "instructions" / name / "test.json").write_text(json.dumps(test, indent=1))
    spec = {
        "name": "mine",
        "datasets": {n: {"train": f"{n}/train.json", "test": f"{n}/test.json"} for n in ("first", "second")},
        "tasks": [["first"], ["second"]],
        "partition": {"reserve": 1},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec))
    config = {
        "name": "own",
        "benchmark": "mine.yaml",
        "method": "disco",
        "data_root": str(root),
        "federation": {"clients": 4, "clients_per_round": 2, "rounds": 1},
        "output": str(tmp_path / "runs"),
        "backbone": BACKBONE,
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_own_data_runs(own, fcit):
    code, out, err = fcit("run", own)
    assert code == 0, err
    assert "second" in out


def test_missing_data_root(own, fcit):
    code, _, err = fcit("run", own, "data_root=/nowhere/at/all")
    assert code == 2
    assert "/nowhere/at/all" in err


def test_broken_json_names_file_and_line(own, fcit):
    path = own.parent / "data/instructions/first/train.json"
    lines = path.read_text().splitlines()
    lines[5] = lines[5].replace('"', "", 1)
    path.write_text("\n".join(lines))
    code, _, err = fcit("run", own)
    assert code == 2
    assert "train.json, line" in err
    assert "Traceback" not in err


def test_a_bad_image_stops_the_run_before_it_begins_or_is_passed_over(own, fcit):
    train = own.parent / "data/instructions/first/train.json"
    rows = json.loads(train.read_text())
    rows[3]["image"] = "first/cut.png"
    train.write_text(json.dumps(rows, indent=1))
    whole = (own.parent / "data/datasets/first/3.png").read_bytes()
    (own.parent / "data/datasets/first/cut.png").write_bytes(whole[:40])
    code, _, err = fcit("run", own)
    assert code == 2
    assert "truncated" in err
    assert "raise max_bad_share to 0.1" in err
    code, out, err = fcit("run", own, "max_bad_share=0.1", "federation.clients_per_round=4", "evaluation.samples=2")
    assert code == 0, err
    assert "rejected" not in out


def test_all_missing_images_are_named_before_anything_starts(own, fcit):
    for name in ("first/1.png", "second/2.png"):
        (own.parent / "data/datasets" / name).unlink()
    code, _, err = fcit("run", own)
    assert code == 2
    assert "first/1.png" in err
    assert "second/2.png" in err
    assert not (own.parent / "runs").exists()


def test_image_outside_the_root_is_not_opened(own, fcit):
    path = own.parent / "data/instructions/first/test.json"
    rows = json.loads(path.read_text())
    rows[0]["image"] = "../../secret.png"
    path.write_text(json.dumps(rows))
    Image.new("RGB", (4, 4)).save(own.parent / "secret.png")
    code, _, err = fcit("run", own)
    assert code == 2
    assert "leaves the image root" in err
    assert "Traceback" not in err
