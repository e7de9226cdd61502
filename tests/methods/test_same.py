"""SAME: maps of steps, experts at rest, and what clients measure for them."""

import numpy as np
import pytest
import torch

from fcit.config import Adapter, RunConfig
from fcit.config import Backbone as Config
from fcit.contracts.toy import PAIRS, MethodCase
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedavg import FedAvg
from fcit.methods.base import Factory, ServerState, Update
from fcit.methods.same import SAME, awake, damped, routed, united
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import GATE, A, B, Layout
from tests.helpers.toy import f32, session

NAMES = [f"x{part}weight" for part in (A, B, GATE)]


def made(**options) -> SAME:
    return SAME(RunConfig(method={"name": "same", **options}))


def diagonal(*sigma: float) -> torch.Tensor:
    return torch.diag(torch.tensor(sigma)).sqrt()


def test_the_damped_inverse_of_all_directions_is_the_dense_one():
    spectrum = torch.from_numpy(united([(1, np.random.default_rng(0).normal(size=(9, 4)))], 4))
    dense = torch.linalg.inv(spectrum.T @ spectrum + 0.9 * torch.eye(4))
    directions, scales = damped(spectrum, 1.0, 0.9)
    torch.testing.assert_close(directions.T @ torch.diag(scales) @ directions, 0.9 * dense)


def test_main_directions_are_damped_by_their_eigenvalue():
    """Squares 16, 4 and 1: two hold 20 / 21 of them."""
    directions, scales = damped(diagonal(4, 2, 1), 0.9, 0.5)
    assert directions.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert scales.tolist() == pytest.approx([0.5 / 4.5, 0.5 / 2.5])
    assert len(damped(diagonal(4, 2, 1), 0.7, 0.5)[1]) == 1
    assert len(damped(diagonal(4, 2, 0), 1.0, 0.5)[1]) == 2  # a direction without inputs is none


def test_gates_move_less_the_more_of_the_inputs_a_direction_holds():
    """Means of two eigenvalues: 4 and 3; the first direction outside has 1."""
    directions, scales = routed(diagonal(4, 2, 1), 0.9, window=2, least=0.0)
    assert len(directions) == 2
    assert scales.tolist() == pytest.approx([1 / 4, 1 / 3])
    assert routed(diagonal(4, 2, 1), 0.9, window=1, least=0.0)[1].tolist() == pytest.approx([1 / 4, 1 / 2])
    assert routed(diagonal(4, 2, 1), 0.9, window=2, least=0.3)[1].tolist() == pytest.approx([0.3, 1 / 3])
    assert routed(diagonal(4, 2, 0), 1.0, window=1, least=0.0)[1].tolist() == pytest.approx([1 / 2, 1])  # none outside
    assert len(routed(torch.zeros(2, 3), 0.9, 3, 0.0)[1]) == 0


def test_experts_of_a_low_score_rest():
    """Use 0, 1/2 and 1 of what is between, importance 1, 1/4 and 0: scores -1, 0.25 and 1."""
    use, importance = f32(0.2, 0.3, 0.4), f32(5, 2, 1)
    assert awake(use, importance, 0.1).tolist() == [0, 1, 1]
    assert awake(use, importance, 0.3).tolist() == [0, 0, 1]
    assert awake(use, importance, -1.0).tolist() == [1, 1, 1]
    assert awake(f32(0.5, 0.5), f32(1, 1), 0.1).tolist() == [1, 0]  # one is always awake


def test_spectra_and_importance_are_weighted_by_records():
    """C_1 = diag(4, 1) of 4 records; then two clients of 1 and 3 with diag(8, 0) and diag(0, 4): C_2 = diag(3, 2)."""
    method, state = made(rank=2, experts=2), ServerState()
    method.assign(state, [(0, "s")], {}, Factory(0, dict(zip(NAMES, [(2, 2), (3, 2), (2, 2)], strict=True))))
    state.round = method.config.federation.rounds - 1
    a, _, gate = NAMES

    def stage(*parts: tuple[int, np.ndarray, np.ndarray]) -> None:
        updates = [
            Update(k, "0", n, dict(state.subspaces["0"]), {a: np.sqrt(sigma), gate: energy})
            for k, (n, sigma, energy) in enumerate(parts)
        ]
        method.aggregate(state, iter(updates), Aggregator(FedAvg(method.config)))
        method.end_stage(state, state.stage)
        state.stage += 1

    assert method.constants(state) == {}
    stage((4, np.diag(f32(4, 1)), f32(1, 3)))
    assert set(method.constants(state)) == {"spectra-0"}
    stage((1, np.diag(f32(8, 0)), f32(9, 3)), (3, np.diag(f32(0, 4)), f32(1, 3)))
    rows = method.constants(state)["spectra-1"][a]
    assert rows.T @ rows == pytest.approx(np.diag([3.0, 2.0]), abs=1e-6)
    assert state.memory["importance"][gate].tolist() == pytest.approx([2, 3])
    assert state.memory["records"] == 8
    method.absorb(state, iter([Update(0, "0", 1, {}, {gate: f32(0.9, 0.1)})]))
    assert method.broadcast(state, (0, "s"))[gate].tolist() == [1, 0]


