"""training.micro_batch: auto finds what fits; what comes out is that of the size it found, and of nothing else."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn import functional

from clients.worker.micro_batches import MicroBatches, OutOfMemory, backward
from clients.worker.planning import Planning
from fcit import config as configuration
from fcit import simulate
from fcit.data.collate import Encoded
from fcit.errors import FCITError
from fcit.io.cache import Bounded
from fcit.methods.base import Session
from fcit.models.backbone import Backbone
from fcit.models.compiling import CompiledLayers
from fcit.models.features import Pictures
from tests.helpers.runs import SMALL

RECORDS = 8


class Model:
    """One weight, dropout, and room for ``fits`` records at a time."""

    def __init__(self, fits: int, error: Exception | None = None, at: int = 0) -> None:
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 6))
        rng = np.random.default_rng(0)
        self.records = torch.from_numpy(rng.normal(size=(RECORDS, 6)).astype(np.float32))
        examples = [Encoded((1,) + (2,) * (n + 1), ((1, n + 2),), ("",)) for n in range(RECORDS)]
        self.session = Session(
            backbone=self, adapters=None, client=0, shard="s", stage=0, round=0, subspace="0", examples=examples
        )
        self.session.notes = {"draw": np.random.default_rng(3), "count": torch.zeros(1), "name": "a word"}
        self.fits, self.at, self.seen, self.rows = fits, at, [], []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def loss_of(self, chosen: list[int]) -> torch.Tensor:
        assert self.session.batch == chosen
        self.seen.append(len(chosen))
        self.rows += chosen
        self.session.notes["count"] += len(chosen)
        x = functional.dropout(self.records[chosen], 0.5) + float(self.session.notes["draw"].normal())
        loss = (x @ self.weight).square().mean()
        if len(chosen) > self.fits and len(self.seen) > self.at:
            raise self.error
        return loss

    def run(self, micro: MicroBatches | int) -> tuple[float, torch.Tensor]:
        self.weight.grad, pair = None, (self.session, self.session)
        if isinstance(micro, MicroBatches):
            loss = micro.backward(pair, list(range(RECORDS)), self.loss_of, [self.weight])
        else:
            loss = backward(pair, list(range(RECORDS)), self.loss_of, micro)
        return loss, self.weight.grad.clone()


@pytest.mark.parametrize(("fits", "size"), [(8, 8), (7, 4), (3, 2), (1, 1)])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_auto_gives_what_the_size_that_fits_gives_bit_for_bit(fits, size, error, caplog):
    torch.manual_seed(1)
    loss, gradient = Model(8).run(size)
    torch.manual_seed(1)
    model, auto = Model(fits, error), MicroBatches("auto")
    with caplog.at_level(logging.WARNING):
        found, other = model.run(auto)
    assert found == loss
    assert torch.equal(other, gradient)
    assert (auto.size or RECORDS) == size
    assert len(caplog.records) == auto.halved
    assert (auto.halved > 0) == (size < RECORDS)
    # what the loss noted was noted once
    assert model.session.notes["count"].item() == RECORDS


def test_a_batch_that_fails_halfway_leaves_nothing_behind():
    """The first half fitted and its gradients were there when the second ran out."""
    torch.manual_seed(1)
    loss, gradient = Model(8).run(2)
    torch.manual_seed(1)
    model, auto = Model(3, at=1), MicroBatches("auto")
    auto.size = 4
    found, other = model.run(auto)
    assert model.seen == [4, 4, 2, 2, 2, 2]
    assert found == loss
    assert torch.equal(other, gradient)


def test_the_size_that_worked_is_kept():
    model, auto = Model(2), MicroBatches("auto")
    model.run(auto)
    assert model.seen == [8, 4, 2, 2, 2, 2]
    model.seen.clear()
    model.run(auto)
    assert model.seen == [2, 2, 2, 2]
    assert auto.halved == 2


def test_the_longest_records_come_first_and_the_whole_batch_as_it_is():
    """Records are the longer the higher their number."""
    model = Model(8)
    model.run(3)
    assert model.rows == [7, 6, 5, 4, 3, 2, 1, 0]
    assert model.seen == [3, 3, 2]
    assert model.session.batch == list(range(RECORDS))
    model.rows.clear()
    model.run(8)
    assert model.rows == list(range(RECORDS))


def test_where_not_even_one_record_fits_it_says_what_to_lower():
    auto = MicroBatches("auto")
    with pytest.raises(OutOfMemory, match=r"one record at a time: CUDA out of memory.*training\.checkpointing: true"):
        Model(0).run(auto)
    assert issubclass(OutOfMemory, FCITError)


@pytest.mark.parametrize(("setting", "tried"), [(None, 8), (4, 4)])
def test_a_fixed_size_that_does_not_fit_names_auto(setting, tried):
    model = Model(3)
    with pytest.raises(OutOfMemory, match=rf"with {tried} at a time.*lower training\.micro_batch .*auto"):
        model.run(MicroBatches(setting))
    assert model.seen == [tried]


@pytest.mark.parametrize("setting", ["auto", None, 2])
def test_other_errors_are_not_taken_for_it(setting):
    with pytest.raises(RuntimeError, match="shapes"):
        Model(0, RuntimeError("shapes do not match")).run(MicroBatches(setting))


LARGE = {"model": "llava-hf/llava-1.5-7b-hf", "identity": "openai/clip-vit-large-patch14-336", "dtype": "bfloat16"}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 96 GB of which a model takes 16, and an allocator that holds 4 more; returns what is free beside."""
    free = {"bytes": 76e9}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["bytes"], 96e9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 16e9)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20e9)
    return free


