"""Trackers without a federation: told in copies, switched off when they raise, refused when unusable."""

import importlib.util

import pytest
import yaml

from fcit import config, registry
from fcit.errors import ConfigError, StopRequested
from fcit.runs.folder import RunDir
from fcit.runs.trackers import Trackers, check, names

OWN = """
from fcit.errors import StopRequested

class Good:
    def __init__(self, run_dir, config):
        self.file = run_dir / f"{config.name}.txt"
    def say(self, kind, **values):
        if kind == "stage":
            values["row"]["a"] = "changed by Good"
        with self.file.open("a") as file:
            file.write(f"{kind} {values}\\n")
    def close(self):
        with self.file.open("a") as file:
            file.write("closed\\n")

class BadStart(Good):
    def __init__(self, run_dir, config):
        raise OSError("no route to host\\nand more")

class BadSay(Good):
    def say(self, kind, **values):
        if kind == "round":
            raise StopRequested("not for me to say")

class BadClose(Good):
    def say(self, kind, **values):
        pass
    def close(self):
        raise KeyError("gone")

class Mute:
    def __init__(self, run_dir, config):
        pass
"""


@pytest.fixture
def run(tmp_path) -> RunDir:
    (tmp_path / "own.py").write_text(OWN)
    return RunDir(tmp_path)


def configured(run: RunDir, *kinds: str, **more):
    raw = {"name": "mine", "trackers": [f"./own.py:{kind}" for kind in kinds], **more}
    return config.resolve(raw, run.path, "test")


def test_names():
    assert names(config.parse({})) == []
    assert names(config.parse({"tensorboard": True, "trackers": ["tensorboard", "a:B"]})) == ["tensorboard", "a:B"]


def test_a_file_is_named_relative_to_who_names_it(run):
    (run.path / "run.yaml").write_text(yaml.safe_dump({"trackers": ["./own.py:Good"]}))
    loaded = config.load(run.path / "run.yaml")
    assert loaded.trackers == [f"{run.path / 'own.py'}:Good"]
    assert config.parse(yaml.safe_load(config.dump(loaded))) == loaded


def test_clients_do_not_import_trackers():
    """An order's configuration is read on machines where the tracker's file may not be."""
    assert config.parse({"trackers": ["/nowhere/mine.py:Mine"]}).trackers == ["/nowhere/mine.py:Mine"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", r"trackers: unknown name 'nothing' \(allowed: tensorboard; see `fcit list`\)"),
        ("./own.py:Goood", r"trackers: '.*own.py' has no 'Goood'; did you mean 'Good'"),
        ("./own.py:Mute", r"trackers: .*own.py:Mute has no say\(\); a tracker is a class \(run_dir, config\)"),
        ("./gone.py:Good", r"trackers: no such file '.*gone.py'"),
    ],
)
def test_what_cannot_be_used_is_refused(run, name, said):
    with pytest.raises(ConfigError, match=said):
        check(config.resolve({"trackers": [name]}, run.path, "test"))


