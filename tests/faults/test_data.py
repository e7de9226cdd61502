"""Bad records and images: passed over with a count up to `max_bad_share`, else one sentence and nothing runs."""

import json
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from fcit import simulate
from fcit.data import formats
from fcit.data.images import opening
from fcit.data.images.verdicts import ImageVerdicts
from fcit.errors import ConfigError, DataError, RunError
from fcit.runs.reader import load_run
from tests.helpers.own_data import CLIENTS, RECORDS, make_own, opened, rows


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """Rows of features are numbered by first use, verdicts are kept: every test begins without."""
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The configuration of a run over one's own data."""
    return make_own(tmp_path)


# ---------------------------------------------------------------------- ways to be bad


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: Path, side: int = 8000) -> None:
    """A PNG of 64 megapixels in a hundred bytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def oversized(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(opening.MAX_IMAGE_BYTES + 1)  # a hole: takes no room


def link(path: Path) -> None:
    outside = path.parents[2] / "outside.png"
    Image.new("RGB", (9, 9)).save(outside)
    path.unlink()
    path.symlink_to(outside)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


IMAGES = {
    "missing": (Path.unlink, "missing"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:60]), "truncated"),
    "empty": (lambda p: p.write_bytes(b""), "not a readable image"),
    "bomb": (bomb, "8000 x 8000 pixels, more than 50,000,000"),
    "larger bomb": (lambda p: bomb(p, 30_000), "more pixels than"),
    "oversized": (oversized, "more than the 104,857,600 that are read"),
    "no image": (lambda p: p.write_text("hello"), "not a readable image"),
    "program": (lambda p: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a readable image"),
    "link": (link, "leaves the image root"),
    "pipe": (fifo, "not an ordinary file"),
    "circle": (circle, "not a path that can be followed"),
}


def named(value: object):
    def change(content: list) -> None:
        content[3]["image"] = value

    return change


def said(value: object):
    def change(content: list) -> None:
        content[3]["conversations"][0]["value"] = value

    return change


def replaced(value: object):
    def change(content: list) -> None:
        content[3] = value

    return change


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


ROWS = {
    "traversal": (named("../../outside.png"), "leaves the image root"),
    "absolute": (named("/etc/hostname"), "leaves the image root"),
    "device": (named("/dev/zero"), "leaves the image root"),
    "null byte": (named("3\0.png"), "is not a path"),
    "long name": (named("x" * 5000), "not a path that can be followed"),
    "folder": (named("."), "missing"),
    "no image": (named(None), "1 image tags in its questions, and it names 0 images"),
    "huge text": (said("why? " * 5000), "25,000 characters, more than 20,000"),
    "half a character": (said("a\ud800"), "half a surrogate pair"),
    "no record": (replaced(None), "'conversations' must be a list"),
    "another record": (replaced({"image": "3.png"}), "'conversations' must be a list"),
    "deep": (replaced({"image": "3.png", "conversations": deep(100)}), "nested more than 64 levels"),
}


def spoil(own: Path, kind: str) -> str:
    """Make record 3 bad; returns what will be said of it."""
    if kind in IMAGES:
        ruin, words = IMAGES[kind]
        ruin(own.parent / "data" / "datasets" / "3.png")
    else:
        change, words = ROWS[kind.removeprefix("row: ")]
        rows(own, change)
    return words


KINDS = [*IMAGES, *(f"row: {name}" for name in ROWS)]


# ---------------------------------------------------------------------- each of them


@pytest.mark.parametrize("kind", KINDS)
def test_bad_record_stops_the_run_before_it_begins(own, kind):
    words = spoil(own, kind)
    with pytest.raises(ConfigError) as caught:
        opened(own).prepare()
    text = str(caught.value)
    assert words in text
    assert "train.json, line" in text
    assert "record 3" in text
    assert f"1 of {RECORDS} records cannot be used" in text
    assert "raise max_bad_share to 0.09" in text


@pytest.mark.parametrize("kind", KINDS)
def test_bad_record_is_passed_over_within_the_share(own, kind):
    clean = {k: opened(own).shard(k, 0) for k in range(CLIENTS)}
    spoil(own, kind)
    bench = opened(own, "max_bad_share=0.1")
    bench.prepare()
    shards = {k: bench.shard(k, 0) for k in range(CLIENTS)}
    skipped = [bench.skipped(k, 0) for k in range(CLIENTS)]
    assert sorted(skipped) == [0, 0, 1]
    assert bench.skipped(-1, 0) == 1
    # Everybody else has what they had, and a reader elsewhere sees the same.
    owner = skipped.index(1)
    assert shards[owner] == [r for r in clean[owner] if r.images != ("3.png",)]
    assert all(shards[k] == clean[k] for k in range(CLIENTS) if k != owner)
    other = opened(own, "max_bad_share=0.1", 'backbone.feature_cache="off"')
    assert {k: other.shard(k, 0) for k in range(CLIENTS)} == shards
    assert [other.skipped(k, 0) for k in range(CLIENTS)] == skipped


def test_share_is_of_the_whole_data_set(own):
    for number in (3, 5):
        (own.parent / f"data/datasets/{number}.png").unlink()
    with pytest.raises(ConfigError, match=r"2 of 12 records cannot be used, max_bad_share: 0.1 lets 1 be passed over"):
        opened(own, "max_bad_share=0.1").prepare()
    opened(own, "max_bad_share=0.17").prepare()


def test_share_of_files_that_were_delivered_is_each_files_own(own):
    folder = own.parent / "data/partitioned_data/1.0/Task1"
    folder.mkdir(parents=True)
    content = json.loads((own.parent / "data/instructions/train.json").read_text())
    for client in range(CLIENTS):
        (folder / f"client_{client}.json").write_text(json.dumps(content[4 * client : 4 * client + 4]))
    (own.parent / "data/datasets/5.png").write_bytes(b"")
    bench = opened(own, "max_bad_share=0.1")
    assert [bench.skipped(k, 0) for k in (0, 2)] == [0, 0]
    with pytest.raises(DataError, match=r"client_1.json: 1 of 4 records .* \(first: .*5.png: not a readable image"):
        bench.shard(1, 0)
    assert opened(own, "max_bad_share=0.25").skipped(1, 0) == 1


def test_file_that_is_broken_as_a_whole_is_never_passed_over(own):
    path = own.parent / "data/instructions/train.json"
    lines = path.read_text().splitlines()
    lines[5] = lines[5].replace('"', "", 1)
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"train.json, line 6: broken JSON"):
        opened(own, "max_bad_share=0.9").prepare()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "4300 digits"),
        ("[NaN]", "'conversations' must be a list"),
    ],
)
def test_json_that_python_cannot_hold(own, content, words):
    (own.parent / "data/instructions/train.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        opened(own).prepare()


def test_instruction_file_that_is_a_device(own):
    path = own.parent / "data/instructions/train.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="not an ordinary file"):
        formats.read_train_file(path)
    with pytest.raises(DataError, match="not an ordinary file"):
        formats.read_train_file(Path("/dev/zero"))


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "bomb", "link"])
def test_questions_are_never_passed_over(own, kind):
    IMAGES[kind][0](own.parent / "data/datasets/q2.png")
    with pytest.raises(ConfigError, match=r"test.json: .*q2.png"):
        opened(own, "max_bad_share=0.9").prepare()


def test_bad_question_is_never_passed_over(own):
    rows(own, lambda content: content[1].pop("answer"), "test.json")
    with pytest.raises(ConfigError, match=r"test.json, line \d+, record 1: 'answer' missing"):
        opened(own, "max_bad_share=0.9").prepare()


def test_images_are_decoded_once(own, monkeypatch):
    from fcit.data.images import verdicts

    asked: list[str] = []
    real = verdicts.look_at
    monkeypatch.setattr(verdicts, "look_at", lambda root, image: asked.append(image) or real(root, image))
    (own.parent / "data/datasets/3.png").write_bytes(b"")
    bench = opened(own, "max_bad_share=0.1")
    bench.prepare()
    assert len(asked) == RECORDS + 4
    for _ in range(2):
        bench.prepare()
        opened(own, "max_bad_share=0.1").pooled(0)
    assert len(asked) == RECORDS + 4
    Image.new("RGB", (5, 5)).save(own.parent / "data/datasets/3.png")  # another file is looked at
    assert [opened(own).skipped(k, 0) for k in range(CLIENTS)] == [0] * CLIENTS
    assert asked[RECORDS + 4 :] == ["3.png"]


def test_kept_verdicts_survive_a_torn_line(own):
    root, folder = own.parent / "data/datasets", own.parent / "kept"
    (root / "3.png").write_bytes(b"")
    assert list(ImageVerdicts(root, folder).problems(["3.png"])) == ["3.png"]
    (file,) = folder.glob("*.jsonl")
    file.write_bytes(file.read_bytes() + b'["2.png|1-')
    assert list(ImageVerdicts(root, folder).problems(["3.png", "4.png"])) == ["3.png"]
    assert [json.loads(line)[0].split("|")[0] for line in file.read_text().splitlines()[::2]] == ["3.png", "4.png"]


def test_damaged_feature_cache_says_what_to_remove(own, tmp_path):
    import numpy as np

    from fcit.models.feature_store import FeatureStore

    def fresh() -> FeatureStore:
        return FeatureStore(tmp_path / "store", (2,), lambda keys: np.ones((len(keys), 2), np.float32))

    fresh().get(["a", "b"])
    (tmp_path / "store" / "features.bin").write_bytes(b"")
    with pytest.raises(DataError, match="remove this folder"):
        fresh().get(["a"])
    (tmp_path / "store" / "index.jsonl").write_text('["a", -1]\n')
    with pytest.raises(DataError, match="remove this folder"):
        fresh().get(["a"])


# ---------------------------------------------------------------------- whole runs


def test_run_passes_over_what_it_may_and_scores_every_question(own, fcit):
    for number, kind in ((1, "truncated"), (7, "bomb")):
        IMAGES[kind][0](own.parent / f"data/datasets/{number}.png")
    rows(own, replaced({"image": 5}))
    code, _, err = fcit("run", own, "max_bad_share=0.25")
    assert code == 0, err
    run = load_run(own.parent / "runs/own-1")
    (round_,) = run.of("round")
    bench = opened(own, "max_bad_share=0.25")
    assert round_["examples"] == [len(bench.shard(k, 0)) for k in round_["clients"]]
    assert sum(bench.skipped(k, 0) for k in range(CLIENTS)) in (2, 3)  # cutting into shares drops some records
    assert not run.of("rejected")
    assert len(run.predictions("colors")) == 4


def test_run_stops_with_a_sentence_and_leaves_nothing(own, fcit):
    (own.parent / "data/datasets/3.png").write_bytes(b"")
    code, _, err = fcit("run", own)
    assert code == 2
    assert "max_bad_share" in err
    assert "1 of 12" in err
    assert "Traceback" not in err
    assert not (own.parent / "runs").exists()


def empty(own: Path, client: int) -> None:
    """Deliver shares of which one client's is empty."""
    folder = own.parent / "data/partitioned_data/1.0/Task1"
    folder.mkdir(parents=True)
    content = json.loads((own.parent / "data/instructions/train.json").read_text())
    for k in range(CLIENTS):
        (folder / f"client_{k}.json").write_text(json.dumps([] if k == client else content[4 * k : 4 * k + 4]))


