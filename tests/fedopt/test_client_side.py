"""FedProx and SCAFFOLD on a client with one number to train."""

import numpy as np
import pytest
import torch

from fcit import config as configuration
from fcit import registry
from fcit.config import RunConfig
from fcit.contracts.toy import Toy
from fcit.errors import ConfigError
from fcit.fedopt.scaffold import Scaffold
from fcit.methods.base import Session

P = "base_model.model.multi_modal_projector.linear_1.weight"


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def make(name: str, clients: int = 4, projector: str = "shared", **options):
    raw = {"fedopt": {"name": name, **options}, "federation": {"clients": clients, "clients_per_round": 1}}
    return registry.resolve("fedopt", name)(RunConfig(**raw, adapter={"projector": projector}))


def session(received=None, memory=None, subspace: str = "0", **values: float) -> Session:
    toy = Toy({n: torch.nn.Parameter(torch.tensor([v], dtype=torch.float32)) for n, v in values.items()})
    return Session(
        backbone=toy,
        adapters=toy,
        client=0,
        shard="task-0",
        stage=0,
        round=0,
        subspace=subspace,
        received=received or {},
        memory={} if memory is None else memory,
    )


def test_fedprox_adds_the_terms_gradient():
    fedopt, view = make("fedprox", mu=0.5), session(a=1.0)
    fedopt.prepare(view)
    a = view.adapters.trainable["a"]
    with torch.no_grad():
        a += 2.0
    a.grad = torch.tensor([10.0])
    fedopt.on_gradients(view)
    assert a.grad.item() == 11.0  # 10 + 0.5 (3 - 1)
    start = torch.tensor([1.0])
    term = torch.autograd.grad(0.25 * (a - start).square().sum(), a)[0]
    assert a.grad.item() == 10.0 + term.item()


def test_fedprox_leaves_frozen_tensors():
    fedopt, view = make("fedprox"), session(a=1.0, b=2.0)
    view.adapters.trainable["b"].requires_grad_(False)
    fedopt.prepare(view)
    view.adapters.trainable["a"].grad = torch.tensor([1.0])
    fedopt.on_gradients(view)
    assert view.adapters.trainable["b"].grad is None


def visit(fedopt, view: Session, steps: list[tuple[float, float]]) -> float:
    """Steps of (learning rate, what the optimiser adds); returns where the number ended."""
    fedopt.prepare(view)
    (parameter,) = view.adapters.trainable.values()
    for lr, move in steps:
        with torch.no_grad():
            parameter += move
        view.lr = lr
        fedopt.on_step(view)
    return float(parameter.item())


def test_scaffold_by_hand():
    fedopt, memory, server = make("scaffold", clients=4), {}, {}
    # First visit: c = c_k = 0. Two steps with lr 1/2 and 1/4 take theta from 1 to -0.5: no correction yet.
    view = session(fedopt.broadcast({"a": f32(1)}, server), memory, a=1.0)
    assert visit(fedopt, view, [(0.5, -1.0), (0.25, -0.5)]) == -0.5
    # c_k+ = 0 - 0 + (1 - (-0.5)) / 0.75 = 2.
    assert fedopt.finish(view)["a"].tolist() == [2.0]
    assert memory["subspace-0"]["a"].tolist() == [2.0]
    # The server heard from this client and one whose variate moved by 6: c = (2 + 6) / 4.
    fedopt.absorb({"a": np.array([2.0 + 6.0])}, server)
    assert fedopt.broadcast({"a": f32(0)}, server)["a"].tolist() == [2.0]
    fedopt.absorb({"a": np.array([8.0])}, server)  # c = 2 + 8 / 4 = 4
    # Second visit with c = 4, c_k = 2: each step moves by another -lr (4 - 2). 1 - 1 - 0.5 x 2 = -1.
    view = session(fedopt.broadcast({"a": f32(1)}, server), memory, a=1.0)
    assert visit(fedopt, view, [(0.5, -1.0)]) == -1.0
    # c_k+ = 2 - 4 + (1 - (-1)) / 0.5 = 2: it changed by 0.
    assert fedopt.finish(view)["a"].tolist() == [0.0]
    assert memory["subspace-0"]["a"].tolist() == [2.0]


def test_scaffold_after_an_epoch_of_one_step_at_rate_zero():
    """Nothing was learnt, of the drift neither: the variate stays, and nothing is divided by nothing."""
    fedopt, memory = make("scaffold"), {"subspace-0": {"a": f32(2)}}
    view = session({"a": f32(4)}, memory, a=1.0)
    assert visit(fedopt, view, [(0.0, 0.0)]) == 1.0
    assert fedopt.finish(view)["a"].tolist() == [0.0]
    assert memory["subspace-0"]["a"].tolist() == [2.0]
    assert visit(fedopt, session({"a": f32(4)}, {}, a=1.0), [(0.0, 0.0)]) == 1.0


def test_scaffold_variates_are_kept_per_subspace_and_once_for_a_shared_projector():
    for projector, homes in (
        ("shared", {"subspace-0", "subspace-1", "shared"}),
        ("per_subspace", {"subspace-0", "subspace-1"}),
    ):
        fedopt, memory = make("scaffold", projector=projector), {}
        for subspace in ("0", "1"):
            for name in ("a", P):
                view = session({name: f32(0)}, memory, subspace, **{name: 1.0})
                visit(fedopt, view, [(1.0, -1.0)])
                fedopt.finish(view)
        assert set(memory) == homes
        assert memory["subspace-0"]["a"].tolist() == memory["subspace-1"]["a"].tolist() == [1.0]


def test_scaffold_steps_by_the_mean_and_announces_what_is_trained():
    fedopt = make("scaffold")
    assert fedopt.step({"a": f32(1)}, {"a": f32(3)}, {})["a"].tolist() == [3.0]
    assert fedopt.extra_shapes({"a": (2, 3)}) == {"a": (2, 3)}


def test_scaffold_variates_average_to_the_servers():
    """c = sum_k c_k / N as long as all clients began at zero."""
    fedopt, server = make("scaffold", clients=3), {}
    memories = [{}, {}, {}]
    rng = np.random.default_rng(0)
    for _ in range(4):
        sums = np.zeros(1)
        for memory in memories[:2]:
            view = session(fedopt.broadcast({"a": f32(0)}, server), memory, a=0.0)
            visit(fedopt, view, [(0.1, float(rng.normal())) for _ in range(3)])
            sums += fedopt.finish(view)["a"]
        fedopt.absorb({"a": sums}, server)
    assert server["a"][0] == pytest.approx(sum(m["subspace-0"]["a"][0] for m in memories[:2]) / 3, rel=1e-5)


def test_a_variate_that_cannot_be_is_refused():
    scaffold = Scaffold(RunConfig())
    assert scaffold.reject_reason({"a": np.full(2, 30, np.float32)}) is None
    assert "moved by 1e+30" in scaffold.reject_reason({"a": np.array([0, -1e30], np.float32)})


@pytest.mark.parametrize("method", ["opcm", "dop", "clmoe"])
def test_variates_of_numbers_that_a_merge_replaces_are_refused(method):
    configuration.parse({"method": method, "fedopt": "fedadam"})
    with pytest.raises(ConfigError, match=f"method: '{method}' replaces the numbers after each stage; choose another"):
        configuration.parse({"method": method, "fedopt": "scaffold"})
