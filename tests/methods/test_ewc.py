import numpy as np
import pytest
import torch

from fcit.config import RunConfig
from fcit.data.collate import Encoded
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedavg import FedAvg
from fcit.methods.base import ServerState, Update, objective
from fcit.methods.ewc import EWC
from tests.helpers.toy import TinyModel, f32, session


def ewc(**options) -> EWC:
    return EWC(RunConfig(method={"name": "ewc", **options}, federation={"rounds": 2}))


def test_fisher_is_the_mean_of_squared_gradients_record_by_record():
    """Gradients of target * (a + 2 b): (1, 2) and (3, 6); squares (1, 4) and (9, 36); means (5, 20). Squaring the
    gradient of the batch mean would have given (4, 16)."""
    examples = [Encoded((0, t), ((1, 2),), ("x",)) for t in (1, 3)]
    extra = ewc().finish(session(examples=examples, last_round=True))
    assert {n: t.tolist() for n, t in extra.items()} == {"a": [5.0], "b": [20.0]}


def test_fisher_is_asked_for_in_the_last_round_only():
    assert ewc().finish(session(examples=[Encoded((0, 1), ((1, 2),), ("x",))])) == {}
    state = ServerState({"0": {"a": f32(1)}})
    assert ewc().extra_shapes(state) == {}
    state.round = 1
    assert ewc().extra_shapes(state) == {"a": (1,)}


def test_at_most_so_many_records():
    examples = [Encoded((0, t), ((1, 2),), ("x",)) for t in range(50)]
    model = TinyModel()
    ewc(samples=1).finish(session(model, examples=examples, last_round=True))
    assert len(model.shown[0]) == 1


def test_penalty():
    """(10 / 2) (2 (1 - 0)^2 + 0.5 (2 - 4)^2) = 20 on top of CE = 1 * (1 + 4) = 5."""
    method, model = ewc(strength=10), TinyModel()
    kept = {"fisher/a": f32(2), "fisher/b": f32(0.5), "anchor/a": f32(0), "anchor/b": f32(4)}
    view = session(model, constants={"ewc-0": kept})
    method.prepare(view)
    loss = objective(method, view, [Encoded((0, 1), ((1, 2),), ("x",))], torch.zeros(1))
    assert loss.item() == pytest.approx(25)
    loss.backward()
    assert model.trainable["a"].grad.item() == pytest.approx(1 + 10 * 2 * 1)


def test_no_penalty_in_the_first_stage():
    view = session()
    ewc().prepare(view)
    assert objective(ewc(), view, [Encoded((0, 1), ((1, 2),), ("x",))], torch.zeros(1)).item() == 5


def test_server_sums_fishers_by_records_and_anchors_at_the_end_of_a_stage():
    method = ewc(decay=0.5)
    state = ServerState({"0": {"a": f32(1)}}, round=1)
    assert method.constants(state) == {}
    for stage, (first, second) in enumerate([(4.0, 8.0), (10.0, 10.0)]):
        updates = [
            Update(0, "0", 1, {"a": f32(2)}, {"a": f32(first)}),
            Update(1, "0", 3, {"a": f32(2)}, {"a": f32(second)}),
        ]
        method.aggregate(state, iter(updates), Aggregator(FedAvg(RunConfig())))
        method.end_stage(state, stage)
    # stage 0: (1 x 4 + 3 x 8) / 4 = 7; stage 1: 0.5 x 7 + 10 = 13.5
    kept = method.constants(state)
    assert list(kept) == ["ewc-1"]
    assert kept["ewc-1"]["fisher/a"].tolist() == [13.5]
    assert kept["ewc-1"]["anchor/a"].tolist() == [2.0]
    assert kept["ewc-1"]["fisher/a"].dtype == np.float32


@pytest.mark.parametrize("value", [-1e-6, 3e38])
def test_a_fisher_that_cannot_be_is_refused(value):
    assert "Fisher" in ewc().reject_reason({"a": f32(1, value)}, 3)
    assert ewc().reject_reason({"a": f32(1, 2)}, 3) is None
