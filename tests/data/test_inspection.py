"""``fcit data check`` of a benchmark of one's own, as README has one; the published ones are in test_official.py."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcit.config import resolve
from fcit.data.benchmark import open_benchmark

MINE = """\
name: mine
datasets:
  flowers: {train: flowers/train.json, test: flowers/test.json, scorer: exact}
  receipts:
    train: receipts/train.json
    test: receipts/test.json
    scorer: exact
    suffix: Answer the question using a single word or phrase.
tasks: [[flowers], [receipts]]
partition: {reserve: 1}
"""
RECORDS = 12


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """Twelve training records and six questions for each of two data sets, every picture another one."""
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in ("flowers", "receipts"):
        images, texts = tmp_path / "data/datasets" / name, tmp_path / "data/instructions" / name
        images.mkdir(parents=True)
        texts.mkdir(parents=True)
        for n in range(RECORDS + 6):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(images / f"{n}.bmp")  # all of one size
        turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "rose"}]
        train = [{"id": n, "image": f"{name}/{n}.bmp", "conversations": turns} for n in range(RECORDS)]
        test = [
            {"question_id": n, "image": f"{name}/{n}.bmp", "text": "Which?", "answer": "rose"}
            for n in range(RECORDS, RECORDS + 6)
        ]
        (texts / "train.json").write_text(json.dumps(train, indent=1))
        (texts / "test.json").write_text(json.dumps(test, indent=1))
    (tmp_path / "mine.yaml").write_text(MINE)
    return tmp_path


@pytest.fixture
def check(own, fcit):
    """Findings of a check, and its notes by data set."""

    def _check(*args: object, code: int = 0) -> dict:
        got, out, err = fcit("data", "check", own / "mine.yaml", "--root", own / "data", *args, "--json")
        assert got == code and not err, out + err
        return json.loads(out)

    return _check


def test_nothing_to_say(own, check, fcit):
    found = check("--clients", 3)
    assert [d["notes"] for d in found["datasets"]] == [[], []]
    assert all(not p["notes"] for p in found["partitions"])
    assert [d["images"] for d in found["datasets"]] == [RECORDS + 6] * 2
    counts = {"turned by EXIF": 0, "transparent": 0, "one single colour": 0, "test pictures in training": 0}
    assert [d["pictures"] for d in found["datasets"]] == [counts] * 2
    code, out, _ = fcit("data", "check", own / "mine.yaml", "--root", own / "data", "--clients", 3)
    assert code == 0
    assert "note:" not in out
    assert "turned by EXIF" in out


def test_kinds_of_pictures_are_counted(own, check):
    folder = own / "data/datasets/flowers"
    exif = Image.Exif()
    exif[274] = 8
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(folder / "0.bmp", "PNG", exif=exif)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "1.bmp", "PNG")
    Image.new("RGB", (8, 8), "white").save(folder / f"{RECORDS}.bmp", "PNG")
    for _ in range(2):  # looked at, then remembered
        flowers, receipts = check()["datasets"]
        assert [flowers["pictures"][k] for k in ("turned by EXIF", "transparent", "one single colour")] == [1, 1, 2]
        assert set(receipts["pictures"].values()) == {0}
    assert "1 are turned by EXIF and 1 are transparent" in flowers["notes"][0]


def test_the_same_picture_in_training_and_test(own, check, fcit):
    """By content, whatever it is called; a warning, not an error."""
    folder = own / "data/datasets/receipts"
    (folder / "12.bmp").write_bytes((folder / "3.bmp").read_bytes())
    test = own / "data/instructions/receipts/test.json"
    test.write_text(test.read_text().replace("receipts/13.bmp", "receipts/5.bmp"))
    for args in ((), ("--all",)):
        flowers, receipts = check(*args)["datasets"]
        assert flowers["pictures"]["test pictures in training"] == 0
        assert receipts["pictures"]["test pictures in training"] == 2
        assert (
            "receipts: 2 of 6 pictures of the test set are in the training set, too: "
            "receipts/12.bmp (= receipts/3.bmp), receipts/5.bmp;"
        ) in receipts["notes"][0]
    _, out, _ = fcit("data", "check", own / "mine.yaml", "--root", own / "data")
    assert "note: receipts: 2 of 6 pictures of the test set" in out


def test_overlap_is_found_beyond_the_sample(own, check, monkeypatch):
    monkeypatch.setattr("fcit.data.checks.inspection.SAMPLE", 4)
    folder = own / "data/datasets/flowers"
    for n in range(RECORDS, RECORDS + 6):
        (folder / f"{n}.bmp").write_bytes((folder / f"{n - RECORDS}.bmp").read_bytes())
    flowers, _ = check()["datasets"]
    assert flowers["images"] == 4
    assert flowers["pictures"]["test pictures in training"] == 6
    assert "and 1 more" in flowers["notes"][0]


def test_the_val_file_is_looked_at(own, check):
    (own / "mine.yaml").write_text(
        MINE.replace("test: flowers/test.json,", "test: flowers/test.json, val: flowers/v.json,")
    )
    flowers, _ = check()["datasets"]  # no setting needs it
    assert flowers["val"] is None
    assert flowers["notes"][0].endswith("v.json: no such file (evaluation.split: val cannot run)")
    folder = own / "data/instructions/flowers"
    (folder / "v.json").write_text((folder / "test.json").read_text())
    flowers, _ = check()["datasets"]
    assert flowers["val"] == 6
    assert not flowers["notes"]
    assert flowers["images"] == RECORDS + 6


def test_too_few_records_for_the_clients(check):
    found = check()  # fifty clients
    assert "task 0 (flowers): 12 records are too few for 50 clients" in found["partitions"][0]["notes"][0]
    assert "federation.clients of 12 at most" in found["partitions"][0]["notes"][0]
    assert not check("--clients", 12)["partitions"][0]["notes"]


def test_a_root_that_cannot_be_looked_into(own, fcit, monkeypatch):
    """Of somebody else on the same machine: pathlib raises where permissions are missing."""
    stat = Path.stat

    def closed(self, **how):
        if "closed" in self.parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return stat(self, **how)

    monkeypatch.chdir(own)
    monkeypatch.setattr(Path, "stat", closed)
    Path("run.yaml").write_text("benchmark: mine.yaml\nmethod: finetune\ndata_root: data\n", encoding="utf-8")
    for words in (
        ("mine.yaml", "--root", "closed/data"),
        ("--config", "run.yaml", "data_root=closed/data"),
        ("--config", "closed/run.yaml"),
    ):
        code, _, err = fcit("data", "check", *words)
        assert code == 2
        assert "no such configuration" in err or "looked into" in err or "missing the folder" in err
    Path("mine.yaml").write_text(MINE.replace("reserve: 1", "reserve: 1, folder: closed"))
    code, _, err = fcit("data", "check", "--config", "run.yaml")
    assert code == 2
    assert "closed/1.0/Task1: cannot be looked into" in err


def test_questions_alone_can_only_be_held_out(own, check):
    only = "name: mine\ndatasets:\n  flowers: {test: flowers/test.json, scorer: exact}\n"
    (own / "mine.yaml").write_text(only)
    found = check()
    assert [(s["setting"], s["runs"]) for s in found["settings"]] == [("evaluation.held_out", True)]
    assert found["partitions"] == []
    (own / "data/instructions/flowers/test.json").unlink()
    assert not check(code=2)["settings"][0]["runs"]


def test_a_data_set_of_no_task_is_told_of(own, check):
    (own / "mine.yaml").write_text(MINE.replace("tasks: [[flowers], [receipts]]", "tasks: [[flowers]]"))
    found = check("--clients", 3)
    assert found["datasets"][0]["notes"] == []
    assert found["datasets"][1]["notes"] == [
        "receipts: is in none of the tasks, so that it is neither learnt nor asked"
    ]
    bench = open_benchmark(resolve({"benchmark": "mine.yaml", "data_root": "data"}, own, "test"))
    bench.prepare()
    assert bench.warnings == [
        "data set 'receipts' of the benchmark is in none of its tasks: it is neither learnt nor asked"
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("mine.yaml", "--root", "nowhere"), "name the one that holds the folders 'instructions' and 'datasets'"),
        (("mine.yaml", "--root", "data", "--setting", "heterogeneous"), "needs the key `heterogeneous`"),
        (("./bench.py:mine", "--root", "data"), "is code, which says itself where its records are"),
        (("none.yaml", "--root", "data"), "no such file 'none.yaml'"),
        (("run.yaml", "--root", "data"), "`fcit data check --config run.yaml` checks its data"),
        (("mine.yaml", "seed=1", "--root", "data"), "seed=1: settings are those of a configuration"),
        (("mine.yaml", "--root", "data", "--clients", "0"), "--clients: 0 must be 1 or more"),
        (("mine.yaml", "--config", "run.yaml"), "leave the other options out here (key=value changes a setting"),
    ],
)
def test_what_cannot_be_checked_names_the_way_out(own, fcit, monkeypatch, args, words):
    monkeypatch.chdir(own)
    Path("run.yaml").write_text("benchmark: mine.yaml\nmethod: disco\n", encoding="utf-8")
    code, _, err = fcit("data", "check", *args)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_configuration_is_checked_with_changes(own, fcit, monkeypatch):
    """Published configurations leave the data root to the command line."""
    monkeypatch.chdir(own)
    Path("run.yaml").write_text("benchmark: mine.yaml\nmethod: finetune\n", encoding="utf-8")
    few = "federation.clients=3", "federation.clients_per_round=2"
    code, _, err = fcit("data", "check", "--config", "run.yaml", *few)
    assert code == 2
    assert "data_root" in err
    code, out, err = fcit("data", "check", "--config", "run.yaml", "data_root=data", "--json", *few)
    assert code == 0, err
    assert json.loads(out)["tokens"]["flowers"]["train"]["records"] == RECORDS
