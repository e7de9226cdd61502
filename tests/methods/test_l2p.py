from dataclasses import replace

import numpy as np
import pytest
import torch

from fcit.config import RunConfig
from fcit.federation import codec
from fcit.federation.messages import EXTRA, ClientUpdate
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedavg import FedAvg
from fcit.fedopt.fedavgm import FedAvgM
from fcit.methods.base import ServerState, Update
from fcit.methods.l2p import L2P
from fcit.models.layout import KEYS, PROMPTS
from tests.helpers.toy import TinyModel, f32, session

UPDATE = ClientUpdate(
    stage=0, round=0, client=0, shard="s", subspace="0", examples=259, steps=1, loss=1.0, seconds=1.0, tensors={}
)
KEY_ROWS = f32([1, 0], [0, 1], [-1, 0])


def l2p(**options) -> L2P:
    return L2P(RunConfig(method={"name": "l2p", "pool": 3, "length": 1, "choose": 2, **options}))


def pool_model() -> TinyModel:
    model = TinyModel()
    model.trainable[KEYS] = torch.nn.Parameter(torch.from_numpy(KEY_ROWS.copy()))
    model.trainable[PROMPTS] = torch.nn.Parameter(torch.arange(3.0)[:, None, None].repeat(1, 1, 4))
    model.loss = lambda examples, features, prefix: prefix.sum()
    return model


def test_the_nearest_prompts_are_chosen_nearest_first():
    chosen = l2p()._choose(torch.from_numpy(KEY_ROWS), torch.tensor([[2.0, 1.0], [-3.0, 0.1]]))
    assert chosen.tolist() == [[0, 1], [2, 1]]


def test_use_so_far_can_count_against_a_prompt():
    """Distances (0.106, 0.553, 1.894) times use (10, 1, 0) leave the order 2, 1, 0."""
    used = torch.tensor([10.0, 1, 0])
    chosen = l2p(penalty=True)._choose(torch.from_numpy(KEY_ROWS), torch.tensor([[2.0, 1.0]]), used)
    assert chosen.tolist() == [[2, 1]]


def test_loss_pulls_the_chosen_keys():
    """q = (1, 0) takes slots 0 (cosine 1) and 1 (cosine 0): prefix sum 0 + 4, minus 0.5 * mean(1, 0)."""
    view = session(pool_model(), identity=f32([1, 0], [0, 5]), batch=[0])
    method = l2p()
    method.prepare(view)
    loss = method.loss(view, [None], None)
    assert loss.item() == pytest.approx(4 - 0.25)
    loss.backward()
    assert view.adapters.trainable[PROMPTS].grad[:, 0, 0].tolist() == [1, 1, 0]
    assert method.finish(view)["used"].tolist() == [1, 1, 0]


def test_slots_are_averaged_by_use_and_unused_ones_stay():
    method = l2p()
    pool = {KEYS: KEY_ROWS, PROMPTS: np.zeros((3, 1, 4), np.float32)}
    state = ServerState({"0": pool}, {"p": f32(0)})

    def update(client, examples, value, used):
        moved = {KEYS: KEY_ROWS + value, PROMPTS: pool[PROMPTS] + value, "p": f32(value)}
        return Update(client, "0", examples, {k: v.astype(np.float32) for k, v in moved.items()}, {"used": f32(*used)})

    updates = [update(0, 1, 1, (3, 0, 0)), update(1, 3, 2, (1, 2, 0))]
    method.aggregate(state, iter(updates), Aggregator(FedAvg(RunConfig())))
    # slot 0: (3 x 1 + 1 x 2) / 4; slot 1: 2; slot 2: nobody. The projector goes by records: (1 + 3 x 2) / 4.
    assert state.subspaces["0"][PROMPTS][:, 0, 0].tolist() == [1.25, 2, 0]
    assert np.allclose(state.subspaces["0"][KEYS], KEY_ROWS + f32([1.25], [2], [0]))
    assert state.shared["p"].tolist() == [1.75]
    assert state.memory["used"].tolist() == [4, 2, 0]


def test_a_projector_of_the_subspace_goes_by_records():
    """It moves by (1 x 1 + 3 x 2) / 4, prompts that no client chose not at all; its variates are summed."""
    method, seen = l2p(), []

    class Noting(FedAvg):
        def absorb(self, sums, memory):
            seen.append((sorted(sums), memory))

    pool = {KEYS: KEY_ROWS, PROMPTS: np.zeros((3, 1, 4), np.float32), "p": f32(5)}
    state = ServerState({"0": pool})
    updates = []
    for client, examples, value in [(0, 1, 1), (1, 3, 2)]:
        moved = {name: (tensor + value).astype(np.float32) for name, tensor in pool.items()}
        updates.append(Update(client, "0", examples, moved, {"used": f32(1, 1, 0)}, {n: moved[n] for n in pool}))
    method.aggregate(state, iter(updates), Aggregator(Noting(RunConfig())))
    assert state.subspaces["0"]["p"].tolist() == [6.75]
    assert state.subspaces["0"][PROMPTS][:, 0, 0].tolist() == [1.5, 1.5, 0]
    assert sorted(name for names, _ in seen for name in names) == sorted(pool)
    assert all(memory is state.optimizers["subspace-0"] for _, memory in seen)


def test_active_parameters_are_the_chosen_prompts_and_the_projector():
    state = ServerState({"0": {KEYS: KEY_ROWS, PROMPTS: np.zeros((3, 5, 4), np.float32)}}, {"p": f32(1, 2)})
    assert l2p().active(state) == 2 * 5 * 4 + 2


@pytest.mark.parametrize("used", [(7, 0, 0), (-1, 0, 1), (3e38, 0, 0)])
def test_a_client_cannot_choose_more_often_than_it_has_records(used):
    assert "chosen" in l2p().reject_reason({"used": f32(*used)}, 3)
    assert l2p().reject_reason({"used": f32(3, 3, 0)}, 3) is None


@pytest.mark.parametrize("wire", ["float32", "bfloat16", "int8"])
def test_counts_that_the_wire_has_rounded_up_are_not_too_many(wire):
    """259 records that all chose the same two prompts: 2 x 260 arrive in bfloat16."""
    method = L2P(RunConfig(method={"name": "l2p", "pool": 3, "choose": 2}, federation={"wire": wire}))
    sent = {f"{EXTRA}used": f32(259, 259, 0)}
    (used,) = codec.decode(codec.encode(replace(UPDATE, tensors=sent), wire), ClientUpdate).tensors.values()
    assert used.tolist() == ([259, 259, 0] if wire == "float32" else [260, 260, 0])
    assert method.reject_reason({"used": used}, 259) is None
    assert "chosen" in method.reject_reason({"used": f32(262, 261, 0)}, 259)


def test_a_server_with_momentum_leaves_unchosen_slots_alone():
    method, pool = l2p(), {KEYS: KEY_ROWS, PROMPTS: np.zeros((3, 1, 4), np.float32)}
    state, fedopt = ServerState({"0": pool}), FedAvgM(RunConfig(fedopt={"name": "fedavgm"}))
    for used in [(1, 1, 0), (1, 0, 0)]:
        moved = {name: tensor + 1 for name, tensor in state.subspaces["0"].items()}
        method.aggregate(state, iter([Update(0, "0", 1, moved, {"used": f32(*used)})]), Aggregator(fedopt))
    assert state.subspaces["0"][PROMPTS][1:, 0, 0].tolist() == [1, 0]
