"""Who is connected, whose answers count, and what happens to all others; with a grid that tells any story."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.serverapp import Grid

from fcit.config import Federation
from fcit.errors import ConfigError, RunError, StopRequested
from fcit.federation import codec
from fcit.federation.engines import private
from fcit.federation.engines.private import NodeInfo
from fcit.federation.messages import Description, Probe, ProbeOrder
from fcit.io.files import write_json
from fcit.runs.folder import RunDir
from server.courier import NOBODY, Courier
from server.handshake import Handshake
from server.stop import Stop

Story = Callable[[Message], list[Message]]


def probe(**changes) -> Probe:
    plain = {
        "shapes": {"x": [2, 3]},
        "identity_width": 4,
        "versions": {"torch": "2.13", "threads": "1"},
        "tensors": {"p": np.ones(2, np.float32)},
        "hashes": {"backbone": "abc"},
    }
    return Probe(**{**plain, **changes})


def answer(message: Message, record: object) -> Message:
    return Message(codec.encode(record), reply_to=message)


def moved(reply: Message, **metadata) -> Message:
    """The same reply with other metadata, as no honest node would send it."""
    for name, value in metadata.items():
        reply.metadata.__dict__[f"_{name}"] = value
    return reply


class FakeGrid(Grid):
    """A deployment: nodes by name, answers by a story told per node, handed out at the next pull."""

    def __init__(self, **names: str) -> None:
        private.claim()
        self.names = {int(key.removeprefix("n")): name for key, name in names.items()}
        self.restarts: dict[int, int] = {}
        self.story: dict[int, Story] = {}
        self.asked: list[int] = []
        self.mail: list[Message] = []
        self.looked = 0
        self._count = 0

    def set_run(self, run) -> None: ...

    @property
    def run(self):
        return None

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.names)

    def get_nodes(self):
        self.looked += 1
        return [
            NodeInfo(node_id=n, name=name, last_activated_at=str(self.restarts.get(n, 0)))
            for n, name in self.names.items()
        ]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self._count += 1
            private.number(message, f"m{self._count}")
            ids.append(message.metadata.message_id)
            node = message.metadata.dst_node_id
            self.asked.append(node)
            self.mail += self.story.get(node, lambda m: [answer(m, probe())])(message)
        return ids

    def pull_messages(self, message_ids):
        mail, self.mail = self.mail, []
        return mail

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


@pytest.fixture
def events() -> list[dict]:
    return []


def courier(grid: Grid, events: list[dict], clients: int = 3, stop: Stop | None = None, **federation) -> Courier:
    settings = Federation.model_validate({"clients": clients, "timeout": 0.4, "min_updates": 2, **federation})
    traffic = {"up": 0, "down": 0, "orders": 0, "rejected": 0}
    return Courier(grid, settings, clients, traffic, lambda kind, **v: events.append({"event": kind, **v}), stop)


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


# ---------------------------------------------------------------------- whose answers count


def test_an_answer_that_comes_twice_counts_once(events):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[7] = lambda m: [answer(m, described(0)), answer(m, described(0))]
    made = seated(grid, events)
    assert sorted(r.metadata.src_node_id for r in ask(made, 0, 1)) == [7, 8]
    assert [(e["event"], e["client"]) for e in events] == [("rejected", 0)] and "twice" in events[0]["reason"]
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
    assert [(e["event"], e["client"]) for e in events] == [("rejected", 0)] and "late" in events[0]["reason"]


def test_an_answer_from_another_node_does_not_count(events):
    grid = FakeGrid(n7="0", n8="1", n9="2")
    # Node 8 answers the order that went to node 7, before that one does.
    grid.story[7] = lambda m: [moved(answer(m, described(0)), src_node_id=8), answer(m, described(0))]
    made = seated(grid, events)
    assert [r.metadata.src_node_id for r in ask(made, 0)] == [7]
    assert [(e["event"], e["client"]) for e in events] == [("rejected", 1)] and "client 0" in events[0]["reason"]


def test_equal_orders_cannot_be_told_by_their_hash(events):
    grid = FakeGrid(n7="0", n8="1")
    sent: list[Message] = []
    grid.story[7] = grid.story[8] = lambda m: sent.append(m) or [answer(m, described(0))]
    ask(seated(grid, events), 0, 1)
    nonces = {str(m.content["nonce"]["nonce"]) for m in sent}
    assert len(nonces) == 2 and all(len(nonce) == 32 for nonce in nonces)
    assert codec.decode(sent[0].content, ProbeOrder) == ProbeOrder(config="")


def test_what_flower_says_for_a_dead_node_is_that_nodes_error(events):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[7] = lambda m: [
        moved(Message(Error(code=5, reason="Node Unavailable"), reply_to=m), src_node_id=private.SERVER_NODE)
    ]
    (reply,) = ask(seated(grid, events), 0)
    assert reply.has_error() and reply.metadata.src_node_id == 7 and reply.error.code == 5 and not events


def test_a_client_s_own_words_steer_no_terminal(events):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[7] = lambda m: [Message(Error(code=2, reason="\x1b[2Jgone\u202e\nline"), reply_to=m)]
    (reply,) = ask(seated(grid, events), 0)
    assert reply.error.reason == "?[2Jgone?\nline" and reply.metadata.src_node_id == 7


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


# ---------------------------------------------------------------------- who is there


def test_too_few_sites(events):
    grid = FakeGrid(n7="1", n8="site-2", n9="01", n10="5")  # names that are no client's are nobody
    made = courier(grid, events)
    with pytest.raises(RunError, match=r"1 of 3 clients .*min_updates.*--name k"):
        made.connect()
    assert grid.looked > 1


def test_a_site_that_is_late_is_waited_for(events):
    grid = FakeGrid()
    threading.Timer(0.3, lambda: grid.names.update({7: "1", 8: "2"})).start()
    made = courier(grid, events, timeout=3600.0)
    made.connect()
    assert {client: node.id for client, node in made.connected().items()} == {1: 7, 2: 8}


def test_two_nodes_with_one_name(events):
    made = courier(FakeGrid(n7="0", n8="1", n9="1"), events)
    with pytest.raises(RunError, match=r"two .* client 1 .*8 and 9"):
        made.connect()


def test_a_client_that_is_not_there_has_no_node(events):
    made = seated(FakeGrid(n7="0", n8="2"), events)
    assert (made.node(0), made.node(1), made.node(2), made.node(10**9)) == (7, NOBODY, 8, NOBODY)
    assert made.nodes == [7, 8] and made.client(8) == 2 and made.client(99) is None


# ---------------------------------------------------------------------- handshake


@pytest.fixture
def hands(tmp_path, events):
    def make(grid: FakeGrid, **federation) -> Handshake:
        run = RunDir(tmp_path)
        if not run.environment.is_file():
            write_json(run.environment, {})
        made = courier(grid, events, **federation)
        return Handshake(made, ProbeOrder(config=""), run, made.federation)

    return make


def tells(**changes) -> Story:
    return lambda m: [answer(m, probe(**changes))]


def test_every_site_is_probed_once(hands, events):
    grid = FakeGrid(n7="2", n8="0", n9="1")
    grid.story[9] = tells(versions={"torch": "2.13", "threads": "64"})  # a machine's own affair
    shake = hands(grid)
    assert shake.start().identity_width == 4
    shake.update()
    assert sorted(grid.asked) == [7, 8, 9] and shake.courier.nodes == [8, 9, 7] and not events


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"versions": {"torch": "2.12", "threads": "1"}}, r"versions.torch is '2.12', '2.13' at client 0"),
        ({"hashes": {"backbone": "xyz"}}, r"hashes.backbone is 'xyz', 'abc' at client 0"),
        ({"hashes": {}}, r"hashes.backbone is 'not there', 'abc'"),
        ({"shapes": {"x": [2, 4]}}, r"shapes.x is '\(2, 4\)', '\(2, 3\)'"),
        ({"identity_width": 5}, r"identity_width is '5', '4'"),
    ],
    ids=["version", "hash", "missing", "shape", "width"],
)
def test_sites_that_differ_are_named_with_both_values(hands, changes, says):
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[8] = grid.story[9] = tells(**changes)
    with pytest.raises(ConfigError, match=says) as found:
        hands(grid).start()
    assert "client 1" in str(found.value) and "client 2" in str(found.value)


def test_a_site_that_cannot_answer_is_named(hands):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[8] = lambda m: [Message(Error(code=2, reason="refused ref-17"), reply_to=m)]
    with pytest.raises(ConfigError, match="client 1: refused ref-17"):
        hands(grid).start()


def test_a_site_of_another_wire_format_is_told_what_to_do(hands):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[8] = lambda m: [Message(Error(code=2, reason="message 12"), reply_to=m)]
    with pytest.raises(ConfigError, match=r"client 1: message 12: it could not read the order; .* Update fcit there"):
        hands(grid).start()


def test_a_site_that_says_nothing_is_left_out(hands, events):
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[8] = lambda m: []
    shake = hands(grid)
    shake.start()
    assert shake.courier.nodes == [7, 9] and [(e["event"], e["client"]) for e in events] == [("refused", 1)]


def test_nobody_answers(hands):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[7] = grid.story[8] = lambda m: []
    with pytest.raises(ConfigError, match="client 0: no answer within"):
        hands(grid).start()


def test_a_site_that_appears_later_takes_part_and_one_that_leaves_does_not(hands, events):
    grid = FakeGrid(n7="0", n8="1")
    shake = hands(grid)
    shake.start()
    grid.names = {7: "0", 9: "2"}
    shake.update()
    assert (shake.courier.node(0), shake.courier.node(1), shake.courier.node(2)) == (7, NOBODY, 9)
    assert grid.asked == [7, 8, 9] and [(e["event"], e["client"]) for e in events] == [("joined", 2)]


def test_a_late_site_that_differs_stays_out_until_it_is_repaired(hands, events):
    grid = FakeGrid(n7="0", n8="1")
    shake = hands(grid)
    shake.start()
    grid.names[9], grid.story[9] = "2", tells(hashes={"backbone": "xyz"})
    for _ in range(2):
        shake.update()
        assert shake.courier.node(2) == NOBODY
    assert grid.asked.count(9) == 1 and [e["event"] for e in events] == ["refused"]
    assert "'xyz'" in events[0]["reason"] and "'abc'" in events[0]["reason"]
    grid.restarts[9] = 1
    del grid.story[9]
    shake.update()
    assert shake.courier.node(2) == 9 and events[-1]["event"] == "joined"


def test_resume_refuses_other_hashes(hands):
    hands(FakeGrid(n7="0", n8="1")).start()
    grid = FakeGrid(n7="0", n8="1")
    grid.story[7] = grid.story[8] = tells(hashes={"backbone": "xyz"})
    with pytest.raises(ConfigError, match="backbone: abc then, xyz now"):
        hands(grid).start()
