"""What sites are at work on, over a deployment's grid: one answer at a time, and who is free."""

import time

import pytest

from fcit.federation.messages import DescribeOrder
from server.errands import Answer, Errands
from server.participants import Slot
from tests.helpers.grids import FakeGrid, courier
from tests.helpers.waiting import LONG, wait
from tests.server.test_courier import described


class Watched:
    """Errands of three sites at the nodes 7 to 9, with a clock that can be set."""

    def __init__(self, timeout: float = LONG, **stories) -> None:
        self.grid = FakeGrid(n7="0", n8="1", n9="2")
        for node in (7, 8, 9):
            self.grid.story[node] = lambda m: []
        self.events, self.discarded, self.later = [], [], 0.0
        self.courier = courier(self.grid, self.events, timeout=timeout)
        self.courier.connect()
        self.courier.seat({0: 7, 1: 8, 2: 9})
        self.errands = Errands(
            self.courier,
            timeout,
            lambda errand: self.discarded.append(errand.name),
            lambda: time.monotonic() + self.later,
        )
        for client in range(3):
            order = DescribeOrder(config="", client=client, shard="shard", tasks=[])
            self.errands.send(f"0-{client}", Slot(client, "shard", ()), "query.describe", client + 7, order)

    def answer(self, client: int) -> None:
        self.grid.answer_late(client + 7, described(client))

    def next(self) -> Answer:
        """The next answer, however long it takes."""
        return wait(lambda: self.errands.next(0.2), pause=0.0)


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Restarts are looked for all the time."""
    monkeypatch.setattr("server.courier._LOOK", 0.0)


def test_answers_come_one_at_a_time_in_any_order():
    watched = Watched()
    for client in (2, 0, 1):
        watched.answer(client)
        answer = watched.next()
        assert answer.errand.slot.client == client
        assert answer.reply.has_content()
        assert client not in watched.errands.busy
    assert watched.errands.open == 0
    assert watched.events == []


def test_answers_that_come_together_are_none_of_them_lost():
    watched = Watched()
    for client in range(3):
        watched.answer(client)
    assert sorted(watched.next().errand.name for _ in range(3)) == ["0-0", "0-1", "0-2"]


def test_what_was_sent_is_not_kept_in_memory():
    watched = Watched()
    assert [dict(message.content) for message in watched.grid.sent.values()] == [{}, {}, {}]


def test_one_that_is_overdue_keeps_its_site_busy_until_it_is_answered():
    watched = Watched(timeout=1000.0)
    watched.answer(1)
    assert watched.next().errand.slot.client == 1
    watched.later = 1001.0
    overdue = [watched.next(), watched.next()]
    assert [(answer.errand.slot.client, answer.reply) for answer in overdue] == [(0, None), (2, None)]
    assert watched.errands.open == 0
    assert watched.errands.busy == {0, 2}
    watched.answer(0)
    wait(lambda: watched.errands.next(0.2) is None and watched.discarded)
    assert watched.discarded == ["0-0"]
    assert watched.errands.busy == {2}
    watched.later = 2 * 1000.0 + 61.0  # as long as Flower keeps an order
    assert watched.errands.next(0.0) is None
    assert watched.errands.busy == set()


def test_what_is_dropped_is_no_answer_any_more():
    watched = Watched()
    watched.errands.drop()
    assert watched.errands.open == 0
    watched.answer(2)
    wait(lambda: watched.errands.next(0.2) is None and watched.discarded)
    assert watched.discarded == ["0-2"]
    assert watched.errands.busy == {0, 1}


def test_sites_that_are_restarted_together_have_all_lost_their_errands(impatient):
    """The first error is taken, and the courier asked again; the others are not forgotten over it."""
    watched = Watched()
    watched.grid.restarts = dict.fromkeys((7, 8, 9), 1)
    answers = [watched.next() for _ in range(3)]
    assert sorted(answer.errand.slot.client for answer in answers) == [0, 1, 2]
    assert {answer.reply.error.code for answer in answers} == {5}
    assert watched.errands.busy == set()
