"""Who is connected, whose answers count, and what happens to all others; with a grid that tells any story."""

import threading
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from flwr.app import Error, Message

from fcit.errors import RunError, StopRequested
from fcit.federation import codec
from fcit.federation.engines import private
from fcit.federation.messages import Description, ProbeOrder
from server.courier import NOBODY, Courier
from server.stop import Stop
from tests.helpers.grids import FakeGrid, answer, courier, moved
from tests.helpers.waiting import LONG, wait


@pytest.fixture
def events() -> list[dict]:
    return []


def seated(grid: FakeGrid, events: list[dict], **federation) -> Courier:
    made = courier(grid, events, **federation)
    made.connect()
    made.seat({client: node.id for client, node in made.connected().items()})
    return made


def described(client: int) -> Description:
    return Description(client=client, shard="shard", count=3, tensors={"total": np.ones(2)})


def ask(made: Courier, *clients: int) -> list[Message]:
    orders = [(made.node(client), ProbeOrder(config="")) for client in clients]
    return list(made.send("query.describe", orders, "describe"))


@pytest.fixture
def at_once(monkeypatch) -> None:
    """A reply that is not whole at the deadline counts as withheld at once."""
    monkeypatch.setattr("server.inbox._YOUNG", 0.01)


# ---------------------------------------------------------------------- whose answers count


def test_an_answer_that_comes_twice_counts_once(events):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[7] = lambda m: [answer(m, described(0)), answer(m, described(0))]
    made = seated(grid, events)
    assert sorted(r.metadata.src_node_id for r in ask(made, 0, 1)) == [7, 8]
    assert [(e["event"], e["client"]) for e in events] == [("rejected", 0)]
    assert "twice" in events[0]["reason"]
    assert made.traffic["rejected"] == 1


def test_an_answer_to_an_order_of_an_earlier_round_does_not_count(events):
    grid, late = FakeGrid(n7="0", n8="1"), []
    grid.story[7] = lambda m: late.append(m) or []
    made = seated(grid, events)
    assert [r.metadata.src_node_id for r in ask(made, 0, 1)] == [8]  # client 0 lets the time pass
    # In the next round it answers the old order first, then the new one.
    grid.story[7] = lambda m: [answer(late[0], described(0)), answer(m, described(0))]
    replies = ask(made, 0)
    assert [r.metadata.reply_to_message_id for r in replies] == [f"m{grid._count}"]
    assert [(e["event"], e["client"]) for e in events] == [("rejected", 0)]
    assert "late" in events[0]["reason"]


def test_an_answer_from_another_node_does_not_count(events):
    grid = FakeGrid(n7="0", n8="1", n9="2")
    # Node 8 answers the order that went to node 7, before that one does.
    grid.story[7] = lambda m: [moved(answer(m, described(0)), src_node_id=8), answer(m, described(0))]
    made = seated(grid, events)
    assert [r.metadata.src_node_id for r in ask(made, 0)] == [7]
    assert [(e["event"], e["client"]) for e in events] == [("rejected", 1)]
    assert "client 0" in events[0]["reason"]


def test_equal_orders_cannot_be_told_by_their_hash(events):
    grid = FakeGrid(n7="0", n8="1")
    sent: list[Message] = []
    grid.story[7] = grid.story[8] = lambda m: sent.append(m) or [answer(m, described(0))]
    ask(seated(grid, events), 0, 1)
    nonces = {str(m.content["nonce"]["nonce"]) for m in sent}
    assert len(nonces) == 2
    assert all(len(nonce) == 32 for nonce in nonces)
    assert codec.decode(sent[0].content, ProbeOrder) == ProbeOrder(config="")


def test_what_flower_says_for_a_dead_node_is_that_nodes_error(events):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[7] = lambda m: [
        moved(Message(Error(code=5, reason="Node Unavailable"), reply_to=m), src_node_id=private.SERVER_NODE)
    ]
    (reply,) = ask(seated(grid, events), 0)
    assert reply.has_error()
    assert reply.metadata.src_node_id == 7
    assert reply.error.code == 5
    assert not events


def test_a_client_s_own_words_steer_no_terminal(events):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[7] = lambda m: [Message(Error(code=2, reason="\x1b[2Jgone\u202e\nline"), reply_to=m)]
    (reply,) = ask(seated(grid, events), 0)
    assert reply.error.reason == "?[2Jgone?\nline"
    assert reply.metadata.src_node_id == 7


def test_an_order_that_cannot_be_sent_is_an_error(events):
    class Refusing(FakeGrid):
        def push_messages(self, messages):
            return [
                key if message.metadata.dst_node_id == 8 else None
                for key, message in zip(super().push_messages(messages), messages, strict=True)
            ]

    replies = ask(seated(Refusing(n7="0", n8="1"), events), 0, 1)
    assert sorted((r.metadata.src_node_id, r.has_error()) for r in replies) == [(7, True), (8, False)]


