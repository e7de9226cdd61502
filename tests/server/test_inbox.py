"""How replies are fetched: a few at a time, once more before a deadline, and whose fault it is if one is lost."""

import threading
import time

import httpx
import pytest
from flwr.app import Error, Message

from fcit.federation.engines import private
from fcit.federation.messages import Description, ProbeOrder
from server.courier import Courier
from server.inbox import Inbox
from tests.helpers.grids import FakeGrid, courier, moved
from tests.helpers.waiting import LONG, wait

MANY = 30


class Counting(FakeGrid):
    """Knows how many replies have been fetched and are not dealt with."""

    def __init__(self, **names: str) -> None:
        super().__init__(**names)
        self.lock, self.fetched, self.dealt_with, self.most = threading.Lock(), 0, 0, 0

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        with self.lock:
            self.fetched += len(replies)
            self.most = max(self.most, self.fetched - self.dealt_with)
        return replies


def seated(grid: FakeGrid, events: list[dict], **federation) -> Courier:
    made = courier(grid, events, clients=MANY, **{"timeout": 3600.0, "min_updates": 1, **federation})
    made.connect()
    made.seat({client: node.id for client, node in made.connected().items()})
    return made


def many() -> dict[str, str]:
    return {f"n{number + 7}": str(number) for number in range(MANY)}


def orders(made: Courier) -> list[tuple[int, ProbeOrder]]:
    return [(node, ProbeOrder(config="")) for node in made.nodes]


def test_no_more_than_a_few_replies_wait_in_memory():
    grid = Counting(**many())
    made = seated(grid, [])
    came = 0
    for _ in made.send("train", orders(made), "0"):
        came += 1
        time.sleep(0.002)  # it is written to the disk
        with grid.lock:
            grid.dealt_with += 1
    assert came == MANY
    assert grid.most <= 8


def test_replies_that_nobody_waits_for_yet_hold_up_no_others():
    grid = Counting(**many())
    made = seated(grid, [])
    posted = made.post("query.probe", orders(made), "probe")
    assert len(list(made.send("train", orders(made), "0"))) == MANY
    assert len(list(made.replies(posted, 60.0))) == MANY


def test_want_of_room_for_one_reply_is_no_reason_to_look_for_another_without_a_pause(monkeypatch):
    grid = FakeGrid(**many())
    made = seated(grid, [])
    others = made.post("query.probe", orders(made)[1:9], "probe")  # these fill the room of what nobody waits for
    wait(lambda: not grid.mail, pause=0.01)
    monkeypatch.setattr("server.inbox._NAP", LONG)
    monkeypatch.setattr("server.inbox._LONGEST_NAP", LONG)
    looks: list[str] = []
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: looks.extend(ids) or pull(ids)
    grid.story[7] = lambda m: []
    inbox = made._inbox
    inbox.take({"m9"}, 0.0)
    with inbox._news:  # its thread sees both at once
        made.post("evaluate", [(7, ProbeOrder(config="wanted")), (7, ProbeOrder(config="not yet"))], "0")
    for _ in range(20):
        inbox.take({"m9"}, 0.01)  # tells of news each time
    assert looks == ["m9"]
    made.post("evaluate", [(7, ProbeOrder(config="new"))], "0")
    inbox.take({"m9", "m11"}, 0.0)
    wait(lambda: "m11" in looks, pause=0.01)  # there is room for this one
    made.forget(others)
    wait(lambda: "m10" in looks, pause=0.01)


def test_what_is_there_at_the_deadline_counts_however_much_it_is():
    made = seated(FakeGrid(**many()), [])
    posted = made.post("query.probe", orders(made) + orders(made)[:1] * 9, "probe")
    ids = [message.metadata.message_id for message in posted]
    inbox, oldest, others = made._inbox, set(ids[:MANY]), {ids[0], *ids[MANY:]}
    wait(lambda: inbox.in_time(oldest) == oldest, pause=0.01)  # fetched, or not for want of room
    wait(lambda: not inbox._due.isdisjoint(others), pause=0.01)  # of the node that has been given more
    assert len(list(made.replies(posted, 0.0))) == MANY + 9


def test_a_reply_that_begins_to_come_at_the_deadline_counts(monkeypatch):
    monkeypatch.setattr("server.inbox._YOUNG", LONG)
    grid, begun = FakeGrid(n7="0"), threading.Event()
    grid.withheld[7] = threading.Event()
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: begun.set() or pull(ids)
    made = seated(grid, [])
    posted = made.post("query.probe", orders(made), "probe")
    assert begun.wait(LONG)
    threading.Timer(0.1, grid.withheld[7].set).start()
    assert len(list(made.replies(posted, 0.0))) == 1


def test_sites_that_upload_for_long_hold_up_no_others(monkeypatch):
    monkeypatch.setattr("server.inbox._SLOW", 0.02)
    grid, whole = FakeGrid(**many()), threading.Event()
    slow = set(list(grid.names)[:20])
    grid.withheld = dict.fromkeys(slow, whole)
    made = seated(grid, [])
    replies = made.send("train", orders(made), "0")
    first = {next(replies).metadata.src_node_id for _ in range(MANY - len(slow))}
    assert first == set(grid.names) - slow
    whole.set()
    assert {reply.metadata.src_node_id for reply in replies} == slow


