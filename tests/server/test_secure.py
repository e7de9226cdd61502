"""The sums of a round: real orders and replies between the collector and clients on disk, without a model."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from fcit.errors import RunError
from fcit.federation.messages import (
    OPENED,
    MaskedUpdate,
)
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.factors import Separate
from fcit.fedopt.fedadam import FedAdam
from fcit.fedopt.fedavg import FedAvg
from fcit.methods.base import Method, Update
from fcit.privacy.noise import Noise
from fcit.runs.folder import RunDir
from server.privacy import Privacy
from tests.helpers.secure import KINDS, OLD, SHARED, Round, records, trained
from tests.helpers.toy import by_factors


def mean(clients):
    weights = [records(c) for c in clients]
    return {n: np.average([trained(c)[n] for c in clients], axis=0, weights=weights) for n in {**SHARED, **OLD}}


def test_the_sum_is_the_weighted_mean_to_the_step(tmp_path):
    round_ = Round(tmp_path)
    assert round_.gather() == [0, 1, 2, 3]
    (update,) = round_.sums
    assert (update.client, update.subspace, update.examples) == (0, "0", sum(map(records, range(4))))
    for name, wanted in mean(range(4)).items():
        assert np.abs(update.tensors[name] - wanted).max() < 2**-31
    loss = np.average([0.5 + c for c in range(4)], weights=[records(c) for c in range(4)])
    head = round_.sums.head((2, "s2"))
    assert head.loss == pytest.approx(loss, abs=1e-6)
    assert (head.examples, head.steps, head.seconds) == (round(update.examples / 4), 0, 1.5)
    assert round_.sums.flags == {"summed": {"0": 4}}


def test_a_group_that_is_too_small_is_left_out_and_asked_nothing(tmp_path):
    round_ = Round(tmp_path)
    round_.gather()
    (event,) = round_.of("left-out")
    assert (event["subspace"], event["clients"]) == ("1", [4, 5])
    assert event["reason"] == "2 clients of the round train it, at least 3 are needed (privacy.min_group)"
    assert round_.clients[4].asked == []


def test_no_order_and_no_answer_holds_a_single_update(tmp_path):
    round_ = Round(tmp_path)
    seen = {}
    for client in round_.clients[:4]:
        client.change = lambda reply, k=client.number: seen.setdefault((k, type(reply).__name__), reply)
    round_.gather()
    names = {f.name for f in dataclasses.fields(seen[0, "MaskedUpdate"])}
    assert not names & {"examples", "steps", "loss"}
    # unmasked, a client's records are the first number
    firsts = [int(seen[k, "MaskedUpdate"].tensors["masked"][0]) for k in range(4)]
    assert [k for k in range(4) if firsts[k] == records(k)] == []


@pytest.mark.parametrize("kind", list(KINDS))
def test_who_drops_out_in_any_exchange_is_not_in_the_sum(tmp_path, kind):
    round_ = Round(tmp_path)
    round_.clients[1].refuses.add(kind)
    summed = [0, 1, 2, 3] if kind == "query.unmask" else [0, 2, 3]
    assert round_.gather() == summed
    (update,) = round_.sums
    for name, wanted in mean(summed).items():
        assert np.abs(update.tensors[name] - wanted).max() < 2**-31
    assert [event["client"] for event in round_.of("rejected")] == [1]


@pytest.mark.parametrize("kind", list(KINDS))
def test_without_enough_of_a_group_there_is_no_sum_and_the_round_ends_as_it_says(tmp_path, kind):
    round_ = Round(tmp_path)
    for client in round_.clients[:2]:
        client.refuses.add(kind)
    with pytest.raises(RunError, match=r"0 usable updates, 1 needed .* asks all of the round's clients, with new keys"):
        round_.gather()
    assert list(round_.sums) == []
    assert [event["subspace"] for event in round_.of("left-out")] == ["1", "0"]


def test_a_repeated_round_has_other_masks_and_the_same_sum_bit_for_bit(tmp_path):
    replies, sums = [], []
    for crashed in (True, False):
        folder = tmp_path / str(crashed)
        if crashed:  # before anything was opened
            first = Round(folder)
            first.clients[0].change = lambda reply: replies.append(reply) or reply
            for client in first.clients:
                client.refuses.add("query.unmask")
            with pytest.raises(RunError, match="0 usable updates"):
                first.gather()
        round_ = Round(folder)  # as after a crash: the same clients, the same folders
        round_.clients[0].change = lambda reply: replies.append(reply) or reply
        assert round_.gather() == [0, 1, 2, 3]
        sums.append(next(iter(round_.sums)).tensors)
    masked = [reply for reply in replies if isinstance(reply, MaskedUpdate)]
    assert len({reply.session for reply in masked}) == 3
    assert not np.array_equal(masked[0].tensors["masked"], masked[1].tensors["masked"])
    assert {n: t.tolist() for n, t in sums[0].items()} == {n: t.tolist() for n, t in sums[1].items()}


def test_whose_update_was_in_an_opened_sum_is_in_no_second_one_and_the_round_goes_on(tmp_path):
    """As after a crash between the opening and the checkpoint: the difference of two sums would be one's update."""
    Round(tmp_path, ["0"] * 4).gather()
    again = Round(tmp_path, ["0"] * 4)
    assert again.gather() == [] == list(again.sums)
    assert {OPENED in event["reason"] for event in again.of("rejected")} == {True}
    assert again.of("as-it-is") == [{"event": "as-it-is", "accepted": 0, "needed": 1, "spent": 4}]
    state = {n: t.copy() for n, t in again.state.subspaces["0"].items()}
    Method(again.config).aggregate(again.state, again.sums, Aggregator(FedAvg(again.config), summed=True))
    assert {n: t.tolist() for n, t in again.state.subspaces["0"].items()} == {n: t.tolist() for n, t in state.items()}