def test_a_wish_to_stop_is_heard_while_waiting_for_answers(events):
    grid, stop = FakeGrid(n7="0", n8="1"), Stop()
    grid.story[7] = lambda m: []
    made = courier(grid, events, stop=stop, timeout=3600.0)
    made.connect()
    made.seat({0: 7})
    threading.Timer(0.2, lambda: setattr(stop, "request", StopRequested("enough"))).start()
    with pytest.raises(StopRequested):
        ask(made, 0)


def test_a_withheld_part_delays_nobody_beyond_the_deadline(events, at_once):
    """The others' replies are taken meanwhile; the late one is told and dropped, and its node can answer again."""
    grid, whole = FakeGrid(n7="0", n8="1", n9="2"), threading.Event()
    grid.withheld[7] = whole
    grid.story[7] = grid.story[8] = grid.story[9] = lambda m: [answer(m, described(0))]
    made = seated(grid, events, timeout=0.3)
    assert [r.metadata.src_node_id for r in ask(made, 0, 1)] == [8]
    assert events == []
    whole.set()

    def replies() -> list[int]:
        return [r.metadata.src_node_id for r in ask(made, 0, 2)]

    assert sorted(replies()) == [7, 9]
    assert [(e["event"], e["client"]) for e in events] == [("rejected", 0)]
    assert "after the deadline (federation.timeout)" in events[0]["reason"]
    assert made.traffic["rejected"] == 1


def test_a_reply_that_is_never_whole_holds_up_no_later_one(events, at_once):
    """Of a site whose SuperLink was killed while it uploaded: Flower waits for the rest for minutes."""

    class Cut(FakeGrid):
        rest = threading.Event()

        def pull_messages(self, message_ids):
            if list(message_ids) == ["m1"]:
                self.rest.wait(LONG)
            return super().pull_messages(message_ids)

    grid = Cut(n7="0")
    made = seated(grid, events, timeout=0.3, min_updates=1)
    assert ask(made, 0) == []
    assert [r.metadata.reply_to_message_id for r in ask(made, 0)] == ["m2"]
    assert events == []
    grid.rest.set()

    def told() -> bool:
        ask(made, 0)
        return bool(events)

    wait(told)
    assert "after the deadline" in events[0]["reason"]


def test_a_node_that_withholds_again_and_again_costs_two_threads(events, at_once):
    grid = FakeGrid(n7="0", n8="1")
    grid.withheld[7] = threading.Event()
    made = seated(grid, events, timeout=0.05)
    before = threading.active_count()
    for _ in range(3):
        ask(made, 0)
    assert threading.active_count() <= before + 2
    grid.withheld[7].set()
    wait(lambda: threading.active_count() < before + 1)


class Restarting(FakeGrid):
    """Node 7 is restarted when its replies are looked for; it has answered nothing before, or what the test says."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, **names: str) -> None:
        super().__init__(**names)
        self.story[7] = lambda m: []

    def pull_messages(self, message_ids):
        found = super().pull_messages(message_ids)
        (order,) = message_ids
        if self.sent[order].metadata.dst_node_id == 7 and not self.restarts.get(7):
            self.before()
            self.restarts[7] = 1
        return found


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Restarts are looked for all the time."""
    monkeypatch.setattr("server.courier._LOOK", 0.0)


RESTARTED = "it was restarted while it had an order"


def test_a_site_that_was_restarted_with_an_order_at_hand_is_not_waited_for(events, impatient):
    """The SuperLink hands out an order once: the new process knows nothing of it."""
    replies = {r.metadata.src_node_id: r for r in ask(seated(Restarting(n7="0", n8="1"), events, timeout=LONG), 0, 1)}
    assert not replies[8].has_error()
    assert (replies[7].error.code, replies[7].error.reason) == (5, RESTARTED)
    assert events == []


def test_a_reply_that_a_site_sent_before_it_was_restarted_counts(events, impatient):
    """It is at the SuperLink, and not looked for just now."""
    grid = Restarting(n7="0")
    grid.before = lambda: grid.answer_late(7, described(0))
    assert [r.has_error() for r in ask(seated(grid, events, timeout=LONG, min_updates=1), 0)] == [False]


def test_at_a_restart_at_most_the_oldest_order_is_lost(events, impatient):
    """A SuperNode takes one at a time: the SuperLink keeps the others for the new process."""
    grid = Restarting(n7="0")
    made = seated(grid, events, timeout=LONG, min_updates=1)
    replies = made.send("evaluate", [(7, ProbeOrder(config=str(i))) for i in range(3)], "0")
    lost = next(replies)
    assert (lost.metadata.reply_to_message_id, lost.error.reason) == ("m1", RESTARTED)
    for order in ("m3", "m2"):
        grid.mail[order] = [answer(grid.sent[order], described(0))]
    assert sorted((r.metadata.reply_to_message_id, r.has_error()) for r in replies) == [("m2", False), ("m3", False)]


def test_a_site_that_is_offline_for_a_while_is_waited_for(events, impatient):
    """Flower says itself what that means for its order."""
    grid = FakeGrid(n7="0", n8="1")

    def leaves(message: Message) -> list[Message]:
        del grid.names[7]
        return []

    grid.story[7] = leaves
    assert [r.metadata.src_node_id for r in ask(seated(grid, events, timeout=0.5), 0, 1)] == [8]