def lost(message: Message) -> Message:
    """What Flower says for a message that it does not have any more."""
    reply = Message(Error(code=3, reason="Message Unavailable"), reply_to=message)
    return moved(reply, src_node_id=private.SERVER_NODE)


@pytest.mark.parametrize("fails", [True, False])
def test_a_reply_that_the_superlink_loses_is_its_fault(fails):
    failures = [httpx.HTTPError("500 Internal Server Error")] if fails else []

    class Losing(FakeGrid):
        def pull_messages(self, message_ids):
            if failures:
                raise failures.pop()
            return super().pull_messages(message_ids)

    grid = Losing(n7="0")
    grid.story[7] = lambda m: [lost(m)]
    (reply,) = seated(grid, []).send("train", [(7, ProbeOrder(config=""))], "0")
    said = "the SuperLink has lost its reply: 500 Internal Server Error"
    assert reply.error.reason == (said if fails else "Message Unavailable")


def test_a_failure_before_a_look_that_found_nothing_has_cost_no_reply():
    """What a site did not upload afterwards is not the SuperLink's fault."""
    story = [httpx.HTTPError("500 Internal Server Error"), None]

    class Recovering(FakeGrid):
        def pull_messages(self, message_ids):
            if not story:
                return super().pull_messages(message_ids)
            if (error := story.pop(0)) is not None:
                raise error
            return []

    grid = Recovering(n7="0")
    grid.story[7] = lambda m: [lost(m)]
    (reply,) = seated(grid, []).send("train", [(7, ProbeOrder(config=""))], "0")
    assert reply.error.reason == "Message Unavailable"


def test_an_order_is_missing_if_a_look_begun_since_has_found_nothing_and_no_older_one_is_open():
    grid = FakeGrid(n7="0")
    grid.story[7] = lambda m: []
    made = seated(grid, [])
    before = time.monotonic()
    first, _ = made.post("query.probe", [(7, ProbeOrder(config="a")), (7, ProbeOrder(config="b"))], "probe")
    inbox = made._inbox
    wait(lambda: inbox.is_missing(7, "m1", before), pause=0.01)
    wait(lambda: "m2" in inbox._empty, pause=0.01)
    assert not inbox.is_missing(7, "m2", before)
    assert not inbox.is_missing(7, "m1", time.monotonic() + LONG)
    made.forget([first])
    wait(lambda: inbox.is_missing(7, "m2", before), pause=0.01)
    grid.mail["m2"] = [moved(Message(Error(code=2, reason="late"), reply_to=grid.sent["m2"]), src_node_id=7)]
    wait(lambda: not grid.mail, pause=0.01)
    wait(lambda: not inbox.is_missing(7, "m2", before), pause=0.01)


def test_every_node_is_looked_at_shortly_before_the_deadline(monkeypatch):
    """However long the pauses between two looks have become."""
    monkeypatch.setattr("server.inbox._NAP", 60.0)
    monkeypatch.setattr("server.inbox._LONGEST_NAP", 60.0)
    monkeypatch.setattr("server.inbox._LAST", 0.3)
    grid = FakeGrid(n7="0")
    grid.story[7] = lambda m: []
    made = seated(grid, [], timeout=0.6)
    looked = threading.Event()
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: looked.set() or pull(ids)

    def late() -> None:
        looked.wait()
        grid.answer_late(7, Description(client=0, shard="shard", count=3, tensors={}))

    thread = threading.Thread(target=late)
    thread.start()
    replies = list(made.send("train", [(7, ProbeOrder(config=""))], "0"))
    thread.join()
    assert len(replies) == 1


class Claimed(FakeGrid):
    """Hands every reply over once, as a SuperLink does; of two orders as late as the test says."""

    def __init__(self, **names: str) -> None:
        super().__init__(**names)
        self.begun = {order: threading.Event() for order in ("m1", "m2")}
        self.whole = {order: threading.Event() for order in ("m1", "m2")}
        self.by: dict[str, threading.Thread] = {}

    def pull_messages(self, message_ids):
        (order,) = message_ids
        if order in self.by:
            return [lost(self.sent[order])]
        if order in self.whole:
            self.by[order] = threading.current_thread()
            self.begun[order].set()
            self.whole[order].wait(LONG)
        return super().pull_messages(message_ids)


def test_a_reply_that_a_second_thread_pulls_is_left_to_it():
    grid = Claimed(n7="0")
    made = seated(grid, [])
    first, second = made.post("query.probe", [(7, ProbeOrder(config="a")), (7, ProbeOrder(config="b"))], "probe")
    assert grid.begun["m1"].wait(LONG)
    made.forget([first])
    assert grid.begun["m2"].wait(LONG)
    grid.whole["m1"].set()
    grid.by["m1"].join(LONG)
    grid.whole["m2"].set()
    assert [reply.has_error() for reply in made.replies([second], LONG)] == [False]
    assert [reply.has_error() for reply in made.send("train", orders(made), "0")] == [False]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_died_is_replaced(monkeypatch):
    grid = FakeGrid(n7="0")
    made = seated(grid, [])
    fetchers = []

    def dies(inbox: Inbox, *_: object) -> bool:
        fetchers.append(threading.current_thread())
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Inbox, "_look", dies)
        made.post("query.probe", orders(made), "probe")
        wait(lambda: fetchers, pause=0.01)[0].join(LONG)
    assert [reply.has_error() for reply in made.send("train", orders(made), "0")] == [False]
