"""Finished runs in one file: packed, taken over elsewhere, and what is refused."""

import io
import json
import lzma
import math
import shutil
import tarfile
import tracemalloc

import pytest

from fcit.bench import command, data, folders, leaderboard, page, published, seeds
from fcit.bench.command import BenchOptions
from fcit.errors import ConfigError, DiskFull
from tests.bench.conftest import finish


def options(made, **keys) -> BenchOptions:
    return BenchOptions(made.file, table=True, **keys)


def archive(path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE):
    with tarfile.open(path, "w:xz") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, "/etc/passwd"
            file.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def made(planned):
    """Three finished runs of four."""
    made = planned(seeds=[0, 1], set={"evaluation.samples": 4}, rows=[{"axes": {"method": ["finetune", "disco"]}}])
    for run in made.runs[:3]:
        finish(run, {"a": [1.0, 0.0, float(run.seed), 0.0]}, score=50.0)
    return made


@pytest.fixture
def kept(made, tmp_path):
    """A folder that the bench was published into."""
    folder = tmp_path / "kept"
    folder.mkdir()
    published.pack(made.runs, folder / published.FILE)
    return folder


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    """Figures take most of the time, and other tests look at them."""
    monkeypatch.setattr(page, "write_figures", lambda board: [])
    monkeypatch.setattr(page, "write_page", lambda board: None)


def test_a_bench_goes_on_elsewhere_from_what_was_published(made, kept, capsys):
    there = data.to_json(leaderboard.collect(made))
    shutil.rmtree(made.folder)
    assert command.bench(options(made, source=kept)) == 0
    assert "runs.tar.xz: 3 taken over" in capsys.readouterr().err
    assert data.to_json(leaderboard.collect(made)) == there  # figures, intervals, environments: everything
    assert [folders.state(run) for run in made.runs].count("done") == 3


