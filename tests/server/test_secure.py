"""The sums of a round: real orders and replies between the collector and clients on disk, without a model."""

import dataclasses
import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Error, Message

from clients.worker import secure
from clients.worker.memory import ClientMemory
from clients.worker.worker import Worker
from fcit import config as configuration
from fcit.errors import Refused, RunError
from fcit.federation import codec
from fcit.federation.engines import private
from fcit.federation.messages import (
    OPENED,
    ClientUpdate,
    KeysOrder,
    MaskedUpdate,
    MaskOrder,
    OpenedShares,
    ProbeOrder,
    ShareOrder,
    TrainOrder,
    UnmaskOrder,
)
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.factors import Separate
from fcit.fedopt.fedadam import FedAdam
from fcit.fedopt.fedavg import FedAvg
from fcit.methods.base import Method, ServerState, Update
from fcit.privacy.noise import Noise
from fcit.runs.folder import RunDir
from server.checkpoint import Progress
from server.participants import Slot
from server.privacy import Privacy
from server.secure import SecureCollector
from server.sums import Sums
from tests.helpers.grids import answer
from tests.helpers.toy import by_factors, f32

KINDS = {
    "query.keys": (KeysOrder, secure.keys),
    "query.shares": (ShareOrder, secure.share),
    "train.masked": (MaskOrder, secure.train),
    "query.unmask": (UnmaskOrder, secure.unmask),
}
A, B = "x.lora_A.weight", "x.lora_B.weight"
OLD = {A: f32(0.5, -0.25, 0), B: f32(0, 0, 1)}
SHARED = {"p": f32(1, 2)}
SUBSPACES = ["0", "0", "0", "0", "1", "1"]


def trained(client: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(client)
    return {n: t + rng.uniform(-0.3, 0.3, t.shape).astype(np.float32) for n, t in {**SHARED, **OLD}.items()}


def records(client: int) -> int:
    return 10 + 7 * client


class Client:
    """A client's orders on disk and by the code that sites run; what it does not do it answers with an error."""

    def __init__(self, number, config, folder):
        self.number, self.refuses = number, set[str]()
        self.asked: list[str] = []
        self.last: dict[str, object] = {}
        self.change = lambda reply: reply
        # Any process may serve a client, so each order is done by another one.
        self.worker = lambda: SimpleNamespace(config=config, memory=ClientMemory(folder), trained=self._trained)

    def _trained(self, order):
        return ClientUpdate(
            stage=order.stage,
            round=order.round,
            client=order.client,
            shard=order.shard,
            subspace=order.subspace,
            examples=records(order.client),
            steps=2,
            loss=0.5 + order.client,
            seconds=1.5,
            tensors={n: trained(order.client)[n] for n in order.trained},
        )

    def __call__(self, message):
        kind = message.metadata.message_type
        self.asked.append(kind)
        if kind in self.refuses:
            return [Message(Error(code=0, reason="gone"), reply_to=message)]
        form, work = KINDS[kind]
        self.last[kind] = order = codec.decode(message.content, form, writable=True)
        try:
            return [answer(message, self.change(work(self.worker(), order)))]
        except Refused as error:
            return [Message(Error(code=0, reason=f"refused {error}"), reply_to=message)]


class Wire:
    """Stands where the courier stands: every order and every reply is a message of Flower's."""

    def __init__(self, clients):
        private.claim()
        self.clients = clients

    def node(self, client):
        return client + 1

    def client(self, node):
        return node - 1

    def send(self, kind, orders, group):
        for number, (node, order) in enumerate(orders):
            message = Message(codec.encode(order), dst_node_id=node, message_type=kind, group_id=group)
            private.number(message, f"{kind}{number}")
            yield from self.clients[self.client(node)](message)


class Round:
    """One round of six clients; four train subspace 0, two subspace 1."""

    def __init__(self, folder, subspaces=SUBSPACES, dp=None, federation=None, **privacy):
        clients = len(subspaces)
        self.config = configuration.parse(
            {
                "method": "finetune",
                "federation": {
                    "clients": clients,
                    "clients_per_round": clients,
                    "on_too_few": "stop",
                    **(federation or {}),
                },
                "privacy": {"secure_aggregation": "on", "quantise_bits": 32, **privacy, **(dp or {})},
            }
        )
        self.events: list[dict] = []
        self.clients = [Client(k, self.config, folder) for k in range(clients)]
        self.slots = [Slot(k, f"s{k}", (0,)) for k in range(clients)]
        self.state = ServerState(
            subspaces={name: dict(OLD) for name in sorted(set(subspaces))},
            shared=dict(SHARED),
            assigned={slot.pair: subspaces[slot.client] for slot in self.slots},
        )
        progress = Progress(declared={f"{k}/s{k}": records(k) for k in range(clients)})
        self.sums, self.clip = Sums(), (dp or {}).get("clip")
        said = SimpleNamespace(
            round_event=lambda kind, **v: self.events.append({"event": kind, **v}),
            show=lambda kind, **v: self.events.append({"event": kind, **v}),
            timed=lambda part: nullcontext(),
        )
        self.collector = SecureCollector(
            config=self.config,
            stream=None,
            run=RunDir(folder),
            state=self.state,
            progress=progress,
            orders=SimpleNamespace(text="", run="r", train=self._order, method=Method(self.config)),
            courier=Wire(self.clients),
            handshake=SimpleNamespace(update=lambda: None),
            assigner=SimpleNamespace(assign=lambda slots: None),
            journal=said,
            stop=SimpleNamespace(pause=lambda seconds: None),
            sums=self.sums,
            clip=lambda: self.clip,
        )

    def _order(self, state, progress, slot, measure=False):
        name = state.assigned[slot.pair]
        return TrainOrder(
            config="",
            stage=0,
            round=0,
            client=slot.client,
            shard=slot.shard,
            tasks=[0],
            subspace=name,
            tensors={**state.shared, **state.subspaces[name]},
            run="r",
        )

    def gather(self):
        return sorted(client for client, _ in self.collector.gather(self.slots).accepted)

    def of(self, *kinds):
        return [event for event in self.events if event["event"] in kinds]


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


# --------------------------------------------------------------------------- what clients refuse


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
