"""Finished runs in one file: packed, taken over elsewhere, and what is refused."""

import io
import shutil
import tarfile

import pytest

from fcit.bench import command, data, folders, leaderboard, page, published
from fcit.bench.command import BenchOptions
from fcit.errors import ConfigError
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
    (made.runs[0].folder / "matrix.json").write_text("{")
    (made.runs[1].folder / "environment.json").unlink()
    path = tmp_path / "bad.tar.xz"
    with tarfile.open(path, "w:xz") as file:
        for run in made.runs[:3]:
            for name in ("config.yaml", "environment.json", "matrix.json", "results.json"):
                if (run.folder / name).is_file():
                    file.add(run.folder / name, f"{run.name}/{name}")
    shutil.rmtree(made.folder)
    taken = published.take(made.runs, path)
    assert taken.new == [made.runs[2].name]
    assert [refused.partition(":")[0] for refused in taken.refused] == [run.name for run in made.runs[:2]]
    assert "not a readable JSON file" in taken.refused[0]
    assert "without environment.json" in taken.refused[1]
    assert [folders.state(run) for run in made.runs[:3]] == ["new", "new", "done"]


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


def test_publishing_loses_no_run_that_is_published(made, kept, capsys):
    before = (kept / published.FILE).read_bytes()
    shutil.rmtree(made.runs[0].folder)
    assert command.bench(options(made, into=kept)) == 0
    said = capsys.readouterr().err
    assert f"nothing was copied: {kept / published.FILE} has 1 runs that are not finished here" in said
    assert f"--table --from {kept} --into {kept}` keeps them" in said
    assert (kept / published.FILE).read_bytes() == before
    assert command.bench(options(made, source=kept, into=kept)) == 0
    assert (kept / published.FILE).read_bytes() == before


def test_a_dry_run_takes_nothing(made, kept):
    with pytest.raises(ConfigError, match="a dry run does not"):
        command.bench(BenchOptions(made.file, dry_run=True, source=kept))


def test_only_a_report_that_is_there_is_linked(made):
    (made.runs[0].folder / "report.html").write_text("")
    text = page.render(leaderboard.collect(made))
    assert 'href="finetune-s0/report.html"' in text
    assert "disco-s0/report.html" not in text
    assert "taken over without a report" in text
