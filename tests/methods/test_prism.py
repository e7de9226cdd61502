"""PRISM: bases of gradients, steps that stay outside of them, and how layers share directions."""

import numpy as np
import pytest
import torch

import fcit.config
from fcit.config import RunConfig
from fcit.contracts.toy import PAIRS, MethodCase
from fcit.errors import ConfigError
from fcit.federation import codec
from fcit.federation.messages import CONSTANT, TrainOrder
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedavg import FedAvg
from fcit.methods.base import Update
from fcit.methods.prism import Prism, allocated, effective_rank, united
from fcit.models.layout import GATE, A, B
from tests.helpers.toy import f32, session


def made(**options) -> Prism:
    return Prism(RunConfig(method={"name": "prism", **options}))


def case_of(name: str = "prism", stage: int = 0, last: bool = True, **options) -> MethodCase:
    """A federation of the toy model, two experts of rank 1, in a stage's last or second round."""
    case = MethodCase(name, "frozen", {"experts": 2, **options})
    case.state.stage = stage
    case.state.round = case.method.config.federation.rounds - 1 if last else 1
    return case


def names(case: MethodCase) -> list[str]:
    return [next(n for n in case.shapes if part in n) for part in (A, B, GATE)]


def with_bases(case: MethodCase, basis: np.ndarray) -> MethodCase:
    """The same directions ``(b, 3)`` protected for both experts on both sides."""
    a, b, _ = names(case)
    rows = np.stack([basis, basis]).astype(np.float32)
    case.state.memory = {"bases": {a: rows, b: rows}, "budgets": {a: len(basis)}, "stage": 0}
    return case


def test_a_union_is_that_of_each_expert():
    rng = np.random.default_rng(0)
    old, fresh = rng.normal(size=(2, 2, 5)), rng.normal(size=(2, 3, 5))
    for expert in range(2):
        dense = old[expert].T @ old[expert] + fresh[expert].T @ fresh[expert]
        values, vectors = np.linalg.eigh(dense)
        main = vectors[:, -2:] * values[-2:] @ vectors[:, -2:].T
        rows = united(old, fresh, 2)[expert]
        assert rows.T @ rows == pytest.approx(main, abs=1e-5)
    assert united(None, fresh, 5).shape == (2, 5, 5)


def test_clients_are_weighted_by_their_records():
    case = case_of(budget=2)
    a, b, _ = names(case)
    rows = [np.stack([np.diag(v)] * 2).astype(np.float32) for v in ([4.0, 0, 0], [0, 2.0, 1])]
    sent = [case.update(pair, n, 0.0) for pair, n in zip(PAIRS, (1, 3), strict=False)]
    sent = [Update(u.client, u.subspace, u.examples, u.tensors, {a: r, b: r}) for u, r in zip(sent, rows, strict=True)]
    case.method.aggregate(case.state, iter(sent), Aggregator(FedAvg(case.method.config)))
    case.method.end_stage(case.state, 0)
    basis = case.state.memory["bases"][a][1]
    assert basis.T @ basis == pytest.approx(np.diag([4.0, 3.0, 0]), abs=1e-5)  # 16 / 4 and 3 * 4 / 4
    sent = case.method.constants(case.state)["directions-0"]
    assert {n: rows.shape for n, rows in sent.items()} == {a: (2, 2, 3), b: (2, 2, 3)}
    assert case.method.brief(case.state) == {"budgets": [2]}


@pytest.mark.parametrize("wire", ["float32", "bfloat16", "int8"])
def test_budgets_arrive_as_they_are(wire):
    """257 has nine significant bits, one more than bfloat16 has."""
    case = with_bases(case_of(stage=1), np.eye(1, 3))
    case.state.memory["budgets"] = {names(case)[0]: 257}
    view = case.session(PAIRS[0], {}, last_round=True)
    plain = {"config": "", "stage": 1, "round": 4, "client": 0, "shard": "s", "tasks": [0], "subspace": "0"}
    sent = {f"{CONSTANT}{group}/{n}": t for group, tensors in view.constants.items() for n, t in tensors.items()}
    read = codec.decode(codec.encode(TrainOrder(**plain, tensors=sent, brief=view.brief), wire), TrainOrder)
    view.brief, view.constants = read.brief, {"": {n.rpartition("/")[2]: t.copy() for n, t in read.tensors.items()}}
    case.method.prepare(view)
    assert {n: t.shape for n, t in case.method.finish(view).items()} == case.method.extra_shapes(case.state)


