"""Asynchronous rounds of a deployment: sites that answer in any order, late, wrongly or not at all; a server killed.

Sites are a line of arithmetic behind a courier that tells any story, on a clock of its own: no second passes here.
"""

import heapq
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from fcit import config as configuration
from fcit.errors import RunError
from fcit.federation import codec
from fcit.federation.messages import ClientUpdate, TrainOrder
from fcit.fedopt.staleness import RULES
from fcit.methods.base import ServerState
from fcit.methods.finetune import Finetune
from fcit.runs.folder import RunDir
from server import checkpoint, dispatch
from server.checkpoint import Progress
from server.courier import NOBODY
from server.dispatch import Places
from server.late import LateSpill
from server.live import LiveCollector
from server.orders import Orders
from server.real_time import RealTime
from server.timeline import Timeline
from server.validation import Validator
from tests.server.test_asynchronous import SECONDS, Stream, first_that_suit
from tests.server.test_asynchronous import Run as Simulated

NEVER = float("inf")


class Killed(BaseException):
    """The server's process ends here."""


@pytest.fixture(autouse=True)
def _in_order(monkeypatch):
    """Whoever is free and has the lowest number is next."""
    monkeypatch.setattr(dispatch, "suitable", first_that_suit)


class Sites:
    """A courier and a handshake: client k needs ``seconds[k]`` for an order, at node k + 1."""

    def __init__(self, seconds=SECONDS, end=NEVER):
        self.seconds, self.end = list(seconds), end
        self.now, self.there = 0.0, set(range(len(self.seconds)))
        self.later: list[tuple[float, int, str, object]] = []  # when, client, message and reply
        self.junk: set[int] = set()
        self.given: list[tuple[float, int]] = []
        self.stories: list[tuple[float, object]] = []  # what happens at a time
        self._count = 0
        self._seats: dict[int, int] = {}
        self.tally = SimpleNamespace(add=lambda *args: None)

    # -- a handshake

    def glance(self, asked, busy):
        self._seats = {k: k + 1 for k in self.there | set(busy)}

    def update(self):
        self.glance(set(), set())

    # -- a courier

    def node(self, client):
        return self._seats.get(client, NOBODY)

    def client(self, node):
        return node - 1

    def count(self, order, received):
        pass

    def forget(self, messages):
        pass

    def post(self, kind, orders, group, timeout):
        messages = []
        for node, order in orders:
            self._count += 1
            metadata = SimpleNamespace(message_id=f"m{self._count}", dst_node_id=node, ttl=2 * timeout + 60)
            messages.append(SimpleNamespace(metadata=metadata))
            client = node - 1
            self.given.append((self.now, client))
            reply = SimpleNamespace(
                metadata=SimpleNamespace(src_node_id=node, reply_to_message_id=metadata.message_id),
                has_error=lambda: False,
                has_content=lambda: True,
                content=codec.encode(self.answer(kind, order)),
            )
            heapq.heappush(self.later, (self.now + self.seconds[client], client, metadata.message_id, reply))
        return messages

    def answer(self, kind, order):
        moved = np.float32(np.nan if order.client in self.junk else order.client + 1)
        tensors = {"x": order.tensors["x"] + moved}
        return ClientUpdate(**order.answered, examples=1, steps=1, loss=0.0, seconds=0.0, tensors=tensors)

    def replies(self, messages, seconds):
        waiting, until = {message.metadata.message_id for message in messages}, self.now + seconds
        while True:
            story = min(self.stories, default=(NEVER, None), key=lambda story: story[0])
            coming = [each for each in self.later if each[2] in waiting]
            came = min(coming, default=(NEVER, 0, "", None))
            moment = min(story[0], came[0], until)
            if moment >= self.end:
                raise Killed
            self.now = max(self.now, moment)
            if story[0] <= min(came[0], until):
                self.stories.remove(story)
                story[1](self)
            elif came[0] <= until:
                self.later.remove(came)
                yield came[3]
            else:
                return


