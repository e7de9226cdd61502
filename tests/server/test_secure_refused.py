"""Secure aggregation: what clients refuse, and what the server does not take."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from clients.worker import secure
from clients.worker.memory import ClientMemory
from clients.worker.worker import Worker
from fcit import config as configuration
from fcit.errors import Refused, RunError
from fcit.federation.messages import (
    OPENED,
    KeysOrder,
    MaskedUpdate,
    OpenedShares,
    ProbeOrder,
)
from tests.helpers.secure import KINDS, Round


@pytest.fixture
def over(tmp_path):
    """A round that is over, with the orders that its first client had."""
    round_ = Round(tmp_path)
    round_.gather()
    return round_


@pytest.mark.parametrize("kind", list(KINDS))
def test_nothing_is_done_twice_in_a_session(over, kind):
    client = over.clients[0]
    with pytest.raises(Refused, match="session 0-0-"):
        KINDS[kind][1](client.worker(), client.last[kind])


def test_a_second_reveal_is_refused_before_it_is_looked_at(tmp_path):
    """Told first that client 3 lives, then that it dropped out, a client opens one of its two shares at most."""
    round_ = Round(tmp_path)
    twice = []

    def again(reply):
        if isinstance(reply, OpenedShares):
            client = round_.clients[0]
            lie = dataclasses.replace(client.last["query.unmask"], alive=[0, 1, 2])
            with pytest.raises(Refused, match="has not begun here, or is over"):
                secure.unmask(client.worker(), lie)
            twice.append(reply)
        return reply

    round_.clients[0].change = again
    assert round_.gather() == [0, 1, 2, 3]
    assert len(twice) == 1


def test_a_second_vector_with_the_same_mask_is_refused(tmp_path):
    round_ = Round(tmp_path)
    refused = []

    def again(reply):
        if isinstance(reply, MaskedUpdate):
            order = round_.clients[0].last["train.masked"]
            with pytest.raises(Refused, match="'masked' was done before"):
                secure.train(round_.clients[0].worker(), order)
            refused.append(True)
        return reply

    round_.clients[0].change = again
    round_.gather()
    assert refused == [True]


def test_secrets_are_gone_when_a_session_is_over_and_others_with_the_next_round(over, tmp_path):
    folder = tmp_path / "0" / "sessions"
    (session,) = folder.glob("0-0-*")
    assert sorted(file.name for file in session.iterdir()) == ["masked", "shared"]
    text = json.loads((session / "masked").read_text())
    assert text == {"members": [0, 1, 2, 3]}
    order = KeysOrder(config="", stage=0, round=1, client=0, session="0-1-x")
    secure.keys(over.clients[0].worker(), order)
    assert sorted(other.name for other in folder.iterdir()) == ["0-1-x", "opened"]
    assert (folder / "0-1-x" / "secret").stat().st_mode & 0o777 == 0o600


def test_who_dropped_out_keeps_no_secret(tmp_path):
    round_ = Round(tmp_path)
    worker, folder = round_.clients[0].worker(), tmp_path / "0" / "sessions"
    for session in ("0-0-x", "0-0-y"):
        secure.keys(worker, KeysOrder(config="", stage=0, round=0, client=0, session=session))
    assert [other.name for other in folder.iterdir()] == ["0-0-y"]
    secure.between(worker, KeysOrder(config="", stage=0, round=0, client=0, session="0-0-z"))
    assert [other.name for other in folder.iterdir()] == ["0-0-y"]
    secure.between(worker, ProbeOrder(config="", run="r"))
    assert list(folder.iterdir()) == []


def test_no_session_of_a_round_follows_an_opened_one(over):
    """Nor one by another name: a vector of this round is trained in sessions of this round only."""
    client = over.clients[0]
    with pytest.raises(Refused, match=f"stage 0, round 0 .*{OPENED}"):
        secure.keys(client.worker(), KeysOrder(config="", stage=0, round=0, client=0, session="0-0-new"))
    secure.keys(client.worker(), KeysOrder(config="", stage=0, round=1, client=0, session="0-1-new"))
    with pytest.raises(Refused, match="not one of stage 0, round 0, which is ordered"):
        secure.train(client.worker(), dataclasses.replace(client.last["train.masked"], session="0-1-new"))


def test_the_room_of_a_sum_tells_nothing_about_a_clients_records(tmp_path):
    """Records above what the order has room for are cut, and a session trains once whatever comes of it."""
    round_ = Round(tmp_path)
    round_.collector._declared = lambda order: 1
    assert round_.gather() == [0, 1, 2, 3]
    (update,) = round_.sums
    assert update.examples == 4


@pytest.mark.parametrize("session", ["../0-0-x", "0-1-x", "", "0-0-/x"])
def test_a_session_cannot_be_named_freely(over, session):
    with pytest.raises(Refused, match="session"):
        secure.keys(over.clients[0].worker(), KeysOrder(config="", stage=0, round=0, client=0, session=session))


def test_an_update_is_never_sent_unmasked_where_the_run_masks(over):
    plain = SimpleNamespace(config=over.config)
    with pytest.raises(Refused, match="to send an update unmasked"):
        Worker.train(plain, over._order(over.state, None, over.slots[0]))


def test_clipping_is_not_the_orders_choice(over):
    order = dataclasses.replace(over.clients[0].last["train.masked"], clip=1.0)
    with pytest.raises(Refused, match=r"clip: 1\.0 is ordered, and the run has privacy\.client_dp: off"):
        secure.train(over.clients[0].worker(), order)


def test_orders_of_secure_aggregation_in_a_run_without(over, tmp_path):
    worker = SimpleNamespace(config=configuration.parse({}), memory=ClientMemory(tmp_path))
    for kind in ("query.keys", "query.shares", "train.masked", "query.unmask"):
        with pytest.raises(Refused, match="secure_aggregation: off"):
            KINDS[kind][1](worker, over.clients[0].last[kind])


# --------------------------------------------------------------------------- what the server does not take


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("PublicKeys", {"tensors": {"sealing": np.zeros(32, np.uint8)}}, "'masking' is not bytes of shape"),
        (
            "PublicKeys",
            {"tensors": {"sealing": np.zeros(32, np.uint8), "masking": np.ones(32, np.uint8)}},
            "a public key cannot be used",
        ),
        (
            "SealedShares",
            {"tensors": {"sealed": np.zeros((4, 61), np.uint8), "commitment": np.zeros(32, np.uint8)}},
            "'sealed' is not bytes of shape (4, 60)",
        ),
        ("PublicKeys", {"client": 2}, "answers for client 2 in session"),
        ("PublicKeys", {"session": "0-0-y"}, "answers for client 1 in session '0-0-y'"),
        ("SealedShares", {"receivers": [0, 1, 2, 9]}, "for others than its neighbours"),
        ("SealedShares", {"receivers": []}, "'sealed' is not bytes of shape"),
        ("MaskedUpdate", {"subspace": "1"}, "answers another order: its subspace is '1'"),
        ("MaskedUpdate", {"seconds": -1.0}, "claims -1.0 seconds"),
        ("MaskedUpdate", {"tensors": {}}, "does not hold a masked vector"),
        ("MaskedUpdate", {"tensors": {"masked": np.zeros(3, np.uint64)}}, "a masked vector of uint64"),
        ("OpenedShares", {"owners": [7]}, "'shares' is not bytes of shape"),
        ("OpenedShares", {"owners": [0, 1, 2, 7]}, "no shares of its neighbours"),
    ],
)
def test_a_reply_that_does_not_fit_is_told_and_its_client_has_dropped_out(tmp_path, kind, change, reason):
    round_ = Round(tmp_path)
    round_.clients[1].change = lambda r: dataclasses.replace(r, **change) if type(r).__name__ == kind else r
    assert round_.gather() == ([0, 1, 2, 3] if kind == "OpenedShares" else [0, 2, 3])
    (event,) = round_.of("rejected")
    assert event["client"] == 1
    assert reason in event["reason"]


def test_of_what_a_client_cannot_open_only_its_neighbours_are_named(tmp_path):
    round_ = Round(tmp_path)
    opened = {"unreadable": [3, 3, 77]}
    round_.clients[1].change = lambda r: dataclasses.replace(r, **opened) if isinstance(r, OpenedShares) else r
    assert round_.gather() == [0, 1, 2, 3]
    assert [event["reason"] for event in round_.of("rejected")] == ["client 1 cannot open what it was sealed"]


def test_a_vector_of_nonsense_leaves_no_sum(tmp_path):
    """Within the ring, a single vector cannot be checked; what it does to the sum can."""
    round_ = Round(tmp_path)

    def nonsense(reply):
        if not isinstance(reply, MaskedUpdate):
            return reply
        masked = reply.tensors["masked"]
        return dataclasses.replace(
            reply, tensors={"masked": masked + np.arange(len(masked)).astype(masked.dtype) * 2**50}
        )

    round_.clients[1].change = nonsense
    with pytest.raises(RunError):
        round_.gather()
    assert "counts" in round_.of("left-out")[-1]["reason"]