def test_a_missing_package_is_refused_with_the_command(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    with pytest.raises(ConfigError, match=r"'tensorboard' is not installed; run `pip install tensorboard`"):
        check(config.parse({"tensorboard": True}))


def test_everybody_is_told_and_nobody_can_change_the_run(run):
    told = []

    class Watcher:
        def say(self, kind, **values):
            told.append((kind, values))

    trackers = Trackers(run, configured(run, "Good"), Watcher())
    row = {"a": 1.0}
    trackers.say("start", stages=2)
    trackers.say("stage", row=row)
    trackers.close()
    assert row == {"a": 1.0}
    assert told == [("start", {"stages": 2}), ("stage", {"row": {"a": 1.0}})]
    assert (run.path / "mine.txt").read_text().splitlines() == [
        "start {'stages': 2}",
        "stage {'row': {'a': 'changed by Good'}}",
        "closed",
    ]


def test_one_that_raises_is_switched_off_and_the_others_go_on(run):
    told = []

    class Watcher:
        def say(self, kind, **values):
            told.append((kind, values.get("tracker")))

    trackers = Trackers(run, configured(run, "BadStart", "BadSay", "BadClose", "Good"), Watcher())
    for kind in ("start", "round", "end"):
        trackers.say(kind)
    trackers.close()
    failed = [event for event in run.read_events() if event["event"] == "tracker-failed"]
    assert [(event["tracker"], event["reason"].splitlines()[0]) for event in failed] == [
        ("BadStart", "OSError: no route to host"),
        ("BadSay", "StopRequested: not for me to say"),
        ("BadClose", "KeyError: 'gone'"),
    ]
    assert [kind for kind, _ in told if kind != "tracker-failed"] == ["start", "round", "end"]
    assert [name for kind, name in told if kind == "tracker-failed"] == ["BadStart", "BadSay", "BadClose"]
    kinds = [line.split()[0] for line in (run.path / "mine.txt").read_text().splitlines()]
    assert kinds == ["start", "tracker-failed", "round", "end", "tracker-failed", "closed"]


def test_a_watcher_may_stop_the_run_but_not_break_it(run):
    class Stops:
        def say(self, kind, **values):
            raise StopRequested("enough")

    class Breaks:
        def say(self, kind, **values):
            raise ZeroDivisionError

    with pytest.raises(StopRequested):
        Trackers(run, config.parse({}), Stops()).say("round")
    broken = Trackers(run, config.parse({}), Breaks())
    broken.say("round")
    broken.say("round")
    assert [event["tracker"] for event in run.read_events()] == ["watcher"]


def test_the_console_says_who_was_switched_off(capsys):
    from rich.console import Console

    from fcit.runs.progress import ConsoleWatcher

    ConsoleWatcher(Console(width=200), "run-1").say("tracker-failed", tracker="Mine", reason="KeyError: 'x'\nmore")
    assert capsys.readouterr().out == "run-1: Mine is told nothing more, the run goes on: KeyError: 'x'\n"


# ---------------------------------------------------------------------- TensorBoard


def scalars(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tensorboard")).Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


ROUND = {"loss": {"1/a": 1.0, "2/b": 2.0}, "up": 10, "down": 20, "seconds": 0.5}


def test_tensorboard_by_hand_and_after_a_resume(run):
    parsed = config.resolve({"tensorboard": True, "federation": {"rounds": 2}}, run.path, "test")
    events = [
        ("start", {"stages": 2}),
        ("round", {"stage": 0, "round": 0, **ROUND}),
        ("round", {"stage": 0, "round": 1, **ROUND, "loss": {"1/a": None}}),
        ("stage", {"stage": 0, "row": {"ocr-vqa": 50.0}}),
        ("round", {"stage": 1, "round": 0, **ROUND}),
        ("stage", {"stage": 1, "row": {"ocr-vqa": 30.0, "dvqa": 40.0}}),
    ]

    def go(part) -> None:
        trackers = Trackers(run, parsed)
        for kind, values in part:
            run.event(kind, **values)
            trackers.say(kind, **values)
        trackers.close()

    go(events[:5])
    size = len((run.events).read_text().splitlines()[:4])
    run.events.write_text("".join(f"{line}\n" for line in run.events.read_text().splitlines()[:size]))
    go([events[0], *events[4:]])  # the round after the checkpoint is told again
    assert scalars(run) == {
        "round/loss": [(1, 1.5), (3, 1.5)],
        "round/seconds": [(1, 0.5), (2, 0.5), (3, 0.5)],
        "round/bytes_up": [(1, 10), (2, 10), (3, 10)],
        "round/bytes_down": [(1, 20), (2, 20), (3, 20)],
        "score/ocr-vqa": [(2, 50), (3, 30)],
        "score/dvqa": [(3, 40)],
        "stage/last_so_far": [(2, 50), (3, 35)],
    }


def test_tensorboard_shows_the_configuration(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = registry.resolve("tracker", "tensorboard")(run.path, config.parse({"name": "shown"}))
    tracker.close()
    found = EventAccumulator(str(run.path / "tensorboard")).Reload()
    (text,) = found.Tensors("configuration/text_summary")
    assert b"    name: shown\n" in text.tensor_proto.string_val[0]