class Run:
    """An asynchronous run on sites, client k of which moves its only number by k + 1."""

    def __init__(self, folder, sites=None, rounds=3, restored=None, federation=None, **settings):
        folder.mkdir(exist_ok=True)
        raw = {
            "method": "finetune",
            "federation": {
                "mode": "async",
                "clients": len(SECONDS),
                "clients_per_round": 2,
                "rounds": rounds,
                "timeout": 100.0,
                **(federation or {}),
            },
            "asynchronous": {"a": 1.0, **settings},
        }
        self.config, self.folder, self.sites = configuration.parse(raw), RunDir(folder), sites or Sites()
        self.state, self.progress = restored or (
            ServerState(subspaces={"0": {"x": np.zeros(1, np.float32)}}),
            Progress(timeline=Timeline()),
        )
        self.events, self.method = [], Finetune(self.config)
        fedopt = SimpleNamespace(
            broadcast=lambda t, memory: {}, extra_shapes=lambda trained: {}, reject_reason=lambda tensors: None
        )
        parts = {"config": self.config, "stream": Stream(), "state": self.state, "progress": self.progress}
        time = RealTime(self.progress.timeline, lambda: self.sites.now)
        rule = RULES[self.config.asynchronous.rule](self.config.asynchronous)
        self.spill = LateSpill(self.folder, rule, self.progress.timeline.flights)
        self.spill.tidy(self.progress.stage, self.progress.round)
        self.collector = LiveCollector(
            **parts,
            run=self.folder,
            orders=Orders(self.config, Stream(), self.method, fedopt),
            courier=self.sites,
            handshake=self.sites,
            assigner=SimpleNamespace(is_new=lambda slot: False, assign=self.assign),
            journal=SimpleNamespace(
                timed=lambda name: nullcontext(),
                round_event=lambda kind, **values: self.events.append((kind, values)),
                show=lambda kind, **values: None,
            ),
            stop=None,
            validator=Validator.of(self.config, False, []),
            spill=self.spill,
            dispatcher=Places(**parts, clock=time),
            time=time,
        )

    def assign(self, slots):
        self.method.assign(self.state, [slot.pair for slot in slots], {}, None)

    def round(self) -> tuple[list[int], list[int]]:
        """One server update with its checkpoint; clients in the order of their updates, and their staleness."""
        gathered = self.collector.round()
        updates = [update.tensors["x"] for update in self.spill]
        self.state.subspaces["0"] = {"x": np.mean(updates, axis=0, dtype=np.float64).astype(np.float32)}
        self.state.turns["0"] = self.state.turns.get("0", 0) + 1
        self.progress.round += 1
        checkpoint.save(self.folder, self.state, self.progress)
        self.spill.clear()
        clients = [slot.client for slot in gathered.slots]
        return clients, [gathered.staleness[client] for client in clients]

    def next_stage(self) -> None:
        self.progress.stage, self.progress.round = self.progress.stage + 1, 0

    def resumed(self, sites, **settings):
        """The same run in a new process, from its last checkpoint."""
        return Run(self.folder.path, sites, restored=checkpoint.load(self.folder), **settings)

    def said(self, *kinds: str) -> list:
        return [(kind, values.get("client", values.get("clients"))) for kind, values in self.events if kind in kinds]

    @property
    def timeline(self) -> Timeline:
        return self.progress.timeline

    @property
    def x(self) -> float:
        return float(self.state.subspaces["0"]["x"][0])


# ---------------------------------------------------------------------- sites that answer


@pytest.mark.parametrize("settings", [{}, {"concurrency": 4, "buffer": 3}, {"rule": "fedasync", "mixing": 0.5}])
def test_with_the_same_arrivals_a_deployment_has_the_bits_of_the_simulated_clock(tmp_path, settings):
    """Both give an order when an update comes, to the same client, and weigh it by the same staleness."""
    simulated = Simulated(tmp_path / "simulated", rounds=6, **settings)
    fleet = simulated.collector.dispatcher.clock.fleet
    sites = Sites([fleet[client].seconds(4, 1, 4) for client in range(len(SECONDS))])
    live = Run(tmp_path / "live", sites, rounds=6, **settings)
    for _ in range(6):
        assert live.round() == simulated.round()
        assert live.x == simulated.x
    assert live.timeline.staleness == simulated.progress.timeline.staleness
    assert live.timeline.now == pytest.approx(simulated.now)
    assert live.timeline.busy == pytest.approx(simulated.progress.timeline.busy)