def test_equal_runs_give_equal_bytes_without_weights_and_earlier_answers(made, tmp_path):
    run = made.runs[0].folder
    for file in ("adapters/0/adapter_model.safetensors", "state/000001/state.json", "report.html", "log.txt"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text("large")
    (run / "predictions/stage-0").mkdir()
    (run / "predictions/stage-0/a.jsonl").write_text("")
    for name in ("one", "two"):
        published.pack(made.runs, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with tarfile.open(tmp_path / "one") as file:
        names = [name.partition("/")[2] for name in file.getnames() if name.startswith(f"{run.name}/")]
    answers = ["predictions/stage-1/a.jsonl", "predictions/stage-1/captions.jsonl"]
    assert names == ["config.yaml", "environment.json", "matrix.json", *answers, "results.json"]


def test_what_is_here_stays_and_what_is_not_planned_is_told(made, kept, planned, capsys):
    few = planned(seeds=[0], set={"evaluation.samples": 4}, axes={"method": ["finetune", "disco"]})
    shutil.rmtree(few.runs[1].folder)
    before = few.runs[0].folder.stat().st_mtime_ns
    taken = published.take(few.runs, kept / published.FILE)
    assert (taken.new, taken.here, taken.unplanned) == (["disco-s0"], ["finetune-s0"], ["finetune-s1"])
    assert taken.sentence == "1 taken over, 1 are here already, 1 of no row or seed of this bench"
    assert few.runs[0].folder.stat().st_mtime_ns == before
    assert not list(made.folder.glob(".taken-*"))


def test_a_run_of_another_configuration_is_refused_by_name(made, kept, planned, capsys):
    other = planned(seeds=[0], set={"training.lr": 0.5}, rows=[{"axes": {"method": ["finetune"]}}])
    shutil.rmtree(made.folder)
    assert command.bench(options(other, source=kept)) == 0
    said = capsys.readouterr()
    assert "0 taken over" in said.err
    assert "not taken over: finetune-s0: is of another run: " in said.err
    assert "training.lr is 0.003 there, 0.5 in the plan" in said.err
    assert "no run has finished yet" in said.out


def test_a_run_whose_files_are_damaged_is_refused(made, tmp_path):
    run = made.runs[0]
    files = {file: (run.folder / file).read_bytes() for file in ("config.yaml", "environment.json")}
    whole = {file: json.loads((run.folder / file).read_text()) for file in ("matrix.json", "results.json")}
    shutil.rmtree(made.folder)
    matrix, results = whole["matrix.json"], whole["results.json"]
    for damaged, said in (
        ({"matrix.json": "{"}, "not a readable JSON file"),
        ({"matrix.json": []}, "AttributeError"),
        ({"matrix.json": {**matrix, "unseen_scores": [1]}}, "AttributeError"),
        ({"matrix.json": {**matrix, "scores": [{"a": "x"}]}}, "TypeError"),
        ({"matrix.json": {**matrix, "scores": [{"a": math.nan, "captions": 1.0}]}}, "a figure is nan"),
        ({"results.json": {**results, "cost": [1]}}, "AttributeError"),
        ({"results.json": []}, "results.json is empty"),
        ({"environment.json": {"libraries": [1]}}, "TypeError"),
        ({"environment.json": None}, "without environment.json"),
    ):
        texts = {**files, **{name: json.dumps(value).encode() for name, value in whole.items()}}
        for name, value in damaged.items():
            texts[name] = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        members = {f"{run.name}/{name}": text for name, text in texts.items() if damaged.get(name, 0) is not None}
        taken = published.take(made.runs, archive(tmp_path / "bad", members))
        assert (taken.new, len(taken.refused)) == ([], 1), damaged
        assert said in taken.refused[0]
        assert taken.refused[0].startswith(f"{run.name}: ")
        assert folders.state(run) == "new"


def test_a_folder_somebody_works_in_is_left_alone(made, kept):
    run = made.runs[0]
    shutil.rmtree(run.folder)
    lock = folders.claim(run)
    assert lock is not None
    taken = published.take(made.runs, kept / published.FILE)
    assert taken.refused == [f"{run.name}: another process is at work in {run.folder}"]
    assert folders.state(run) == "new"


def test_a_member_that_is_no_file_of_a_run_is_refused(made, tmp_path):
    shutil.rmtree(made.folder)
    for name in (
        "../config.yaml",
        "/config.yaml",
        "a/../../config.yaml",
        "run/state/state.json",
        "run/predictions/../config.yaml",
        "run/predictions/stage-1/a\\b.jsonl",
        "config.yaml",
        "run/predictions/stage-1/deep/a.jsonl",
    ):
        bad = archive(tmp_path / "bad", {"finetune-s0/config.yaml": b"", name: b"x"})
        with pytest.raises(ConfigError, match="is no file of a run; nothing was taken"):
            published.take(made.runs, bad)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        with pytest.raises(ConfigError, match="is no file of a run"):
            published.take(made.runs, archive(tmp_path / "bad", {"finetune-s0/config.yaml": b""}, kind))
    assert [entry.name for entry in made.folder.iterdir()] == []


def test_files_that_are_none(made, kept, tmp_path, monkeypatch):
    (tmp_path / "text").write_text("no archive")
    whole = (kept / published.FILE).read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "half"):
        with pytest.raises(ConfigError, match="not a readable"):
            published.take(made.runs, tmp_path / name)
    with pytest.raises(ConfigError, match=r"--from .*empty: no runs\.tar\.xz there; `fcit bench FILE --into"):
        (tmp_path / "empty").mkdir()
        published.locate(tmp_path / "empty")
    monkeypatch.setattr(published, "MAX_UNPACKED", 1000)
    with pytest.raises(ConfigError, match="or 1,000 in all"):
        published.take(made.runs, kept / published.FILE)


def test_publishing_loses_no_run_that_is_published(made, kept, planned):
    before = (kept / published.FILE).read_bytes()
    shutil.rmtree(made.runs[0].folder)
    with pytest.raises(ConfigError, match=r"nothing was copied, .*: finetune-s0; `--table --from .* takes those"):
        command.bench(options(made, into=kept))
    assert command.bench(options(made, source=kept, into=kept)) == 0
    assert (kept / published.FILE).read_bytes() == before
    other = planned(seeds=[0, 1], name="other", set={"training.lr": 0.5}, axes={"method": ["finetune", "disco"]})
    for run in other.runs:  # folders of equal names
        finish(run, {"a": [1.0]})
    with pytest.raises(ConfigError, match=r"nothing was copied, .*: disco-s0, finetune-s0, finetune-s1"):
        command.bench(options(other, into=kept))
    assert (kept / published.FILE).read_bytes() == before


def test_runs_of_further_seeds_come_along(made, kept):
    wider = seeds.extended(made, {"disco": [3, 4]})
    finish(wider.runs[-1], {"a": [1.0, 1.0, 0.0, 0.0]}, score=50.0)
    assert wider.runs[-1].name == "disco-s4"
    published.pack(wider.runs, kept / published.FILE)
    shutil.rmtree(made.folder)
    assert command.bench(options(made, source=kept, into=kept)) == 0
    assert seeds.remembered(made.folder) == {"disco": [4]}  # and not that of a run that was not there
    with tarfile.open(kept / published.FILE) as file:
        assert "disco-s4/results.json" in file.getnames()


def test_a_disk_that_is_full_leaves_what_is_published(made, kept, monkeypatch):
    assert command.bench(options(made, source=kept, into=kept)) == 0
    before = {file.name: file.read_bytes() for file in kept.iterdir()}

    def full(path, content):
        raise DiskFull(f"{path}: no room")

    monkeypatch.setattr(published, "write_bytes", full)
    with pytest.raises(DiskFull):
        command.bench(options(made, into=kept))
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == before


def test_a_long_header_is_not_read_into_memory(made, tmp_path):
    header = tarfile.TarInfo("finetune-s0/config.yaml")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**26
    with lzma.open(tmp_path / "bad", "wb") as file:
        file.write(header.tobuf())
        file.write(bytes(2**26 + 1024))
    tracemalloc.start()
    with pytest.raises(ConfigError, match="not a readable"):
        published.take(made.runs, tmp_path / "bad")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_dry_run_takes_nothing(made, kept):
    with pytest.raises(ConfigError, match="a dry run does not"):
        command.bench(BenchOptions(made.file, dry_run=True, source=kept))


def test_only_a_report_that_is_there_is_linked(made):
    (made.runs[0].folder / "report.html").write_text("")
    text = page.render(leaderboard.collect(made))
    assert 'href="finetune-s0/report.html"' in text
    assert "disco-s0/report.html" not in text
    assert "taken over without a report" in text