def test_steps_stay_outside_of_what_is_protected_and_so_does_their_mean():
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0][:2]
    case = with_bases(case_of(stage=1, last=False), basis)
    a, b, _ = names(case)
    case.state.subspaces["0"] |= {a: f32([1, 2, 3], [4, 5, 7]), b: f32([1, 2], [3, 4], [5, 7])}
    before = case.held(PAIRS[0])
    updates = [case.train(pair, {})[1] for pair in PAIRS]
    for update in updates:
        moved = {name: update.tensors[name] - before[name] for name in (a, b)}
        assert min(np.abs(moved[name]).max() for name in moved) > 1e-3
        assert np.abs(moved[a] @ basis.T).max() < 1e-6
        assert np.abs(basis @ moved[b]).max() < 1e-6
    case.method.aggregate(case.state, iter(updates), case.aggregator)
    after = case.held(PAIRS[0])
    assert np.abs((after[a] - before[a]) @ basis.T).max() < 1e-6
    assert np.abs(basis @ (after[b] - before[b])).max() < 1e-6


@pytest.mark.parametrize(("project", "kept"), [("update", True), ("gradient", False)])
def test_adam_leaves_the_complement_unless_its_step_is_projected(project, kept):
    case = with_bases(case_of(stage=1, last=False, project=project), np.ones((1, 3)) / 3**0.5)
    a = names(case)[0]
    view = case.session(PAIRS[0], {})
    trained = view.adapters.trainable
    case.method.prepare(view)
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    before = trained[a].detach().clone()
    for step in range(2):
        trained[a].grad = torch.tensor([[5.0, 1, 0.1], [1, 1 + step, 0]])
        case.method.on_gradients(view)
        optimizer.step()
        case.method.on_step(view)
    inside = (trained[a].detach() - before).sum(1).abs().max()
    assert (inside < 1e-6) == kept


def test_projection_grows_in_the_first_epoch_of_a_stage():
    method = made(warmup=1.0)  # batches of 16 records
    view = session(examples=[None] * 33, notes={"step": 0})
    assert method._strength(view) == pytest.approx(1 / 3)
    view.notes["step"] = 5
    assert method._strength(view) == 1
    view.round, view.notes["step"] = 1, 0
    assert method._strength(view) == 1
    assert made(warmup=0)._strength(session(examples=[None] * 33, notes={"step": 0})) == 1


def test_the_first_stage_is_moelora_with_all_experts():
    for last in (False, True):
        prism = case_of(last=last, top=2).train(PAIRS[0], {}, last_round=last)[1].tensors
        moelora = case_of("moelora", last=last).train(PAIRS[0], {}, last_round=last)[1].tensors
        assert all(np.array_equal(prism[name], tensor) for name, tensor in moelora.items())


def test_gates_are_trained_in_the_first_stage_only():
    case = case_of()
    _, _, gate = names(case)
    assert case.method.frozen(case.shapes, 0) == []
    assert case.method.frozen(case.shapes, 1) == [gate]


def test_covariances_are_sums_of_gradients_by_their_experts_share():
    """Two experts alike, p = 1/2: A's gradient is 2 A, two steps of 0.1, nothing is protected yet."""
    case = case_of(budget=3)
    a, _, _ = names(case)
    first = case.held(PAIRS[0])[a].astype(np.float64)
    rows = case.train(PAIRS[0], {}, last_round=True)[1].extra[a]
    for expert in range(2):
        gradients = [2 * first[expert], 2 * 0.8 * first[expert]]
        dense = 0.5 * sum(np.outer(g, g) for g in gradients)
        assert rows[expert].T @ rows[expert] == pytest.approx(dense, rel=1e-4, abs=1e-9)