def test_a_client_that_failed_is_not_asked_alone_for_ever(tmp_path):
    settings = {"min_updates": 4, "on_too_few": "wait"}
    round_ = Round(tmp_path, ["0"] * 4 + ["1"] * 2, federation=settings)
    round_.clients[1].refuses.add("query.keys")
    assert round_.gather() == [0, 2, 3]
    assert round_.of("as-it-is") == [{"event": "as-it-is", "accepted": 3, "needed": 4, "spent": 0}]
    assert round_.clients[1].asked == ["query.keys"]


def test_a_round_that_can_never_have_a_sum_ends_with_what_to_change(tmp_path):
    round_ = Round(tmp_path, ["0", "0", "1", "1"], federation={"on_too_few": "wait"})
    with pytest.raises(RunError, match=r"the largest has 2 clients, at least 3 are needed .*clients_per_round"):
        round_.gather()


def test_shared_tensors_weigh_by_the_records_of_all_groups(tmp_path):
    round_ = Round(tmp_path, ["0", "0", "0", "1", "1", "1"])
    assert round_.gather() == list(range(6))
    aggregator = Aggregator(FedAdam(round_.config), summed=True)
    before = {n: t.copy() for n, t in SHARED.items()}
    plain = FedAdam(round_.config).step(before, {"p": mean(range(6))["p"].astype(np.float32)}, {})
    Method(round_.config).aggregate(round_.state, round_.sums, aggregator)
    assert np.abs(round_.state.shared["p"] - plain["p"]).max() < 1e-5
    assert aggregator.exactness == {}


def test_with_differential_privacy_clients_clip_and_the_server_adds_the_noise(tmp_path, monkeypatch):
    """Without the noise, which depends on the last bits of the sums, all is as where the server clips."""
    pytest.importorskip("dp_accounting")
    monkeypatch.setattr(Noise, "normal", lambda self, shape, *owner: np.zeros(shape))
    dp = {"client_dp": "on", "noise_multiplier": 1.0, "clip": 0.5, "clip_quantile": 0.3, "reproducible_noise": True}
    states, clips = [], []
    for summed in (True, False):
        round_ = Round(tmp_path, ["0", "0", "0", "1", "1", "1"], dp)
        private = Privacy(round_.config, SimpleNamespace(stage_count=1), by_factors(Separate()), RunDir(tmp_path), None)
        updates = round_.sums
        if summed:
            assert round_.gather() == list(range(6))
            assert 0 < round_.sums.unclipped == sum(np.sqrt(moved(c)) <= 0.5 for c in range(6)) < 6
        else:
            updates = [Update(c, round_.state.assigned[c, f"s{c}"], records(c), trained(c)) for c in range(6)]
        aggregator = Aggregator(FedAvg(round_.config), summed=summed)
        private.aggregate(Method(round_.config), round_.state, round_.slots, updates, aggregator)
        states.append(round_.state)
        clips.append(private.ledger.clip)
    assert clips[0] == clips[1] != 0.5
    for name in ("0", "1"):
        for tensor in OLD:
            assert np.abs(states[0].subspaces[name][tensor] - states[1].subspaces[name][tensor]).max() < 1e-6
    assert np.abs(states[0].shared["p"] - states[1].shared["p"]).max() < 1e-6
    assert np.abs(states[0].shared["p"] - SHARED["p"]).max() > 0.01


def moved(client):
    return sum(float(np.square(t - {**SHARED, **OLD}[n]).sum()) for n, t in trained(client).items())
