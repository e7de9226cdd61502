"""Hashes of files, images, partitions and own code, and what is said where two of them differ."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fcit import config as configuration
from fcit.data.benchmark import Benchmark, open_benchmark
from fcit.data.fingerprints import changes, fingerprint
from fcit.data.fingerprints.image_hashes import UNREADABLE, ImageHashes, together
from fcit.errors import ConfigError, RunError
from fcit.io import console
from tests.helpers.own_data import make_own, rows


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def own(tmp_path) -> Path:
    return make_own(tmp_path)


def opened(own: Path, *overrides: str) -> Benchmark:
    return open_benchmark(configuration.load(own, list(overrides)))


def of(own: Path, *overrides: str) -> dict:
    return fingerprint.of(opened(own, *overrides))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differing(before: dict, own: Path, *overrides: str) -> list[tuple[str, str]]:
    return [(change.concerns, change.what) for change in changes.compare(before, of(own, *overrides))]


def paint(path: Path, colour: tuple[int, int, int] = (250, 250, 0)) -> None:
    Image.new("RGB", (40, 30), colour).save(path)


# ---------------------------------------------------------------------- what is hashed


def test_every_file_by_its_content_and_images_by_sorted_pairs(own):
    found, data = of(own), own.parent / "data"
    train, test = found["datasets"]["colors"]["train"], found["datasets"]["colors"]["test"]
    assert train["instructions"] == {"file": "train.json", "sha256": sha(data / "instructions/train.json")}
    assert test["questions"] == {"file": "test.json", "sha256": sha(data / "instructions/test.json")}
    assert test["split"] == "test"
    assert "references" not in test
    digest = hashlib.sha256()
    for name in ("q0.png", "q1.png", "q2.png", "q3.png"):
        digest.update(f'["{name}", "{sha(data / "datasets" / name)}"]\n'.encode())
    assert test["images"] == {"count": 4, "sha256": digest.hexdigest()}
    assert train["images"]["count"] == 12
    (partition,) = found["partitions"]
    assert partition["generated"] == {"colors": train["instructions"]["sha256"]}
    assert (partition["clients"], partition["seed"], partition["reserve"]) == (3, 0, 2)
    (named,) = found["code"]
    assert found["code"][named] == {"file": str(own.parent / "mine.yaml"), "sha256": sha(own.parent / "mine.yaml")}
    assert json.loads(json.dumps(found)) == found


def test_nothing_changes_where_nothing_but_time_and_place_do(own):
    before = of(own)
    for file in (own.parent / "data").rglob("*.*"):
        os.utime(file, ns=(1, 1))
    assert differing(before, own) == []
    shutil.move(own.parent / "data", own.parent / "elsewhere")
    assert differing(before, own, f"data_root={own.parent / 'elsewhere'}") == []


def test_what_changes_is_named(own):
    before, data = of(own), own.parent / "data"
    rows(own, lambda content: content[1].update(answer="blue"), "test.json")
    assert differing(before, own) == [("test", "colors, test split, questions")]
    rows(own, lambda content: content[0]["conversations"][1].update(value="blue"))
    paint(data / "datasets/3.png")
    assert differing(before, own) == [
        ("train", "colors, train split, instructions"),
        ("train", "colors, train split, images"),
        ("test", "colors, test split, questions"),
    ]
    change = changes.compare(before, of(own), "test")[0]
    old, new = before["datasets"]["colors"]["test"]["questions"]["sha256"][:8], sha(data / "instructions/test.json")[:8]
    assert change.sentence("then", "now") == f"colors, test split, questions (test.json): {old} then, {new} now"


@pytest.mark.parametrize("change", ["scorer", "suffix", "test_suffix"])
def test_how_questions_are_asked_and_scored_is_part_of_the_test_data(own, change):
    before = of(own)
    spec = yaml.safe_load((own.parent / "mine.yaml").read_text())
    spec["datasets"]["colors"][change] = "substring" if change == "scorer" else "Answer briefly."
    (own.parent / "mine.yaml").write_text(yaml.safe_dump(spec))
    expected = [("test", "colors, test split, how questions are asked and scored"), ("code", "benchmark file")]
    assert differing(before, own) == expected
    assert changes.tested(before) != changes.tested(of(own))
    # a comment or a setting of the partition is no other test
    spec["datasets"]["colors"].pop(change)
    spec["partition"]["reserve"] = 1
    (own.parent / "mine.yaml").write_text(yaml.safe_dump(spec))
    assert differing(before, own) == [("code", "benchmark file")]
    assert changes.tested(before) == changes.tested(of(own))


def test_only_images_that_are_used_count(own):
    few = ("data.max_records=8", "evaluation.samples=2")
    bench = opened(own, *few)
    used = {record.image for record in bench.test("colors")}
    before = fingerprint.of(bench)
    images = [before["datasets"]["colors"][split]["images"]["count"] for split in ("train", "test")]
    assert images == [8, 2]
    other = next(f"q{n}.png" for n in range(4) if f"q{n}.png" not in used)
    paint(own.parent / "data/datasets" / other)
    assert differing(before, own, *few) == []
    paint(own.parent / "data/datasets" / min(used))
    assert differing(before, own, *few) == [("test", "colors, test split, images")]


def test_delivered_partitions_by_their_content_and_generated_ones_by_their_origin(own):
    generated = of(own)
    folder = own.parent / "data/partitioned_data/1.0/Task1"
    folder.mkdir(parents=True)
    content = json.loads((own.parent / "data/instructions/train.json").read_text())
    for client in range(3):
        (folder / f"client_{client}.json").write_text(json.dumps(content[client * 4 : client * 4 + 4]))
    before = of(own, "federation.beta=1.0")
    (found,) = before["partitions"]
    assert found["delivered"] == "partitioned_data/1.0/Task1"
    assert found["images"]["count"] == 12
    assert ("train", "task 0, partition") in differing(generated, own, "federation.beta=1.0")
    (folder / "client_1.json").write_text(json.dumps(content[:4]))
    assert differing(before, own, "federation.beta=1.0") == [
        ("train", "task 0, partition"),
        ("train", "task 0, partition, images"),
    ]
    shutil.move(own.parent / "data/partitioned_data", own.parent / "partitions")
    spec = yaml.safe_load((own.parent / "mine.yaml").read_text())
    spec["partition"] = {"folder": str(own.parent / "partitions")}
    (own.parent / "mine.yaml").write_text(yaml.safe_dump(spec))
    assert of(own, "federation.beta=1.0")["partitions"][0]["delivered"] == "../partitions/1.0/Task1"


def test_own_code_by_file_and_by_module(own, monkeypatch):
    examples, here = Path(__file__).parents[2] / "examples" / "own", own.parent
    for name in ("anchored.py", "close_enough.py", "tracker.py", "momentum.py"):
        shutil.copy(examples / name, here / name)
    shutil.copy(examples / "momentum.py", here / "momentum_module.py")
    monkeypatch.syspath_prepend(str(here))
    spec = yaml.safe_load((here / "mine.yaml").read_text())
    spec["datasets"]["colors"]["also"] = ["./close_enough.py:close_enough", "exact-clean"]
    (here / "mine.yaml").write_text(yaml.safe_dump(spec))
    raw = yaml.safe_load(own.read_text())
    name = next(
        line.split()[1].split("(")[0].rstrip(":")
        for line in (here / "tracker.py").read_text().splitlines()
        if line.startswith("class ")
    )
    parts = {
        "method": "./anchored.py:Anchored",
        "fedopt": "momentum_module:Momentum",
        "trackers": [f"./tracker.py:{name}"],
    }
    own.write_text(yaml.safe_dump({**raw, **parts}))
    found = of(own)["code"]
    files = {key.partition(" ")[0]: Path(entry["file"]).name for key, entry in found.items()}
    assert files == {
        "method": "anchored.py",
        "fedopt": "momentum_module.py",
        "tracker": "tracker.py",
        "benchmark": "mine.yaml",
        "scorer": "close_enough.py",
    }
    assert all(entry["sha256"] == sha(Path(entry["file"])) for entry in found.values())
    before = of(own)
    with (here / "close_enough.py").open("a") as file:
        file.write("\n# changed\n")
    assert differing(before, own) == [("test", "scorer close_enough")]


def test_a_module_whose_file_cannot_be_found_is_said(own):
    bench = opened(own)
    bench.config = bench.config.model_copy(update={"trackers": ["no.such.module:Tracker"]})
    with pytest.raises(ConfigError, match=r"tracker: the file of 'no.such.module:Tracker' cannot be found"):
        fingerprint.code(bench)


def test_the_mini_world_is_named_by_its_version_and_files(world, shared, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(shared / "cache"))
    config = configuration.parse({"benchmark": "fcit-mini-short"})
    bench = open_benchmark(config)
    bench.prepare()
    found = fingerprint.of(bench)
    assert found["code"] == {}
    assert len(found["datasets"]) == 4
    assert len(found["partitions"]) == 4
    captions = found["datasets"]["flickr30k"]["test"]
    assert captions["images"] == {"rendered": "mini-1"}
    file = bench.files.located(captions["references"]["file"])
    assert captions["references"]["sha256"] == sha(file)
    val = fingerprint.of(
        open_benchmark(configuration.parse({"benchmark": "fcit-mini-short", "evaluation": {"split": "val"}}))
    )
    assert val["datasets"]["flickr30k"]["test"]["split"] == "val"
    assert changes.tested(val) != changes.tested(found)


def test_where_sites_train_only_the_servers_questions_are_looked_at(own):
    found = fingerprint.of(opened(own), trains=False)
    assert list(found["datasets"]["colors"]) == ["test"]
    assert "partitions" not in found


# ---------------------------------------------------------------------- images


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "images"
    (folder / "in").mkdir(parents=True)
    for n in range(6):
        paint(folder / "in" / f"{n}.png", (n, 0, 0))
    return folder


NAMES = [f"in/{n}.png" for n in range(6)]


def test_an_image_is_read_once_until_it_is_changed(root, tmp_path, monkeypatch):
    read = []
    real = ImageHashes._hash
    monkeypatch.setattr(ImageHashes, "_hash", lambda self, image: (read.append(image), real(self, image))[1])
    first = ImageHashes(root, tmp_path / "kept").of(NAMES)
    assert first == {name: sha(root / name) for name in NAMES}
    assert sorted(read) == NAMES
    assert ImageHashes(root, tmp_path / "kept").of([*NAMES, *NAMES]) == first
    assert len(read) == 6
    paint(root / NAMES[2])
    assert ImageHashes(root, tmp_path / "kept").of(NAMES)[NAMES[2]] == sha(root / NAMES[2])
    assert read[6:] == [NAMES[2]]


def test_a_writer_that_was_killed_leaves_what_can_be_read(root, tmp_path):
    hashes = ImageHashes(root, tmp_path / "kept")
    whole = hashes.of(NAMES[:4])
    (file,) = (tmp_path / "kept").glob("*.sha256")
    with file.open("r+b") as cut:
        cut.truncate(file.stat().st_size - 7)
    assert ImageHashes(root, tmp_path / "kept").of(NAMES[:4]) == whole
    assert ImageHashes(root, tmp_path / "kept").of(NAMES) == whole | {n: sha(root / n) for n in NAMES[4:]}
    assert file.stat().st_size == 6 * 40


def test_images_that_are_not_there_count_as_such(root, tmp_path):
    (root.parent / "outside.png").write_bytes(b"secret")
    found = ImageHashes(root, tmp_path / "kept").of(["in/9.png", "../outside.png", NAMES[0]])
    assert found == {"in/9.png": UNREADABLE, "../outside.png": UNREADABLE, NAMES[0]: sha(root / NAMES[0])}


def test_a_cache_that_cannot_be_written_costs_time_only(root, tmp_path):
    (tmp_path / "kept").write_text("a file")
    hashes = ImageHashes(root, tmp_path / "kept")
    found = hashes.of(NAMES)
    assert found[NAMES[5]] == sha(root / NAMES[5])
    assert hashes.remember(found) == together(found)
    assert hashes.differing(together(found), found) == []


def test_images_that_changed_are_found_by_name(root, tmp_path):
    hashes = ImageHashes(root, tmp_path / "kept")
    before = hashes.remember(hashes.of(NAMES[:5]))
    paint(root / NAMES[1])
    now = ImageHashes(root, tmp_path / "kept")
    assert now.differing(before, now.of(NAMES)) == [NAMES[1], NAMES[5]]
    assert now.differing("0" * 64, now.of(NAMES)) == []  # not known any more


@pytest.mark.parametrize("most", [5, 7])
def test_many_images_show_a_bar(root, tmp_path, monkeypatch, most):
    import io

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(console, "SHOWN_FROM", most)
    ImageHashes(root, tmp_path / "kept").of(NAMES)
    assert ("fingerprints of images" in screen.getvalue() and "6/6" in screen.getvalue()) == (most == 5)


# ---------------------------------------------------------------------- damaged, old


@pytest.mark.parametrize(
    "data",
    [
        [],
        {"version": 1},
        {"version": "1", "datasets": {}},
        {"version": 1, "datasets": [1]},
        {"version": 1, "datasets": {"a": {"test": {"questions": {}}}}},
    ],
)
def test_damaged_fingerprints_are_one_sentence(data):
    with pytest.raises(RunError, match="damaged fingerprints"):
        changes.parts(data)


def test_fingerprints_of_another_version_are_not_held_against_each_other(own):
    found = of(own)
    assert changes.compare({**found, "version": 0, "code": {}}, found) == []
    assert changes.tested({}) == ""


def test_held_out_questions_are_compared_and_decide_nothing_about_tables():
    def test(sha: str) -> dict:
        return {"test": {"split": "test", "questions": {"file": "q.json", "sha256": sha * 64}}}

    plain = {"version": 1, "datasets": {"a": test("a")}}
    before, now = ({**plain, "held_out": {"g": test(sha)}} for sha in "12")
    [change] = changes.compare(before, now)
    assert (change.concerns, change.what) == ("held-out", "g, test split, questions")
    assert changes.compare(before, now, "test", "train") == []
    assert changes.tested(before) == changes.tested(now) == changes.tested(plain) != ""