def test_only_the_order_of_arrivals_counts_and_events_tell_it(tmp_path):
    class Replayed(Sites):
        """Answers in a given order, each a second after the other."""

        def __init__(self, order):
            super().__init__()
            self.order = order

        def post(self, kind, orders, group, timeout):
            [(node, _)] = orders
            self.seconds[node - 1] = self.order.index(group) - self.now if group in self.order else 1000 - self.now
            return super().post(kind, orders, group, timeout)

    first = Run(tmp_path / "first", concurrency=3, rounds=5)
    expected = [(first.round(), first.x) for _ in range(4)]
    order = [values["order"] for kind, values in first.events if kind == "arrived"]
    again = Run(tmp_path / "again", Replayed(order), concurrency=3, rounds=5, federation={"timeout": 5000.0})
    assert [(again.round(), again.x) for _ in range(4)] == expected
    assert [e for e in again.events if e[0] != "missing"] == first.events


def test_updates_of_a_buffer_are_summed_in_the_order_of_clients(tmp_path):
    seen = []
    for name, seconds in (("a", (1, 2, 3)), ("b", (3, 2, 1))):
        run = Run(tmp_path / name, Sites([*seconds, *[9] * 5]), concurrency=3, buffer=3)
        run.collector.round()
        seen.append([update.client for update in run.spill])
    assert seen == [[0, 1, 2], [0, 1, 2]]


def test_time_is_real_and_counts_what_passes_between_rounds(tmp_path):
    run = Run(tmp_path)
    run.round()
    assert run.timeline.now == 7
    run.sites.now += 50  # an evaluation
    run.collector.time.end_stage()
    assert run.timeline.stages == [57]
    run.sites.now += 20  # another one, and its checkpoint
    run.collector.time.count()
    assert run.timeline.now == 77


def test_time_goes_on_at_once_in_a_run_that_is_resumed(tmp_path):
    run = Run(tmp_path)
    run.round()
    sites = Sites()
    sites.now = 1000.0
    again = run.resumed(sites)
    sites.now += 50  # an evaluation, before any order
    again.collector.time.end_stage()
    assert again.timeline.stages == [57]
    again.round()
    assert again.timeline.now == 57 + again.sites.now - 1050


def test_time_begins_with_the_first_order(tmp_path):
    run = Run(tmp_path)
    run.sites.now += 50  # the untouched model is asked
    run.collector.time.count()
    assert run.timeline.now == 0


# ---------------------------------------------------------------------- sites that do not


def test_the_place_of_a_site_that_never_answers_is_given_to_another(tmp_path):
    run = Run(tmp_path, Sites([NEVER, 40, 3, 7, 20, 5, 5, 5]))
    run.round()
    for _ in range(2):
        run.sites.now = max(run.sites.now, 95.0)
        run.round()
    assert run.said("missing") == [("missing", 0)]
    assert run.sites.now > 100
    assert [client for at, client in run.sites.given if client == 0] == [0]  # it may still be at work
    assert run.timeline.discarded == 0


def test_a_silent_site_is_asked_again_once_its_order_has_expired(tmp_path):
    run = Run(tmp_path, Sites([NEVER, 40, 3, 7, 20, 5, 5, 5]), rounds=9)
    for moment in (0, 120, 255, 265):  # an order is kept for 2 x 100 + 60 s
        run.sites.now = max(run.sites.now, float(moment))
        run.round()
    assert [at for at, client in run.sites.given if client == 0] == [0, 265]


