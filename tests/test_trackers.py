"""Trackers without a federation: told in copies, switched off when they raise, refused when unusable."""

import importlib.util
import os

import pytest
import yaml

from fcit import config, registry
from fcit.errors import ConfigError, RunError, StopRequested
from fcit.runs.folder import RunDir
from fcit.runs.trackers import Trackers, check, names
from fcit.runs.trackers.scalars import parameters

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
        (
            "nothing",
            r"trackers: unknown name 'nothing' \(allowed: mlflow, tensorboard, trackio, wandb; see `fcit list`\)",
        ),
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


# ---------------------------------------------------------------------- those of numbers


def scalars(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tensorboard")).Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def in_mlflow(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.path.parent / 'mlflow.db'}")
    [kept] = client.search_runs([client.get_experiment_by_name("fcit").experiment_id])
    assert kept.info.status == "FINISHED"
    assert kept.data.params["federation.rounds"] == "2"
    assert [file.path for file in client.list_artifacts(kept.info.run_id)] == ["report.html"]
    return {
        name: [(m.step, round(m.value, 4)) for m in client.get_metric_history(kept.info.run_id, name)]
        for name in kept.data.metrics
    }


def in_trackio(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    [kept] = trackio.Api().runs("fcit")
    assert kept.config["federation.rounds"] == "2"
    found: dict[str, list[tuple[int, float]]] = {}
    for row in SQLiteStorage.get_logs("fcit", kept.name, run_id=kept.id):
        for name in row.keys() - {"step", "timestamp"}:
            found.setdefault(name, []).append((row["step"], round(row[name], 4)))
    return found


def in_wandb(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    """From the one file of an offline run: records of Protocol Buffers in blocks, in the format of LevelDB's log."""
    import json

    from wandb.proto.wandb_internal_pb2 import Record

    [file] = run.path.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, list[tuple[int, float]]] = {}
    kinds, settings = set(), {}
    for raw in records(file.read_bytes()):
        record = Record.FromString(raw)
        kinds.add(record.WhichOneof("record_type"))
        if record.HasField("run"):
            settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        values = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
        for name in values.keys() - {"rounds"}:
            if not name.startswith("_"):
                found.setdefault(name, []).append((values["rounds"], round(values[name], 4)))
    assert "artifact" in kinds
    assert settings["federation.rounds"] == "2"
    return found


def records(data: bytes, block: int = 2**15, head: int = 7):
    """The records of a LevelDB log: pieces of (checksum, length, kind) and bytes, none of which crosses a block."""
    at, whole = head, b""  # a head of the file's own comes first
    while at < len(data):
        if block - at % block < head:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + head : at + head + length]
        at += head + length
        if kind in (1, 4):  # all of it, or the last piece
            yield whole
            whole = b""


ROUND = {"loss": {"1/a": 1.0, "2/b": 2.0}, "up": 10, "down": 20, "seconds": 0.5}
END = {"Last": 35.0, "Avg": 42.5, "MFT": 45.0, "BWT": -20.0, "forgetting": 20.0}
EVENTS: list[tuple[str, dict]] = [
    ("start", {"stages": 2}),
    ("round", {"stage": 0, "round": 0, **ROUND}),
    ("round", {"stage": 0, "round": 1, **ROUND, "loss": {"1/a": None}}),
    ("stage", {"stage": 0, "row": {"ocr-vqa": 50.0}}),
    ("round", {"stage": 1, "round": 0, **ROUND}),
    ("round", {"stage": 1, "round": 1, **ROUND}),
    ("stage", {"stage": 1, "row": {"ocr-vqa": 30.0, "dvqa": 40.0}}),
    ("end", END),
]
SHOWN = {
    "round/loss": [(1, 1.5), (3, 1.5), (4, 1.5)],
    "round/seconds": [(step, 0.5) for step in range(1, 5)],
    "round/bytes_up": [(step, 10) for step in range(1, 5)],
    "round/bytes_down": [(step, 20) for step in range(1, 5)],
    "score/ocr-vqa": [(2, 50), (4, 30)],
    "score/dvqa": [(4, 40)],
    "stage/last_so_far": [(2, 50), (4, 35)],
    "stage/forgetting_so_far": [(4, 20)],
    **{f"final/{name.lower()}": [(4, value)] for name, value in END.items()},
}