def trained(name: str, **options) -> dict[str, np.ndarray]:
    case = MethodCase(name, "frozen", options)
    case.state.round = case.method.config.federation.rounds - 1
    return case.train(PAIRS[0], {}, last_round=True)[1].tensors


def test_the_first_stage_is_moelora():
    same, moelora = trained("same"), trained("moelora")
    assert all(np.array_equal(same[name], tensor) for name, tensor in moelora.items())


def test_steps_are_mapped_and_resting_experts_keep_their_bits():
    """Inputs along the first direction only: A's steps are a tenth there, the gate's a quarter of what it was."""
    case = MethodCase("same", "frozen", {"experts": 2, "damping": 1.0, "threshold": -1.0})
    a, b, gate = (next(n for n in case.shapes if part in n) for part in (A, B, GATE))
    case.state.stage = 1
    case.state.memory = {"spectra": {a: np.diag(np.sqrt(f32(9, 1e-3, 0)))}, "stage": 0}
    before = case.held(PAIRS[0])
    case.state.memory["awake"] = {gate: f32(1, 0)}
    after = case.train(PAIRS[0], {})[1].tensors
    plain = MethodCase("moelora", "frozen", {"experts": 2}).train(PAIRS[0], {})[1].tensors
    assert np.array_equal(after[a][1], before[a][1])
    assert np.array_equal(after[b][:, 1], before[b][:, 1])
    assert after[a][0, 1:] == pytest.approx(plain[a][0, 1:])
    # two steps of 0.2 of what there is, each a tenth: (1 - 0.02)^2
    assert after[a][0, 0] == pytest.approx(before[a][0, 0] * 0.98**2)
    assert after[gate][:, 0] == pytest.approx(before[gate][:, 0], rel=1e-3)  # 1e-3 / 9 of a step
    assert after[gate][:, 1:] == pytest.approx(plain[gate][:, 1:])


def test_clients_measure_what_the_layers_see(tmp_path):
    """One layer of the built-in model against the dense covariance of its inputs."""
    backbone = Backbone(Config())
    adapters = Adapters(backbone, Adapter(rank=4, alpha=8, projector="frozen"), Layout(experts=2))
    factory = Factory(0, {n: tuple(p.shape) for n, p in adapters.trainable.items()})
    adapters.load(factory("0"))
    examples = [backbone.encode("How many?", "3", None), backbone.encode("Name it.", "red cup", None)]
    view = session(adapters, examples=examples, seed=5, image_root=tmp_path, last_round=True)
    view.backbone = backbone
    seen: list[torch.Tensor] = []
    name = next(n for n in adapters.trainable if "gate_proj" in n and A in n)
    method = made(experts=2)
    with adapters.training():
        adapters.show_inputs(lambda shown, x: seen.append(x[0]) if shown == name else None)
        measured, use = method.finish(view), method.measure(view)
    inputs = torch.cat(seen[:2])
    weights = torch.softmax(inputs @ adapters.trainable[name.replace(A, GATE)].detach().T, -1)
    gate = name.replace(A, GATE)
    rows = torch.from_numpy(measured[name])
    torch.testing.assert_close(rows.T @ rows, inputs.T @ inputs / len(inputs), rtol=1e-3, atol=1e-4)
    energy = (weights * inputs.square().sum(-1, keepdim=True)).mean(0)
    torch.testing.assert_close(torch.from_numpy(measured[gate]), energy)
    torch.testing.assert_close(torch.from_numpy(use[gate]), weights.mean(0))
    assert rows.shape == (64, inputs.shape[1])


def test_a_stage_is_measured_if_experts_can_rest():
    assert [made().measuring(stage) for stage in (0, 1)] == [False, True]
    assert not made(threshold=-1).measuring(1)


def test_what_cannot_be_is_rejected():
    a, _, gate = NAMES
    assert made().reject_reason({a: f32([30, -1e4]), gate: f32(0, 1)}, 3) is None
    assert "1e+30" in made().reject_reason({a: f32([0, -1e30])}, 3)
    assert "below 0" in made().reject_reason({gate: f32(-1, 2)}, 3)