def begun(
    micro: MicroBatches, text: int = 700, devices: tuple[str, ...] = ("cuda",), images: int = 576, **sections
) -> tuple[bool, int | None]:
    """Whether activations are computed again, and records at a time, for an order of records of so many tokens."""
    training = {"batch_size": 16, "micro_batch": micro.setting, "checkpointing": "auto"}
    config = configuration.parse({"backbone": {**LARGE, "device": devices[0]}, "training": training, **sections})
    placed = [torch.device(name) for name in devices]
    encoder = SimpleNamespace(image_token=0)
    planning = Planning(config, SimpleNamespace(device=placed[0], devices=placed, encoder=encoder))
    tokens = (0,) * images + (1,) * (text - images)
    plan = planning.begin([Encoded(tokens, ((text - 10, text),), ("",))], micro)
    return plan.training.checkpointing, micro.size


def test_a_gpu_with_room_keeps_activations(gpu):
    assert begun(MicroBatches("auto")) == (False, 16)
    gpu["bytes"] = 40e9
    assert begun(MicroBatches("auto")) == (False, 8)
    assert begun(MicroBatches("auto"), text=2048) == (True, 16)
    gpu["bytes"] = 4e9
    assert begun(MicroBatches("auto")) == (True, 8)
    assert begun(MicroBatches(1)) == (False, 1)
    assert begun(MicroBatches(None)) == (True, None)


def test_the_tokens_of_an_orders_own_images_count(gpu):
    """What the projector keeps for them is as much as they are many, and 2,000 of 2,048 are more than 576."""
    gpu["bytes"] = 2.37e9
    assert begun(MicroBatches("auto"), text=2048, images=0)[1] == 4
    assert begun(MicroBatches("auto"), text=2048, images=2000)[1] == 2


def test_a_spread_model_has_the_room_of_all_its_gpus(gpu):
    gpu["bytes"] = 40e9
    assert begun(MicroBatches("auto"), devices=("cuda:0", "cuda:1")) == (False, 16)


def test_workers_that_share_a_gpu_share_its_memory(gpu):
    ray = {"federation": {"engine": "ray"}, "ray": {"workers": 2, "num_gpus": 0.5}}
    assert begun(MicroBatches("auto"), **ray) == (False, 4)


def test_what_memory_running_out_has_shown_outweighs_the_estimate(gpu):
    auto = MicroBatches("auto")
    assert begun(auto) == (False, 16)
    Model(2).run(auto)
    assert auto.halved == 2
    assert begun(auto) == (False, 2)
    assert auto.halved == 0


def test_on_a_cpu_nothing_is_estimated():
    assert begun(MicroBatches("auto"), devices=("cpu",)) == (False, None)
    assert begun(MicroBatches(4), devices=("cpu",)) == (False, 4)


def test_a_run_tells_what_its_clients_came_to(tmp_path, monkeypatch):
    """A federation whose clients have room for four records; the events say so."""
    whole = Backbone.loss

    def limited(self, examples, *rest):
        if len(examples) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, examples, *rest)

    monkeypatch.setattr(Backbone, "loss", limited)
    loaded: list[int] = []
    read = Pictures.batch
    monkeypatch.setattr(Pictures, "batch", lambda self, rows: loaded.append(len(rows)) or read(self, rows))
    raw = {
        **SMALL,
        "data": {"max_records": 600},
        "seed": 0,  # the first client has 16 records
        "output": str(tmp_path),
        "method": "finetune",
        "evaluation": {"samples": 1, "when": "final"},
        "federation": {"rounds": 1, "clients_per_round": 2},
        "training": {"micro_batch": "auto", "batch_size": 16, "checkpointing": "auto"},
    }
    run = simulate(raw)
    events = [json.loads(line) for line in run.folder.events.read_text().splitlines()]
    told = [how for event in events if event["event"] == "round" for how in event["how"]]
    # features come to the device as they are needed, never a client's all at once
    assert loaded[:4] == [16, 8, 4, 4]
    assert set(loaded[2:]) <= {1, 2, 3, 4}
    assert told[0] == {"micro_batch": 4, "checkpointing": False, "halved": 2}
    assert len(told) == 4
    assert all(how["micro_batch"] == 4 and how["halved"] == 0 for how in told[1:])


def test_a_cache_forgets_what_was_not_used_for_longest():
    made = []
    cache = Bounded(10, len)

    def get(key: str, size: int) -> list[int]:
        return cache.get(key, lambda: made.append(key) or [0] * size)

    get("a", 4), get("b", 4), get("a", 4)
    assert made == ["a", "b"]
    assert cache.held == 8
    get("c", 6)  # b is given up, a was used since
    get("a", 4)
    assert made == ["a", "b", "c"]
    assert cache.held == 10
    assert len(get("huge", 50)) == 50
    assert len(cache) == 1
    assert cache.held == 50  # one thing is always kept
    get("a", 4)
    assert made[-1] == "a"
    assert cache.held == 4


def test_memory_that_runs_out_in_a_compiler_halves_and_compiles_on():
    layers = CompiledLayers([nn.Linear(1, 1)], backend="eager")
    micro = MicroBatches("auto", 8, layers)
    error = BackendCompilerFailed(print, RuntimeError("CUDA driver error: out of memory"), None)
    with layers.installed():
        assert micro._changed(8, error)
    assert (micro.size, layers.failed) == (4, False)
