import json
import subprocess

import numpy as np
import pytest

from fcit.errors import RunError
from fcit.evaluation.following import Followed
from fcit.methods.base import ServerState
from fcit.methods.knowledge_cache import KnowledgeCache
from fcit.runs.folder import RunDir
from server import checkpoint
from server.checkpoint import Progress
from tests.helpers.commands import Process


def tensors(*values: float) -> dict[str, np.ndarray]:
    return {"x.lora_A.weight": np.array([values], np.float32)}


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir(tmp_path)


@pytest.fixture
def state() -> ServerState:
    cache = KnowledgeCache()
    cache.add("0", np.array([0.1, 0.2]) * 3, 3)
    cache.add("1", np.array([1e-9, 1.0]), 100_001)
    return ServerState(
        subspaces={"10": tensors(1, 2), "1": tensors(3, 4), "0": tensors(5, 6)},
        shared={"projector": np.array([7], np.float32)},
        assigned={(3, "ab"): "0", (-1, "all"): "1"},
        memory={"cache": vars(cache)},
        optimizers={"subspace-1": {"base.x/y": np.ones(2), "t": 3}},
    )


@pytest.mark.parametrize("left", [np.ones(2), np.float32(1), [1.0]])
def test_a_state_that_clients_could_not_train_is_refused(tmp_path, left):
    """What a method's own arithmetic left: numpy makes float64 of it easily."""
    state = ServerState(subspaces={"0": {"a": np.ones(2, np.float32), "b": left}})
    with pytest.raises(
        RunError, match=r"^0/b is (float64|float32|list) after aggregate or end_stage, not a float32 array"
    ):
        checkpoint.save(RunDir(tmp_path), state, Progress())


def test_round_trip(run, state):
    progress = Progress(
        stage=2,
        round=3,
        evaluated=["a"],
        row={"a": 0.1},
        rows=[{"b": 1 / 3}],
        norms=[0.1 + 0.2],
        offsets={"all": 9},
        declared={"3/ab": 7},
        extra={"a": {"exact": 1.5}},
        followed={"a": Followed({"letter": 3}, 2, 0.2)},
        followed_rows=[{"b": Followed({}, 0, 1 / 3)}],
        seconds={"training": 1.25},
        cpu_seconds={"training": 0.75},
        trained={"task-10": {"1": 4, "0": 4}},
    )
    run.event("round", stage=0)
    checkpoint.save(run, state, progress)
    got, where = checkpoint.load(run)
    assert where.majority == {"task-10": "1"}  # equal shares: the order in which they began is kept
    assert where == progress
    assert where.saves == 1
    assert where.events == run.events.stat().st_size
    assert got.assigned == state.assigned
    assert list(got.subspaces) == ["10", "1", "0"]  # the order fixes the columns of the mix
    for name, held in {**state.subspaces, "shared": state.shared}.items():
        back = got.shared if name == "shared" else got.subspaces[name]
        assert set(back) == set(held)
        assert all(np.array_equal(back[k], v) for k, v in held.items())
    cache, other = (KnowledgeCache(**s.memory["cache"]) for s in (state, got))
    assert got.optimizers["subspace-1"]["t"] == 3
    assert got.optimizers["subspace-1"]["base.x/y"].tolist() == [1, 1]
    assert (other.names, other.counts) == (cache.names, cache.counts)
    assert all(np.array_equal(a, b) and b.dtype == np.float64 for a, b in zip(cache.sums, other.sums, strict=True))


def test_the_subspace_of_a_task_is_that_of_most_of_its_records():
    progress = Progress()
    for task, subspace, examples in [(0, "0", 5), (1, "0", 9), (1, "1", 5), (1, "1", 5), (2, "3", 1), (2, "2", 1)]:
        progress.count_tasks([task], subspace, examples)
    assert progress.majority == {"task-0": "0", "task-1": "1", "task-2": "3"}
    progress.count_tasks([0, 2], "2", 6)
    assert progress.majority == {"task-0": "2", "task-1": "1", "task-2": "2"}


def test_the_rows_of_a_stage_become_those_of_the_matrix():
    """In the benchmark's order; of a run begun by a version that knew no forms, the first stages have none."""
    progress = Progress(rows=[{"a": 80.0}], extra_rows=[{}], evaluated=["b", "a"])
    progress.row, progress.extra = {"b": 10.0, "a": 60.0}, {"b": {}, "a": {}}
    progress.followed = {"b": Followed({}, 0, 10.0), "a": Followed({"word": 4}, 1, 70.0)}
    progress.end_evaluation(["a", "b"])
    matrix = progress.matrix(["a", "b"])
    assert matrix.scores == [{"a": 80.0}, {"a": 60.0, "b": 10.0}]
    assert matrix.shares == [{}, {"a": 25.0}]
    assert matrix.contents == [{}, {"a": 70.0, "b": 10.0}]
    assert list(matrix.scores[1]) == list(matrix.contents[1]) == ["a", "b"]
    assert (progress.evaluated, progress.row, progress.extra, progress.followed) == ([], {}, {}, {})


def test_a_checkpoint_that_does_not_tell_who_trained_takes_all_that_are_known(run, state):
    checkpoint.save(run, state, Progress(declared={"3/b": 2, "1/a": 5}, contributed=["1/a"]))
    assert checkpoint.load(run)[1].contributed == ["1/a"]
    [folder] = run.state.iterdir()
    raw = json.loads((folder / "state.json").read_text())
    del raw["progress"]["contributed"]
    (folder / "state.json").write_text(json.dumps(raw))
    assert checkpoint.load(run)[1].contributed == ["1/a", "3/b"]