def test_an_answer_after_the_deadline_is_discarded_and_counted_and_the_site_is_free(tmp_path):
    run = Run(tmp_path, Sites([150, 40, 40, 40, 40, 40, 40, 40]), rounds=9)
    while run.sites.now < 160:
        run.round()
    assert run.said("missing", "discarded") == [("missing", 0), ("discarded", 0)]
    assert run.timeline.discarded == 1
    assert [at for at, client in run.sites.given if client == 0] == [0, 160]


def test_junk_is_rejected_and_its_site_not_asked_again_for_this_update(tmp_path):
    run = Run(tmp_path)
    run.sites.junk.add(1)
    assert run.round() == ([2, 0], [0, 0])
    assert run.said("rejected") == [("rejected", 1)]
    assert run.x == (3 + 1) / 2
    assert [client for _, client in run.sites.given] == [0, 1, 2, 3]  # 2 and 3 took its place and that of 2
    run.sites.junk.clear()
    assert run.round()[0] == [3, 1]


def test_a_site_that_vanishes_is_not_given_orders_until_it_is_back(tmp_path):
    sites = Sites()
    sites.stories = [(5.0, lambda s: s.there.discard(1)), (12.0, lambda s: s.there.add(1))]
    run = Run(tmp_path, sites, rounds=9)
    for _ in range(4):
        run.round()
    times = [at for at, client in sites.given if client == 1]
    assert times[0] == 0
    assert all(at > 12 for at in times[1:])
    assert len(times) > 1


def test_places_stay_empty_while_no_site_is_left(tmp_path):
    sites = Sites()
    sites.there = {0, 2}
    run = Run(tmp_path, sites, concurrency=4)
    assert run.round() == ([2, 0], [0, 0])
    assert len(sites.given) == 2


def test_after_a_timeout_without_an_update_the_server_goes_on_with_what_it_has(tmp_path):
    run = Run(tmp_path, Sites([5, *[NEVER] * 7]))
    assert run.round() == ([0], [0])
    assert run.sites.now == pytest.approx(105)


def test_too_few_updates_are_asked_for_again_and_then_end_the_run(tmp_path):
    run = Run(tmp_path)
    run.sites.junk |= set(range(8))
    with pytest.raises(
        RunError, match=r"0 usable updates, 1 needed .* asks sites anew; updates that have come are kept"
    ):
        run.round()
    assert run.said("retry") == [("retry", None)]
    assert len(run.said("rejected")) == 16
    silent = Run(tmp_path / "silent", Sites([NEVER] * 8))
    with pytest.raises(RunError, match="2 attempts"):
        silent.round()
    assert silent.sites.now == pytest.approx(200)


# ---------------------------------------------------------------------- the end of a stage


def test_what_is_under_way_at_the_end_of_a_stage_is_dropped_and_discarded_when_it_comes(tmp_path):
    run = Run(tmp_path, rounds=1)
    assert run.round() == ([1, 2], [0, 0])
    assert run.said("dropped") == [("dropped", [0])]
    assert run.timeline.dropped == 1
    assert run.timeline.flights == {}
    run.next_stage()
    assert run.round() == ([2, 1], [0, 0])  # client 0 is at work until 10
    assert run.said("discarded") == [("discarded", 0)]
    assert run.timeline.discarded == 1
    assert [at for at, client in run.sites.given if client == 0] == [0, 10]
    assert run.x == 2.5 + 2.5


def test_no_update_is_late_while_sites_are_at_work_on_what_was_dropped(tmp_path):
    run = Run(tmp_path, Sites([10, 10, 99, 99, *[9] * 4]), concurrency=4, rounds=1)
    assert run.round() == ([0, 1], [0, 0])
    run.sites.there = {2, 3}
    run.next_stage()
    assert run.round() == ([2, 3], [0, 0])
    assert run.sites.now == 99 + 99
    assert run.said("retry", "missing") == []


# ---------------------------------------------------------------------- a server that is killed


#: 2 comes at 3 and 1 at 4, and make a server update; 0 and 3 are under way. 0 comes at 6.
LATE = (6, 4, 3, 30, 5, 5, 5, 5)