def test_interference_is_the_share_of_gradients_within_the_bases():
    case = with_bases(case_of(stage=1, last=False, warmup=0), np.eye(1, 3))
    case.state.round = 0
    a = names(case)[0]
    case.state.subspaces["0"][a] = f32([3, 4, 0], [3, 0, 4])  # gradients are twice that; those of B = 0 are 0
    extra = case.train(PAIRS[0], {})[1].extra
    # the first step has 9 / 25 inside; the second, after 0.8 of what is outside, 9 / (9 + 0.64 * 16)
    assert extra == {"interference": pytest.approx([(9 + 9) / (25 + 9 + 0.64 * 16)])}


@pytest.mark.parametrize(
    ("gamma", "caps", "total", "expected"),
    [
        ([1, 1], [9, 9], 8, [4, 4]),
        ([2, 1], [99, 99], 12, [9, 3]),  # one each, and 10 as 4 to 1
        ([2, 1], [5, 99], 12, [5, 7]),  # what the first cannot hold
        ([2, 1, 1], [5, 5, 5], 30, [5, 5, 5]),
        ([0, 0, 0], [9, 9, 9], 11, [4, 4, 3]),  # largest remainder, then the first
        ([1, 0], [3, 9], 8, [3, 5]),
        ([5, 1], [1, 4], 4, [1, 3]),
    ],
)
def test_budgets_are_shared_like_water(gamma, caps, total, expected):
    shared = allocated(np.array(gamma, float), caps, total)
    assert shared == expected
    assert sum(shared) == min(total, sum(caps))


def test_layers_get_budgets_when_interference_is_known():
    case = with_bases(case_of(stage=1, budget=2, fill=1.0), np.eye(2, 3))
    a, b, _ = names(case)
    case.state.memory["interference"] = {"1": f32(0.5)}
    line = np.stack([np.diag(f32(4, 1e-3, 0))] * 2)  # squares 16 and 1e-6, below the tail
    case.state.memory["fresh"] = {a: line, b: line}
    case.method.end_stage(case.state, 1)
    assert case.state.memory["bases"][a].shape == (2, 2, 3)
    assert case.state.memory["budgets"] == {a: 1}
    assert case.method.extra_shapes(case.state)[b] == (2, 1, 3)


def test_an_effective_rank_pools_the_experts():
    rows = np.stack([np.diag(f32(4, 0, 0)), np.diag(f32(0, 1, 0))])
    assert effective_rank(rows, 1e-3) == 2
    assert effective_rank(rows, 0.1) == 1
    assert effective_rank(0 * rows, 1e-3) == 0


def test_steps_that_overflow_count_for_nothing():
    case = case_of()
    view = case.session(PAIRS[0], {}, last_round=True)
    case.method.prepare(view)
    for parameter in view.adapters.trainable.values():
        parameter.grad = torch.full_like(parameter, torch.inf)
    case.method.on_gradients(view)
    case.method.on_step(view)
    assert not any(tensor.any() for tensor in case.method.finish(view).values())


def test_both_factors_are_trained_in_the_rounds_that_measure():
    with pytest.raises(ConfigError, match=r"factors: 'alternate' .* 'prism'; choose factors: frozen_a, separate"):
        fcit.config.parse({"method": "prism", "factors": "alternate"})
    assert fcit.config.parse({"method": "prism", "factors": "frozen_a"}).factors == "frozen_a"


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="top: 5 is more than experts: 4; choose 1 to 4"):
        made(top=5)
    factor = f"x{A}weight"
    assert made().reject_reason({factor: f32([30, -1e4]), "interference": f32(0, 1)}, 3) is None
    assert "1e+30" in made().reject_reason({factor: f32([0, -1e30])}, 3)
    assert "outside of 0 to 1" in made().reject_reason({"interference": f32(-0.5)}, 3)