def test_of_a_checkpoint_without_cpu_seconds_they_are_not_known(run, state):
    checkpoint.save(run, state, Progress())
    assert checkpoint.load(run)[1].cpu_seconds == {}
    [folder] = run.state.iterdir()
    raw = json.loads((folder / "state.json").read_text())
    del raw["progress"]["cpu_seconds"]  # of an older version
    (folder / "state.json").write_text(json.dumps(raw))
    assert checkpoint.load(run)[1].cpu_seconds is None


def test_fresh_state(run):
    assert checkpoint.load(run) is None
    checkpoint.save(run, ServerState(), Progress())
    got, _ = checkpoint.load(run)
    assert got == ServerState()


def test_incomplete_checkpoint_is_passed_over(run, state):
    for round_ in (1, 2):
        checkpoint.save(run, state, Progress(round=round_, saves=round_))
    newest = checkpoint.complete(run)[0]
    (newest / "state.json").unlink()
    _, progress = checkpoint.load(run)
    assert progress.round == 1


def test_saving_goes_on_after_an_incomplete_one(run, state):
    progress = Progress()
    for _ in range(3):
        checkpoint.save(run, state, progress)
    (run.state / "000004").mkdir()  # killed while writing
    (run.state / "000004" / ".tensors.safetensors.tmp").write_bytes(b"half")
    _, progress = checkpoint.load(run)
    progress.round = 5
    checkpoint.save(run, state, progress)
    assert checkpoint.load(run)[1].round == 5


def test_old_ones_are_removed(run, state):
    progress = Progress()
    for _ in range(12):
        checkpoint.save(run, state, progress)
    assert sorted(p.name for p in run.state.iterdir()) == ["000011", "000012"]
    assert checkpoint.load(run)[1].saves == 12


def two(run, state) -> None:
    progress = Progress()
    for round_ in (1, 2):
        progress.round = round_
        checkpoint.save(run, state, progress)


def retyped(folder) -> None:
    raw = json.loads((folder / "state.json").read_text())
    raw["progress"]["rows"] = {"imagenet-r": "good"}
    (folder / "state.json").write_text(json.dumps(raw))


def damages() -> dict:
    return {
        "half": lambda folder: (folder / "state.json").write_text("{"),
        "empty": lambda folder: (folder / "state.json").write_text("{}"),
        "keys": lambda folder: (folder / "state.json").write_text('{"state": {}, "progress": {}}'),
        "types": retyped,
        "tensors": lambda folder: (folder / "tensors.safetensors").write_bytes(b"x" * 20),
        "gone": lambda folder: (folder / "tensors.safetensors").unlink(),
    }


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_checkpoint_falls_back_to_the_one_before(run, state, damage):
    two(run, state)
    newest = checkpoint.complete(run)[0]
    damages()[damage](newest)
    told = []
    got, progress = checkpoint.load(run, told.append)
    assert progress.round == 1
    assert got.assigned == state.assigned
    assert len(told) == 1
    assert str(newest) in told[0]
    checkpoint.save(run, state, progress)  # takes the damaged one's place
    assert checkpoint.complete(run)[0] == newest
    assert checkpoint.load(run)[1].saves == 2


def test_all_damaged(run, state):
    two(run, state)
    for folder in run.state.iterdir():
        (folder / "state.json").write_text("{")
    with pytest.raises(RunError, match=r"no checkpoint .* can be read .*start the run anew"):
        checkpoint.load(run)


def test_names_in_folders_are_waited_for(run, state, monkeypatch):
    """A renamed file whose folder was not synced may be gone after a power cut."""
    synced = []
    monkeypatch.setattr("fcit.io.files.sync", lambda path: synced.append(path.name))
    monkeypatch.setattr("server.checkpoint.sync", lambda path: synced.append(path.name))
    run.event("start")
    checkpoint.save(run, state, Progress())
    assert synced == [
        "events.jsonl",
        ".tensors.safetensors.tmp",
        "000001",
        ".state.json.tmp",
        "000001",
        "state",
        run.path.name,
    ]


FILL = """
import resource, sys
from pathlib import Path
import numpy as np
from fcit.errors import DiskFull
from fcit.methods.base import ServerState
from fcit.runs.folder import RunDir
from server import checkpoint
from server.checkpoint import Progress
run, progress = RunDir(Path(sys.argv[1])), Progress()
checkpoint.save(run, ServerState(shared={"x": np.zeros(10, np.float32)}), progress)
if len(sys.argv) > 2:
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    checkpoint.save(run, ServerState(shared={"x": np.zeros(10**6, np.float32)}), progress)
except DiskFull as error:
    print(error)
"""


def fill(run: RunDir, *limit: str) -> str:
    """What a fresh process says whose second checkpoint does not fit."""
    (run.path / "config.yaml").write_text("")
    done = Process("tests.helpers.forkserver:execute", FILL, run.path, *limit)
    assert done.wait() == 0, done.stderr
    _, progress = checkpoint.load(run)
    assert progress.saves == 1
    assert [p.name for p in run.state.iterdir()] == ["000001"]
    return done.stdout


def test_no_room_for_a_checkpoint(run):
    said = fill(run, str(10**6))
    assert "000002/tensors.safetensors: cannot be written: File too large" in said
    assert "MB free" in said
    assert f"`fcit resume {run.path}`" in said


def test_a_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.strip()}")
    try:
        said = fill(RunDir(small))
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert "000002/tensors.safetensors: cannot be written: No space left on device" in said
    assert "fcit resume" in said


def test_only_known_memory_can_be_saved(run):
    with pytest.raises(TypeError, match="cannot be saved"):
        checkpoint.save(run, ServerState(memory={"x": object()}), Progress())
