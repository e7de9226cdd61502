import numpy as np
import pytest

from fcit.errors import RunError
from fcit.methods.base import ServerState
from fcit.methods.knowledge_cache import KnowledgeCache
from fcit.run_dir import RunDir
from server import checkpoint
from server.checkpoint import Progress


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


def test_round_trip(run, state):
    progress = Progress(
        stage=2, round=3, evaluated=["a"], row={"a": 0.1}, rows=[{"b": 1 / 3}], norms=[0.1 + 0.2], offsets={"all": 9},
        declared={"3/ab": 7}, extra={"a": {"exact": 1.5}}, seconds={"training": 1.25},
        trained={"task-10": {"1": 4, "0": 4}},
    )  # fmt: skip
    run.event("round", stage=0)
    checkpoint.save(run, state, progress)
    got, where = checkpoint.load(run)
    assert where.majority == {"task-10": "1"}  # equal shares: the order in which they began is kept
    assert where == progress and where.saves == 1 and where.events == run.events.stat().st_size
    assert got.assigned == state.assigned
    assert list(got.subspaces) == ["10", "1", "0"]  # the order fixes the columns of the mix
    for name, held in {**state.subspaces, "shared": state.shared}.items():
        back = got.shared if name == "shared" else got.subspaces[name]
        assert set(back) == set(held) and all(np.array_equal(back[k], v) for k, v in held.items())
    cache, other = (KnowledgeCache(**s.memory["cache"]) for s in (state, got))
    assert got.optimizers["subspace-1"]["t"] == 3 and got.optimizers["subspace-1"]["base.x/y"].tolist() == [1, 1]
    assert (other.names, other.counts) == (cache.names, cache.counts)
    assert all(np.array_equal(a, b) and b.dtype == np.float64 for a, b in zip(cache.sums, other.sums, strict=True))


def test_the_subspace_of_a_task_is_that_of_most_of_its_records():
    progress = Progress()
    for task, subspace, examples in [(0, "0", 5), (1, "0", 9), (1, "1", 5), (1, "1", 5), (2, "3", 1), (2, "2", 1)]:
        progress.count_tasks([task], subspace, examples)
    assert progress.majority == {"task-0": "0", "task-1": "1", "task-2": "3"}
    progress.count_tasks([0, 2], "2", 6)
    assert progress.majority == {"task-0": "2", "task-1": "1", "task-2": "2"}


def test_fresh_state(run):
    assert checkpoint.load(run) is None
    checkpoint.save(run, ServerState(), Progress())
    got, _ = checkpoint.load(run)
    assert got == ServerState()


def test_incomplete_checkpoint_is_passed_over(run, state):
    for round_ in (1, 2):
        checkpoint.save(run, state, Progress(round=round_, saves=round_))
    newest = checkpoint.latest(run)
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


@pytest.mark.parametrize("content", ["{", "{}", '{"state": {}, "progress": {}}'])
def test_damaged_json(run, state, content):
    checkpoint.save(run, state, Progress())
    (checkpoint.latest(run) / "state.json").write_text(content)
    with pytest.raises(RunError):
        checkpoint.load(run)


def test_damaged_tensors(run, state):
    checkpoint.save(run, state, Progress())
    (checkpoint.latest(run) / "tensors.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(RunError, match="safetensors"):
        checkpoint.load(run)


def test_only_known_memory_can_be_saved(run):
    with pytest.raises(TypeError, match="cannot be saved"):
        checkpoint.save(run, ServerState(memory={"x": object()}), Progress())