def interrupted(tmp_path, end: float, seconds=SECONDS, **settings) -> Run:
    """A run whose process ends at this time."""
    run = Run(tmp_path, Sites(seconds, end), **settings)
    with pytest.raises(Killed):
        while True:
            run.round()
    return run


def test_a_fresh_update_that_had_come_is_used_when_the_run_goes_on(tmp_path):
    interrupted(tmp_path, end=6)  # 1 has come, 0 and 2 are under way
    again = Run(tmp_path, Sites(end=NEVER))  # there was no checkpoint
    assert again.round() == ([1, 2], [0, 0])
    assert again.said("reused") == [("reused", [1])]
    assert [client for _, client in again.sites.given] == [0, 2]
    assert again.x == 2.5
    assert again.timeline.lost == 0  # its checkpoint knew of none


def test_a_late_update_that_had_come_is_used_and_other_orders_are_lost_and_counted(tmp_path):
    run = interrupted(tmp_path, end=7, seconds=LATE, concurrency=3)
    again = run.resumed(Sites(), concurrency=3)
    assert [flight.order.client for flight in again.timeline.flights.values()] == [0, 3]
    assert again.round() == ([0, 2], [1, 0])
    assert again.said("reused", "lost") == [("reused", [0]), ("lost", [3])]
    assert again.timeline.lost == 1
    # 0 has moved by 1 from where it began and counts half: 2.5 + 1/2; 2 is fresh: 2.5 + 3.
    assert again.x == (3.0 + 5.5) / 2
    again.round()
    assert not list(again.folder.late.glob("0-0.*"))


def test_the_checkpoint_before_the_last_finds_the_updates_that_were_late_for_it(tmp_path):
    run = Run(tmp_path)
    done = [(run.round(), run.x) for _ in range(3)]
    newest = checkpoint.complete(run.folder)[0]
    shutil.rmtree(newest)
    again = run.resumed(Sites())
    known = list(again.timeline.flights.values())
    assert [(flight.name, flight.order.client) for flight in known] == [("0-4", 2)]
    assert again.round()[0][0] == 2
    assert again.said("reused", "lost") == [("reused", [2])]
    assert done[2][0] == ([2, 1], [1, 0])
    assert not list(again.folder.late.glob("0-0.*"))


def test_orders_that_the_checkpoint_knows_and_no_update_answered_are_lost(tmp_path):
    run = interrupted(tmp_path, end=8)  # after the first server update, at 7; 0 is under way
    again = run.resumed(Sites())
    _, staleness = again.round()
    assert again.said("lost", "reused") == [("lost", [0])]
    assert again.timeline.lost == 1
    assert staleness == [0, 0]
    assert sorted(client for _, client in again.sites.given)[:2] == [0, 1]
    assert not list(again.folder.late.glob("*"))


def test_a_kept_update_that_is_damaged_is_lost(tmp_path):
    run = interrupted(tmp_path, end=7, seconds=LATE, concurrency=3)
    [head] = run.folder.late.glob("*.json")
    head.write_text(head.read_text()[:40])
    again = run.resumed(Sites(), concurrency=3)
    again.round()
    assert again.said("spill-damaged", "lost") == [("spill-damaged", 0), ("lost", [0, 3])]


def test_the_norm_of_an_update_that_was_kept_is_remembered(tmp_path):
    run = interrupted(tmp_path, end=7, seconds=LATE, concurrency=3)
    again = run.resumed(Sites(), concurrency=3)
    again.collector.round()
    again.collector.validator.close_round()
    assert again.collector.validator.history[0] == 1.0  # client 0 had moved by one, in one step


def test_an_earlier_checkpoint_takes_no_file_of_another_order_for_its_own(tmp_path):
    run = interrupted(tmp_path, end=7, seconds=LATE, concurrency=3)
    folder = shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    state, progress = checkpoint.load(run.folder)
    progress.timeline.flights["0-0"].order.client = 5
    again = Run(folder, Sites(), restored=(state, progress), concurrency=3)
    again.round()
    assert again.said("reused", "lost") == [("lost", [5, 3])]


# ---------------------------------------------------------------------- descriptions


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