@pytest.mark.parametrize("method", ["disco", "finetune"])
def test_client_without_records_is_left_out(own, fcit, method):
    empty(own, 1)
    code, _, err = fcit("run", own, f"method={method}")
    assert code == 0, err
    run = load_run(own.parent / "runs/own-1")
    told = [e for e in run.events if e["event"] in ("describe-failed", "rejected")]
    assert any("client 1 holds no" in e["reason"] for e in told), told
    (round_,) = run.of("round")
    assert sorted(int(pair.split("/")[0]) for pair in round_["loss"]) == [0, 2]


def test_client_whose_records_are_all_bad_is_left_out(own, fcit):
    empty(own, -1)
    for number in range(4, 8):
        (own.parent / f"data/datasets/{number}.png").write_bytes(b"")
    # Of the whole data set a third is bad, of this client's file everything.
    code, _, err = fcit("run", own, "max_bad_share=0.5")
    assert code == 0, err
    run = load_run(own.parent / "runs/own-1")
    told = [e for e in run.events if e["event"] in ("describe-failed", "rejected")]
    assert any("4 of 4 records cannot be used" in e["reason"] for e in told), told
    (round_,) = run.of("round")
    assert sorted(int(pair.split("/")[0]) for pair in round_["loss"]) == [0, 2]


def test_question_that_breaks_while_the_run_goes_on_is_an_error_and_no_score(own):
    class Ruin:
        def say(self, kind: str, **values: object) -> None:
            if kind == "round":
                (own.parent / "data/datasets/q2.png").write_bytes(b"\x89PNG")

    with pytest.raises(RunError, match=r"evaluation: .*q2.png"):
        simulate(own, watcher=Ruin())
    assert not load_run(own.parent / "runs/own-1").finished
