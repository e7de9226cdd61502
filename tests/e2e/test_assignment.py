"""Who trains what, and which subspace it goes to, with the real identity encoder and no training."""

import numpy as np
import pytest

from clients.worker.worker import worker
from fcit import config as configuration
from fcit.data.benchmark import open_benchmark
from fcit.federation.messages import DescribeOrder
from fcit.methods.base import Factory, ServerState, Stats
from fcit.methods.disco import Disco
from server.participants import slots_of_round


def assign_rounds(config, stages, rounds):
    """Run DISCO's assignment for some rounds; yields (stage, round, slot, subspace)."""
    benchmark = open_benchmark(config)
    benchmark.prepare()
    method = Disco(config)
    state, make = ServerState(), Factory(0, {"x.lora_A.weight": (1, 1)})
    text = configuration.dump(config)
    for stage in stages:
        for round_ in rounds:
            slots = slots_of_round(config, benchmark, method, stage, round_)
            stats = {}
            for slot in slots:
                if slot.pair not in state.assigned:
                    order = DescribeOrder(config=text, client=slot.client, shard=slot.shard, tasks=list(slot.tasks))
                    answer = worker(text).describe(order)
                    stats[slot.pair] = Stats(answer.tensors["total"], answer.count)
            method.assign(state, [s.pair for s in slots], stats, make)
            for slot in slots:
                yield stage, round_, slot, state.assigned[slot.pair]


def test_a_client_with_two_tasks_in_a_stage_feeds_two_subspaces():
    """Official task-het stage 1: client 11 trains Flickr30k in round 0 and OCR-VQA in round 4."""
    config = configuration.parse(
        {"benchmark": "fcit-mini-task", "setting": "heterogeneous", "federation": {"sampling": "official"}}
    )
    seen = list(assign_rounds(config, [0], range(5)))
    mine = {(r, slot.tasks[0]): name for _, r, slot, name in seen if slot.client == 11}
    assert set(mine) == {(0, 5), (4, 4)}
    by_task = {}
    for _, _, slot, name in seen:
        by_task.setdefault(slot.tasks[0], set()).add(name)
    assert all(len(names) == 1 for names in by_task.values())
    assert len(set.union(*by_task.values())) == 5


@pytest.mark.parametrize("beta", [0.5])
def test_homogeneous_run_discovers_exactly_the_eight_tasks(beta):
    config = configuration.parse({"benchmark": "fcit-mini-task", "federation": {"beta": beta}})
    names = {}
    for _, _, slot, name in assign_rounds(config, range(8), range(3)):
        names.setdefault(slot.tasks[0], set()).add(name)
    assert [len(found) for found in names.values()] == [1] * 8
    assert len(set.union(*names.values())) == 8


def test_a_description_with_noise_leaves_its_client_with_noise(tmp_path):
    plain = configuration.parse({"benchmark": "fcit-mini-task"})
    noisy = configuration.parse({"benchmark": "fcit-mini-task", "privacy": {"token_noise_multiplier": 2.0}})
    open_benchmark(plain).prepare()

    def described(config, memory=""):
        text = configuration.dump(config)
        return worker(text, str(memory)).describe(DescribeOrder(config=text, client=1, shard="s", tasks=[0]))

    exact, first = described(plain), described(noisy, tmp_path / "a")
    direction = exact.tensors["total"] / np.linalg.norm(exact.tensors["total"])
    added = first.tensors["total"] - exact.count * direction
    assert 0.5 < added.std() / 2.0 < 1.5  # features of one length: their directions are kept
    assert first.count == exact.count
    assert described(noisy, tmp_path / "a").tensors["total"].tolist() == first.tensors["total"].tolist()
    assert described(noisy, tmp_path / "b").tensors["total"].tolist() != first.tensors["total"].tolist()