@pytest.mark.parametrize(
    ("name", "shown"), [("tensorboard", scalars), ("mlflow", in_mlflow), ("trackio", in_trackio), ("wandb", in_wandb)]
)
def test_the_same_numbers_everywhere_also_after_a_resume(name, shown, tmp_path, monkeypatch):
    if importlib.util.find_spec(name) is None:
        assert os.environ.get("FCIT_REQUIRE_TRACKERS") != "1", f"{name} is not installed"
        pytest.skip(f"{name} is not installed; FCIT_REQUIRE_TRACKERS=1 makes this a failure")
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    parsed = config.resolve({"trackers": [name], "federation": {"rounds": 2}}, tmp_path, "test")
    run = RunDir.create(tmp_path, "told", config.dump(parsed), {})

    def go(part) -> None:
        trackers = Trackers(run, parsed)
        for kind, values in part:
            run.event(kind, **values)
            trackers.say(kind, **values)
        trackers.close()

    go(EVENTS[:6])
    lines = run.events.read_text().splitlines()[:4]
    run.events.write_text("".join(f"{line}\n" for line in lines))
    run.results.write_text("{}")
    go([EVENTS[0], *EVENTS[4:]])  # the rounds after the checkpoint are told again
    (run.path / "report.html").write_text("<p>shown</p>")
    Trackers(run, parsed).attach(run.path / "report.html")
    assert [event for event in run.read_events() if event["event"] == "tracker-failed"] == []
    assert shown(run) == SHOWN


def test_a_report_is_given_to_those_that_keep_files_and_are_not_switched_off(run):
    (run.path / "own.py").write_text(
        "class Keeps:\n    def __init__(self, run_dir, config):\n        self.folder = run_dir\n"
        "    def say(self, kind, **values):\n        pass\n    def close(self):\n        pass\n"
        "    def attach(self, file):\n        (self.folder / 'kept.txt').write_text(file.name)\n"
        "class Loses(Keeps):\n    def attach(self, file):\n        raise OSError('no room')\n"
        "class Off(Keeps):\n    def attach(self, file):\n        raise AssertionError\n" + OWN
    )
    run.event("tracker-failed", tracker="Off", reason="before")
    Trackers(run, configured(run, "Off", "Loses", "Keeps", "Good")).attach(run.path / "report.html")
    assert (run.path / "kept.txt").read_text() == "report.html"
    failed = [event["reason"] for event in run.read_events() if event["event"] == "tracker-failed"]
    assert failed == ["before", "OSError: no room"]
    assert not (run.path / "mine.txt").exists()


def test_trackio_is_not_sent_away_while_a_run_goes_on(run, monkeypatch):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/something")
    with pytest.raises(RunError, match="TRACKIO_SPACE_ID is set, and runs are kept on this machine"):
        registry.resolve("tracker", "trackio")(run.path, config.parse({}))


def test_parameters_are_named_as_on_the_command_line():
    flat = parameters(config.parse({"method": "finetune", "federation": {"rounds": 7}}))
    assert flat["federation.rounds"] == "7"
    assert flat["method.name"] == "finetune"
    assert flat["data_root"] == "null"


def test_tensorboard_shows_the_configuration(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = registry.resolve("tracker", "tensorboard")(run.path, config.parse({"name": "shown"}))
    tracker.close()
    found = EventAccumulator(str(run.path / "tensorboard")).Reload()
    (text,) = found.Tensors("configuration/text_summary")
    assert b"    name: shown\n" in text.tensor_proto.string_val[0]
