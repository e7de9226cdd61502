"""Which clients train on for ``evaluation.personal``, and what their orders hold."""

from types import SimpleNamespace

import numpy as np
import pytest

from fcit import config as configuration
from fcit import registry
from fcit.methods.base import ServerState
from fcit.models.layout import A, B
from server.checkpoint import Progress
from server.orders import Orders
from server.participants import Slot
from server.personal import PersonalEvaluation

LAYER = "layers.0.q_proj"


def orders(assigned: str, monkeypatch, **raw) -> list:
    """Orders after stage 2 (from 0) to one client whose pair has the subspace ``assigned``."""
    config = configuration.parse({"evaluation": {"personal": True}, **raw})
    method = registry.resolve("method", config.method["name"])(config)
    made = Orders(config, SimpleNamespace(), method, registry.resolve("fedopt", "fedavg")(config))
    state, slot = ServerState(stage=2), Slot(7, "a", (0,))
    for name in ("0", "1", "2"):
        ones = np.ones((2, 4), np.float32)
        state.subspaces[name] = {f"{LAYER}.{A}.weight": ones, f"{LAYER}.{B}.weight": ones.T}
    state.assigned[slot.pair] = assigned
    evaluation = PersonalEvaluation(config, SimpleNamespace(), made, SimpleNamespace(), print)
    monkeypatch.setattr(evaluation, "_sampled", lambda *_: [slot])
    return list(evaluation._orders(state, Progress(stage=2)))


@pytest.mark.parametrize("method", ["olora", "sefe"])
def test_a_subspace_of_an_earlier_stage_is_not_trained_beside_its_frozen_copy(monkeypatch, method):
    [order] = orders("2", monkeypatch, method=method)
    assert (order.subspace, order.constants) == ("2", ["frozen-0", "frozen-1"])
    [order] = orders("0", monkeypatch, method=method)
    assert (order.subspace, order.constants) == ("", [])


def test_a_rule_with_fresh_factors_beside_the_subspace_tunes_nothing(monkeypatch):
    [order] = orders("0", monkeypatch, method="finetune")
    assert order.subspace == "0"
    [order] = orders("0", monkeypatch, method="finetune", factors="flora")
    assert (order.subspace, order.constants) == ("", [])


def test_what_was_merged_at_the_end_of_the_stage_is_trained_on(monkeypatch):
    for method in ("opcm", "clmoe"):
        [order] = orders("0", monkeypatch, method=method)
        assert order.subspace == "0", method


def test_prompts_without_their_network_are_not_tuned(monkeypatch):
    [order] = orders("2", monkeypatch, method="modalprompt")
    assert order.subspace == ""
