"""CL-MoE: merges by role, and the gate of the stage that a question resembles."""

from types import SimpleNamespace

import numpy as np
import pytest

from fcit import config as configuration
from fcit.config import RunConfig
from fcit.errors import ConfigError
from fcit.methods.base import Factory, ServerState, Stats
from fcit.methods.clmoe import CLMoE
from tests.helpers.toy import f32, session

A, B, GATE = (f"x.lora_{part}.weight" for part in ("A", "B", "gate"))
SHAPES = {A: (4, 1), B: (1, 4), GATE: (4, 1)}


def made(**options) -> CLMoE:
    return CLMoE(RunConfig(method={"name": "clmoe", **options}))


def stage(method: CLMoE, state: ServerState, used: list[float], value: float, total: list[float]) -> None:
    """A stage that trains every number to a value and uses these shares of the experts."""
    method.assign(
        state, [(0, str(state.stage))], {(0, str(state.stage)): Stats(np.array(total), 2)}, Factory(0, SHAPES)
    )
    state.subspaces["0"] = {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}
    state.memory["fresh"] = {GATE: f32(*used)}
    method.end_stage(state, state.stage)
    state.stage += 1


def test_experts_are_merged_by_their_role():
    """Experts 0 and 1 are used before, 1 and 2 now, 3 by neither: 0.1, 0.2, 0.3 and 0.4 of the old number stay."""
    method = made(keep_old=0.1, keep_both=0.2, keep_new=0.3, keep_other=0.4)
    state = ServerState()
    stage(method, state, [0.5, 0.4, 0.05, 0.05], 1.0, [1, 0])
    assert (state.subspaces["0"][A] == 1).all()  # nothing was there before
    stage(method, state, [0.1, 0.4, 0.5, 0.0], 2.0, [0, 1])
    expected = [1.9, 1.8, 1.7, 1.6]
    assert state.subspaces["0"][A].flatten().tolist() == pytest.approx(expected)
    assert state.subspaces["0"][B].flatten().tolist() == pytest.approx(expected)
    assert (state.subspaces["0"][GATE] == 2).all()


def test_a_question_gets_the_gate_of_the_stage_it_resembles():
    method, state = made(blend=0.25), ServerState()
    stage(method, state, [0.5, 0.5, 0, 0], 1.0, [1, 0])
    stage(method, state, [0, 0, 0.5, 0.5], 2.0, [0, 3])
    seen = []

    class Adapters:
        def gated_by(self, prior):
            seen.append(prior)
            raise StopIteration

    questions = SimpleNamespace(
        knowledge=method.knowledge(state), identity=f32([0.1, 1], [5, 0]), adapters=Adapters(), subspaces=[{}]
    )
    with pytest.raises(StopIteration):
        method.answer(questions, f32([1], [1]))
    assert seen[0].tolist() == [[[0, 0, 0.375, 0.375]], [[0.375, 0.375, 0, 0]]]


@pytest.mark.parametrize("used", [(2, -1, 0, 0), (0.5, 0, 0, 0)])
def test_shares_have_to_be_shares(used):
    assert "do not sum to one" in made().reject_reason({GATE: f32(*used)}, 3)
    assert made().reject_reason({GATE: f32(0.25, 0.25, 0.25, 0.25)}, 3) is None


def test_known_clients_count_once_in_every_stage_they_return_in():
    method, state = made(), ServerState()
    stage(method, state, [0.5, 0.5, 0, 0], 1.0, [1, 0])
    for _ in range(2):
        method.assign(state, [(0, "0")], {}, Factory(0, SHAPES))
    assert state.memory["sums"]["1"].tolist() == [1, 0]


def test_the_inert_release_counts_merges_and_blends_nothing():
    """The second stage's numbers stay as they were trained, and a question gets its token gates alone: MoELoRA."""
    method, state = made(release="inert"), ServerState(round=9)
    for value in (1.0, 2.0):
        method.assign(state, [(0, "0")], {(0, "0"): Stats(np.ones(2), 2)}, Factory(0, SHAPES))
        state.subspaces["0"] = {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}
        assert method.extra_shapes(state) == {}
        assert method.finish(session(last_round=True)) == {}
        method.end_stage(state, state.stage)
        state.stage += 1
    assert all((t == 2).all() for t in state.subspaces["0"].values())
    assert method.knowledge(state) == ({}, {})
    assert state.memory == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"fedopt": "scaffold"},
        {"federation": {"mode": "async"}},
        {"robust": "median"},
        {"privacy": {"client_dp": "on", "noise_multiplier": 1.0}},
        {"privacy": {"client_dp": "on", "noise_multiplier": 1.0, "sampling": "secret"}},
        {"privacy": {"secure_aggregation": "on"}},
    ],
)
def test_the_inert_release_goes_with_what_moelora_goes_with(settings):
    """No descriptions, no rounds of its own, no numbers replaced, nothing sent beside what is trained."""
    inert = made(release="inert")
    assert not (inert.needs_stats or inert.refactors or inert.by_round or inert.sends() or inert.sums())
    assert not inert.held(SimpleNamespace(), 2).server
    assert made().needs_stats and made().refactors and made().by_round and made().sends()
    configuration.parse({"method": "moelora", **settings})
    configuration.parse({"method": {"name": "clmoe", "release": "inert"}, **settings})
    with pytest.raises(ConfigError):
        configuration.parse({"method": "clmoe", **settings})
