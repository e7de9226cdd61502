"""Running a bench with a stand-in for the runs: order, slots, failures, stopping and going on."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from fcit.bench import command, folders
from fcit.bench.progress import BenchWatcher, Follower, duration
from fcit.bench.schedule import Schedule, gpus
from fcit.errors import ConfigError
from tests.bench.conftest import finish
from tests.helpers.waiting import LONG, wait

#: A run that takes a moment, or until so many runs have begun ("together"), writes what it was given, fails where told
#: to and stops when asked to.
SCRIPT = """
import json, os, pathlib, signal, sys, time
folder, seconds, fails = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGTERM, signal.SIG_IGN if fails == "deaf" else lambda *_: sys.exit(75))
(folder / "begun").write_text(json.dumps(dict(os.environ)))
with (folder.parent / "order").open("a") as file:
    file.write(folder.name + " ")
while fails == "together" and len((folder.parent / "order").read_text().split()) < seconds:
    time.sleep(0.02)
if fails != "together":
    time.sleep(seconds)
print("what happened")
if fails and fails in folder.name:
    print("the reason it failed")
    sys.exit(1)
(folder / "results.json").write_text('{"Last": 50.0}')
"""


class Silent:
    def started(self, slot, run):
        pass

    def ended(self, slot, run, problem):
        pass

    def look(self):
        pass

    def stopping(self, killed):
        pass


def fake(seconds: float = 0.0, fails: str = ""):
    return lambda run: [sys.executable, "-c", SCRIPT, str(run.folder), str(seconds), fails]


@pytest.fixture
def made(planned):
    return planned(axes={"method": ["finetune", "disco"]}, seeds=[0, 1])


def run(made, seconds=0.0, fails="", jobs=1, devices=None, watcher=None):
    missing = [r for r in made.runs if folders.state(r) != "done"]
    return Schedule(missing, jobs, watcher or Silent(), devices, fake(seconds, fails)).work()


class Hears(Silent):
    """Notes that a wish to stop was heard."""

    def __init__(self) -> None:
        self.heard = threading.Event()

    def stopping(self, killed):
        self.heard.set()


def signal_when(paths: list[Path], number: int, again: threading.Event | None = None) -> None:
    """Send a signal to this process once all ``paths`` are there, and once more at the event ``again``."""

    def work() -> None:
        wait(lambda: all(path.exists() for path in paths), pause=0.02)
        os.kill(os.getpid(), number)
        if again is not None:
            again.wait(LONG)
            os.kill(os.getpid(), number)

    threading.Thread(target=work, daemon=True).start()


def test_seeds_come_first_and_done_runs_are_skipped(made):
    outcome = run(made)
    assert (made.folder / "order").read_text().split() == ["finetune-s0", "disco-s0", "finetune-s1", "disco-s1"]
    assert len(outcome.finished) == 4
    assert not outcome.failed
    assert not outcome.stopped
    assert yaml.safe_load((made.folder / "disco-s1" / "config.yaml").read_text())["seed"] == 1
    assert (made.folder / "disco-s1" / "environment.json").is_file()
    assert run(made).finished == []


def test_one_failure_does_not_stop_the_others(made):
    outcome = run(made, fails="finetune-s0")
    assert outcome.failed == {"finetune-s0": "exit 1: the reason it failed"}
    assert len(outcome.finished) == 3
    again = run(made)
    assert [r.name for r in again.finished] == ["finetune-s0"]


def test_slots_threads_and_gpus(made):
    run(made, seconds=4, fails="together", jobs=4, devices=["3", "GPU-x"])  # each ends when all four have begun
    read = [yaml.safe_load((r.folder / "begun").read_text()) for r in made.runs]
    assert sorted(e["CUDA_VISIBLE_DEVICES"] for e in read) == ["3", "3", "GPU-x", "GPU-x"]
    assert {e["OMP_NUM_THREADS"] for e in read} == {"1"}


def planned(device: str) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(backbone=SimpleNamespace(device=device)))


@pytest.mark.parametrize(
    ("devices", "visible", "expected"),
    [
        (["cpu"], "0,1", []),
        (["cpu", "cuda"], "0,1", ["0", "1"]),
        (["cuda", "auto"], "2,3", ["2,3"]),  # one run at a time, which may use both
        (["auto"], "", []),
    ],
)
def test_gpus_of_the_runs(monkeypatch, devices, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus([planned(device) for device in devices]) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_and_started_again(made, number):
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background
    signal_when([made.folder / name / "begun" for name in ("finetune-s0", "disco-s0")], number)
    outcome = run(made, seconds=LONG, jobs=2)
    assert outcome.stopped == number
    assert not outcome.failed
    assert not outcome.finished
    assert not (made.folder / "finetune-s1").exists()  # nothing new was begun
    assert [folders.state(r) for r in made.runs] == ["begun", "begun", "new", "new"]
    assert len(run(made).finished) == 4
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_kills(made):
    watcher = Hears()
    signal_when([made.folder / "finetune-s0" / "begun"], signal.SIGINT, watcher.heard)
    outcome = run(made, seconds=LONG, fails="deaf", watcher=watcher)
    assert outcome.stopped == signal.SIGINT


def test_a_folder_somebody_works_in_is_left_alone(made):
    first = made.runs[0]
    lock = folders.claim(first)
    outcome = run(made)
    assert outcome.failed == {"finetune-s0": "another process is at work in its folder"}
    os.close(lock)
    assert [r.name for r in run(made).finished] == ["finetune-s0"]


def test_folders_of_other_runs(planned):
    old = planned(axes={"method": ["finetune", "disco"]})
    for r in old.runs:
        finish(r, {"a": [1.0]})
    new = planned(
        rows=[{"axes": {"method": ["finetune"]}}, {"set": {"training.lr": 0.1}, "axes": {"method": ["disco"]}}]
    )
    with pytest.raises(ConfigError) as caught:
        folders.check(new.runs, fresh=False)
    assert "training.lr is 0.003 there, 0.1 in the plan" in str(caught.value)
    assert "--fresh" in str(caught.value)
    with pytest.raises(ConfigError):
        command.bench(command.BenchOptions(new.file, table=True))
    folders.check(new.runs, fresh=True)
    assert [folders.state(r) for r in new.runs] == ["done", "new"]


def test_dry_run_and_only(planned, capsys):
    made = planned(axes={"method": ["finetune", "disco"]}, seeds=[0, 1])
    finish(made.runs[0], {"a": [1.0]})
    assert command.bench(command.BenchOptions(made.file, dry_run=True, jobs=2)) == 0
    out = capsys.readouterr().out
    assert f"done  {made.folder}/finetune-s0" in out
    assert "4 runs, 1 done; baseline finetune" in out
    assert "3 missing, 2 at a time: about 1.5 min (by formula)" in out
    assert f"      {made.folder}/disco-s1  1.0 min" in out
    assert command.bench(command.BenchOptions(made.file, dry_run=True, only="disco")) == 0
    assert "2 runs, 0 done" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"no run is called like that \(rows: finetune, disco\)"):
        command.bench(command.BenchOptions(made.file, only="ewc"))
    with pytest.raises(ConfigError, match="must be at least 1"):
        command.bench(command.BenchOptions(made.file, jobs=0))


def test_lines_for_who_has_no_terminal(made, capsys):
    with BenchWatcher(Console(width=120), "small", 4, 0, 1) as watcher:
        run(made, fails="disco-s1", watcher=watcher)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("finetune-s0: Last 50.0; 1 of 4 runs done, ")
    assert lines[0].endswith(" left")
    assert lines[3].startswith("disco-s1: FAILED (exit 1: the reason it failed); 3 of 4 runs done")


def test_bars_for_who_has_one(made):
    console = Console(width=120, force_terminal=True, record=True)
    with BenchWatcher(console, "small", 4, 0, 2) as watcher:
        run(made, seconds=0.3, jobs=2, watcher=watcher)
    assert "4 of 4 runs done" in console.export_text()


def test_following_a_run(made):
    first = made.runs[0]
    folders.place(first)
    follower = Follower(first)
    assert (follower.note, follower.share) == ("loading", 0.0)
    events = first.folder / "events.jsonl"
    events.write_text(
        '{"event": "start", "stages": 4, "rounds": 2, "done": [0, 0]}\n'
        '{"event": "round", "stage": 0, "round": 1}\n{"event": "stage", "stage": 0}\n{"event": "rou'
    )
    follower.look()
    assert (follower.note, follower.share) == ("stage 2/4 round 0/2", 0.25)
    with events.open("a") as file:
        file.write('nd", "stage": 1, "round": 0}\n{"event": "stage", "stage": 3}\n')
    follower.look()
    assert (follower.note, follower.share) == ("finishing", 1.0)
    events.write_text('{"event": "start", "stages": 4, "rounds": 2, "done": [0, 1]}\n')  # resumed from before
    follower.look()
    assert (follower.note, follower.share) == ("stage 1/4 round 1/2", 1 / 12)


def test_durations():
    assert [duration(s) for s in (7, 119, 600, 9000)] == ["7 s", "119 s", "10 min", "2.5 h"]


# ---------------------------------------------------------------------- more seeds, tables on the way


def listed(file: Path, capsys, **options) -> list[str]:
    """The folders that a dry run names."""
    capsys.readouterr()
    assert command.bench(command.BenchOptions(file, dry_run=True, **options)) == 0
    return [Path(word).name for word in capsys.readouterr().out.split() if word.startswith("/")]


def test_rows_and_seeds_of_the_command_line(made, capsys, monkeypatch):
    assert listed(made.file, capsys, rows=("disco",), seeds="3,4") == ["disco-s3", "disco-s4"]
    assert not (made.folder / "seeds.json").exists()  # a dry run remembers nothing
    monkeypatch.setattr(
        command,
        "_work",
        lambda console, made, chosen, options: [finish(r, {"a": [1.0]}) for r in chosen] and command.Outcome(),
    )
    assert command.bench(command.BenchOptions(made.file, rows=("disco",), seeds="3,4")) == 0
    # later calls know them, without being told
    every = ["finetune-s0", "disco-s0", "finetune-s1", "disco-s1", "disco-s3", "disco-s4"]
    assert listed(made.file, capsys) == every
    assert listed(made.file, capsys, rows=("disco",)) == ["disco-s0", "disco-s1", "disco-s3", "disco-s4"]
    assert listed(made.file, capsys, seeds="1") == ["finetune-s1", "disco-s1"]
    text = (made.folder / "leaderboard.md").read_text()
    assert "| disco | 2 of 4 |" in text
    assert command.bench(command.BenchOptions(made.file)) == 0
    text = (made.folder / "leaderboard.md").read_text()
    assert "| disco | 4 |" in text
    assert "| finetune | 2 |" in text
    assert "- Seeds are 0, 1; disco has 0, 1, 3, 4." in text or "- Seeds are 0, 1, 3, 4; finetune has 0, 1." in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": ("disko",), "seeds": "3"}, "--rows 'disko': no row is called that; did you mean 'disco'"),
        ({"seeds": "3,x"}, "--seeds '3,x': must be whole numbers from 0 on"),
        ({"seeds": "-1"}, "must be whole numbers"),
        ({"seeds": "2,2"}, "names one seed twice"),
    ],
)
def test_rows_and_seeds_that_cannot_be(made, options, said):
    with pytest.raises(ConfigError, match=said):
        command.bench(command.BenchOptions(made.file, dry_run=True, **options))


@pytest.mark.parametrize("text", ["{", "[1]", '{"disco": [true]}', '{"disco": 3}', "[" * 10**5])
def test_a_damaged_list_of_seeds_is_named(made, text):
    made.folder.mkdir(parents=True)
    (made.folder / "seeds.json").write_text(text)
    with pytest.raises(ConfigError, match=r"seeds.json: .*remove it"):
        command.bench(command.BenchOptions(made.file, dry_run=True))


def test_the_leaderboard_is_written_after_every_run(made, capsys):
    seen = []
    refresh = command.Refresh(made)

    def told() -> None:
        refresh()
        board = made.folder / "leaderboard.md"
        seen.append(board.read_text().count("-s") if board.is_file() else None)

    class Finishing(BenchWatcher):
        def ended(self, slot, run, problem):
            finish(run, {"a": [1.0, 0.0]})
            super().ended(slot, run, problem)

    watcher = Finishing(Console(width=100), "small", 4, 0, 1, told)
    run(made, watcher=watcher)
    assert len(seen) == 3  # the fourth is the bench's own table at its end
    text = (made.folder / "leaderboard.md").read_text()
    assert "| finetune | 2 |" in text
    assert "| disco | 1 of 2 |" in text
    assert (made.folder / "leaderboard.html").is_file()
    assert not list(made.folder.glob(".*tmp"))


def test_a_leaderboard_that_cannot_be_refreshed_stops_nothing(made, capsys):
    refresh = command.Refresh(made)
    made.runs[0].folder.mkdir(parents=True)
    (made.runs[0].folder / "results.json").write_text("damaged")
    refresh()
    refresh()
    assert capsys.readouterr().err.count("the leaderboard cannot be refreshed") == 1


def test_refreshing_computes_what_is_new(made, monkeypatch):
    from fcit.bench import bootstrap

    computed = []
    real = bootstrap.difference
    monkeypatch.setattr(bootstrap, "difference", lambda owner, *runs: computed.append(owner) or real(owner, *runs))
    refresh = command.Refresh(made)
    for planned_run in made.runs:  # finetune, the baseline, and disco, seed by seed
        finish(planned_run, {"a": [1.0, 0.0]})
        refresh()
        refresh()
    assert len(computed) == 3  # disco with one seed, with another baseline, with two seeds