def test_an_order_with_a_deadline_is_not_kept_for_a_site_much_longer(events):
    grid = FakeGrid(n7="0", n8="1")
    made = seated(grid, events, timeout=30.0)
    ask(made, 0)
    made.post("query.probe", [(8, ProbeOrder(config=""))], "probe")
    made.post("evaluate", [(8, ProbeOrder(config=""))], "verify", timeout=30.0)
    assert [message.metadata.ttl for message in grid.sent.values()] == [120.0, 12 * 3600.0, 120.0]


@pytest.mark.parametrize("error", [AttributeError("no attribute 'metadata'"), ValueError("not JSON"), KeyError("x")])
def test_a_reply_that_flower_cannot_read_is_an_error_of_its_node(events, error):
    grid = FakeGrid(n7="0", n8="1")
    grid.unreadable[7] = error
    replies = {r.metadata.src_node_id: r for r in ask(seated(grid, events), 0, 1)}
    assert not replies[8].has_error()
    assert replies[7].error.reason == f"its reply cannot be read: {type(error).__name__}: {error}"


def test_a_fault_of_the_superlink_is_not_a_fault_of_the_node(events):
    failures = [httpx.HTTPError("500"), httpx.HTTPError("500")]

    class Flaky(FakeGrid):
        def pull_messages(self, message_ids):
            if failures:
                raise failures.pop()
            return super().pull_messages(message_ids)

    grid = Flaky(n7="0", n8="1")
    assert [r.has_error() for r in ask(seated(grid, events), 0)] == [False]
    assert failures == []


class Failing(FakeGrid):
    """Its SuperLink fails so often."""

    failures = 0

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise httpx.HTTPError("500 Internal Server Error")

    def get_nodes(self):
        self._fail()
        return super().get_nodes()

    def push_messages(self, messages):
        self._fail()
        return super().push_messages(messages)


def test_a_superlink_that_fails_for_a_while_does_not_end_the_run(events, monkeypatch):
    grid = Failing(n7="0", n8="1")
    made, pauses = seated(grid, events), []
    monkeypatch.setattr(made.stop, "pause", pauses.append)
    grid.failures = 3
    assert len(made.connected()) == 2
    grid.failures = 2
    assert [r.has_error() for r in ask(made, 0)] == [False]
    assert len(pauses) == 5


def test_a_superlink_that_fails_for_good_is_one_sentence(events, monkeypatch):
    grid = Failing(n7="0", n8="1")
    made = seated(grid, events)
    monkeypatch.setattr("server.courier._PATIENT", 0.0)
    grid.failures = 1
    with pytest.raises(RunError, match=r"SuperLink fails \(500 Internal Server Error\).*resume"):
        made.connected()


def test_a_run_that_flower_ended_ends_here(events):
    class Ended(BaseException):
        """As Flower's own."""

    grid = FakeGrid(n7="0", n8="1")
    grid.unreadable[7] = Ended()
    with pytest.raises(Ended):
        ask(seated(grid, events, timeout=3600.0), 0)


@pytest.mark.parametrize("reason", [None, ""])
def test_an_error_without_a_reason_has_its_code(events, reason):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[7] = lambda m: [Message(Error(code=8, reason=reason), reply_to=m)]
    (reply,) = ask(seated(grid, events), 0)
    assert reply.error.reason == "error 8, no reason given"


def test_a_reply_with_neither_content_nor_error_is_an_error(events):
    grid = FakeGrid(n7="0", n8="1")

    def empty(m: Message) -> list[Message]:
        reply = answer(m, described(0))
        reply.__dict__["_content"] = None
        return [reply]

    grid.story[7] = empty
    (reply,) = ask(seated(grid, events), 0)
    assert reply.error.reason == "its reply is empty"


# ---------------------------------------------------------------------- who is there


def test_a_site_that_is_late_is_waited_for(events):
    grid = FakeGrid()
    threading.Timer(0.3, lambda: grid.names.update({7: "1", 8: "2"})).start()
    made = courier(grid, events, timeout=3600.0)
    made.connect()
    assert {client: node.id for client, node in made.connected().items()} == {1: 7, 2: 8}


def test_a_client_of_two_nodes_is_left_out_until_one_is_removed(events):
    grid = FakeGrid(n7="0", n8="1", n9="1")
    made = courier(grid, events)
    assert list(made.connected()) == [0]
    assert list(made.connected()) == [0]
    assert [(e["event"], e["client"]) for e in events] == [("refused", 1)]
    assert "nodes 8 and 9 are registered" in events[0]["reason"]
    del grid.names[8]
    assert {client: node.id for client, node in made.connected().items()} == {0: 7, 1: 9}


def test_a_client_that_is_not_there_has_no_node(events):
    made = seated(FakeGrid(n7="0", n8="2"), events)
    assert (made.node(0), made.node(1), made.node(2), made.node(10**9)) == (7, NOBODY, 8, NOBODY)
    assert made.nodes == [7, 8]
    assert made.client(8) == 2
    assert made.client(99) is None
