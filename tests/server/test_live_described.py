"""Asynchronous rounds of a deployment in which sites describe their shards first."""

import pytest

from fcit.federation.messages import ClientUpdate, TrainOrder
from tests.server.live_sites import Killed, Run, Sites

pytestmark = pytest.mark.usefixtures("lowest_first")


class Described(Sites):
    """Sites describe their shard first, which takes them a second; one may fail at it."""

    refused: frozenset[int] = frozenset()

    def answer(self, kind, order):
        return (
            super().answer(kind, order)
            if isinstance(order, TrainOrder)
            else ClientUpdate(
                client=order.client,
                shard=order.shard,
                stage=0,
                round=0,
                subspace="",
                examples=1,
                steps=1,
                loss=0.0,
                seconds=0.0,
                tensors={},
            )
        )


def described(run: Run) -> Run:
    """Let a run's sites describe a shard before its first order."""

    def settle(slots, replies):
        run.assign([slot for slot in slots if slot.client not in run.sites.refused and replies])

    def questions(slots):
        return [(run.sites.node(s.client), run.collector.orders.describe(s, run.progress.stage)) for s in slots]

    assigner = run.collector.assigner
    assigner.is_new = lambda slot: slot.pair not in run.state.assigned
    assigner.questions, assigner.settle = questions, settle
    return run


def test_while_one_site_describes_its_shard_others_train(tmp_path):
    run = described(Run(tmp_path, Described()))
    assert run.round() == ([1, 2], [0, 0])
    assert run.sites.now == 4 + 4 + 3 + 3  # each first describes, as long as it trains here
    assert [values["order"] for kind, values in run.events if kind == "ordered"] == ["0-1", "0-0", "0-2"]


def test_a_site_whose_description_fails_is_left_out_of_this_update(tmp_path):
    sites = Described()
    sites.refused = frozenset({1})
    run = described(Run(tmp_path, sites))
    assert 1 not in run.round()[0]
    assert [client for _, client in sites.given].count(1) == 1


def test_after_a_kill_a_new_shard_is_described_again_and_its_update_used(tmp_path):
    run = described(Run(tmp_path, Described(end=9)))
    with pytest.raises(Killed):
        run.round()
    assert run.said("arrived") == [("arrived", 1)]
    again = described(Run(tmp_path, Described()))
    assert again.round()[0] == [1, 2]
    assert again.said("reused") == [("reused", [1])]
    assert [client for _, client in again.sites.given].count(1) == 1  # the question, and no order
