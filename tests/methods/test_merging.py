"""OPCM and DOP: merges at the server."""

import numpy as np
import pytest
import torch

from fcit.config import RunConfig
from fcit.methods.base import Factory, ServerState
from fcit.methods.dop import DOP
from fcit.methods.merging import Merge
from fcit.methods.opcm import OPCM, projected
from tests.helpers.toy import f32

A, B = "x.lora_A.weight", "x.lora_B.weight"
MAKE = Factory(0, {A: (2, 4), B: (3, 2)})


def make(kind, **options):
    return kind(RunConfig(method={"name": kind.name, **options}))


def stage(method, state: ServerState, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A stage that trains these factors; returns the product that the server has afterwards."""
    method.assign(state, [(0, "s")], {}, MAKE)
    state.subspaces["0"] = {A: a, B: b}
    method.end_stage(state, state.stage)
    state.stage += 1
    return state.subspaces["0"][B] @ state.subspaces["0"][A]


def core(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_the_main_block_and_the_diagonal_are_left_alone():
    """Singular values 4, 3, 1: shares 0.5, 0.875 and 1 of their sum. With 0.9 the first two directions are kept."""
    old = torch.diag(core(4, 3, 1).flatten())
    ones = torch.ones(3, 3, dtype=torch.float64)
    added = projected(Merge(old, ones, torch.zeros_like(ones)), 0.9)
    assert added.round(decimals=9).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert projected(Merge(old, ones, torch.zeros_like(ones)), 0.4).round(decimals=9).tolist() == [
        [0, 1, 1],
        [1, 0, 1],
        [1, 1, 0],
    ]


def test_what_lies_outside_of_the_merge_is_added_as_it_is():
    old, new = core([2, 0], [0, 0]), core([7, 0], [0, 5])
    assert projected(Merge(old, new, torch.zeros_like(old)), 0.5).round(decimals=9).tolist() == [[0, 0], [0, 5]]


def test_opcm_by_hand():
    """Stage 1: 2 E_11. Stage 2: 2 E_11 + 4 E_22, of which E_22 is new: M = (2 E_11 + 4 E_22) / lambda."""
    method, state = make(OPCM), ServerState()
    first = stage(method, state, f32([2, 0, 0, 0], [0, 0, 0, 1]), f32([1, 0], [0, 0], [0, 0]))
    assert first == pytest.approx(f32([2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]), abs=1e-6)
    second = stage(method, state, f32([2, 0, 0, 0], [0, 4, 0, 0]), f32([1, 0], [0, 1], [0, 0]))
    mean = (2 + np.sqrt(20)) / 2
    expected = f32([2, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0]) * mean / np.sqrt(20)
    assert second == pytest.approx(expected, abs=1e-5)
    assert np.linalg.norm(second) == pytest.approx(mean, rel=1e-5)
    assert state.memory["kept"] == pytest.approx([1, 1])


def test_the_increment_is_that_of_the_product():
    """From the merge on: 2 E_11 -> 2 E_11 + 4 E_22 is an increment of 4 E_22, whatever its factors are."""
    method, state = make(OPCM, start="merged"), ServerState()
    stage(method, state, f32([2, 0, 0, 0], [0, 0, 0, 1]), f32([1, 0], [0, 0], [0, 0]))
    stage(method, state, f32([4, 4, 0, 0], [4, -4, 0, 0]), f32([0.25, 0.25], [0.5, -0.5], [0, 0]))
    assert state.memory["norms"] == pytest.approx([2, 4])


def test_a_stage_that_learnt_nothing_leaves_the_merge_as_it_is():
    method, state = make(OPCM), ServerState()
    nothing = f32([1, 0, 0, 0], [0, 1, 0, 0]), np.zeros((3, 2), np.float32)
    assert not stage(method, state, *nothing).any()
    first = stage(method, state, f32([2, 0, 0, 0], [0, 0, 0, 1]), f32([1, 0], [0, 0], [0, 0]))
    assert first[0, 0] == pytest.approx(2)
    assert stage(method, state, *nothing) == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("start", ["backbone", "merged"])
def test_where_a_stage_starts(start):
    method, state = make(DOP, start=start), ServerState(turns={"0": 3})
    stage(method, state, f32([2, 0, 0, 0], [0, 4, 0, 0]), f32([1, 0], [0, 1], [0, 0]))
    assert state.turns == {}
    merged = state.subspaces["0"]
    method.assign(state, [(0, "s")], {}, MAKE)
    begun = state.subspaces["0"]
    assert merged[B].any()
    expected = MAKE("1") if start == "backbone" else merged
    assert all(np.array_equal(begun[name], expected[name]) for name in (A, B))
    method.assign(state, [(1, "s")], {}, MAKE)
    assert state.subspaces["0"] is begun


def test_dop_keeps_both_where_they_do_not_touch():
    """O = E_11 and N = 3 E_22: their sum has no loss at all, and the search begins at half of it."""
    method = make(DOP, lr=0.02)
    old, new = core([1, 0], [0, 0]), core([0, 0], [0, 3])
    assert method._between(old, new).numpy() == pytest.approx((old + new).numpy(), abs=0.05)
    assert method._between(new, new).numpy() == pytest.approx(new.numpy())
    assert not method._between(old * 0, new * 0).any()


def test_the_balance_of_dop():
    """O = E_11 and N = -E_11 contradict each other: the weighted mean of both is best, 0.8 - 0.2."""
    method = make(DOP, adaptive=False)
    old = core([1, 0], [0, 0])
    assert float(method._between(old, -old)[0, 0]) == pytest.approx(0.6, abs=0.01)


def test_a_truncated_merge_says_what_it_lost():
    method, state = make(OPCM), ServerState()
    stage(method, state, f32([2, 0, 0, 0], [0, 2, 0, 0]), f32([1, 0], [0, 1], [0, 0]))
    stage(method, state, f32([0, 0, 2, 0], [0, 0, 0, 0]), f32([0, 0], [0, 0], [1, 0]))
    assert state.memory["kept"] == pytest.approx([1, 8 / 12])
    (table,) = method.report(state)
    assert table["values"] == [[1.0, pytest.approx(0.6667)]]
