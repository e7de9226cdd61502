"""Which orders count as lost when their node was restarted."""

import time

import pytest

from server.inbox import Inbox
from server.restarts import Restarts
from tests.helpers.grids import FakeGrid


class Looked(Inbox):
    """Has found nothing for these orders in looks that began at these moments."""

    def __init__(self) -> None:
        super().__init__(FakeGrid())
        self.nothing: dict[str, float] = {}

    def is_missing(self, node: int, order: str, since: float) -> bool:
        return self.nothing.get(order, since) > since


@pytest.fixture
def inbox() -> Looked:
    return Looked()


@pytest.fixture
def restarts(inbox) -> Restarts:
    return Restarts(inbox)


def test_an_order_is_lost_if_a_look_after_the_restart_finds_nothing(inbox, restarts):
    restarts.sent("m1", 7, {7: "a"}, {7: "a"})
    inbox.nothing["m1"] = time.monotonic()
    assert restarts.lost(["m1"], {7: "a"}) == []
    assert restarts.lost(["m1"], {7: "b"}) == []  # the look was before
    assert restarts.lost(["m1"], {}) == []  # offline: Flower says so itself
    inbox.nothing["m1"] = time.monotonic()
    assert restarts.lost(["m1"], {7: "b"}) == ["m1"]


@pytest.mark.parametrize(("before", "after"), [({7: "a"}, {7: "b"}), ({}, {7: "b"}), ({7: "a"}, {}), ({}, {})])
def test_where_it_is_not_known_which_process_was_given_an_order_it_is_waited_for(inbox, restarts, before, after):
    """It was restarted while the orders were sent, or was offline then."""
    restarts.sent("m1", 7, before, after)
    assert restarts.lost(["m1"], {7: "c"}) == []
    inbox.nothing["m1"] = time.monotonic()
    assert restarts.lost(["m1"], {7: "c"}) == []


def test_a_restart_costs_one_order_and_the_next_restart_another(inbox, restarts):
    for order, node in (("m1", 7), ("m2", 7), ("m3", 8)):
        restarts.sent(order, node, {7: "a", 8: "a"}, {7: "a", 8: "a"})
    orders = ["m1", "m2", "m3"]
    for now, lost in (("b", ["m1"]), ("c", ["m2"])):
        inbox.nothing.clear()
        assert restarts.lost(orders, {7: now, 8: "a"}) == []
        inbox.nothing = dict.fromkeys(orders, time.monotonic())
        assert restarts.lost(orders, {7: now, 8: "a"}) == lost
        restarts.forget(lost)
        assert restarts.lost(orders, {7: now, 8: "a"}) == []


def test_a_forgotten_order_is_not_lost(inbox, restarts):
    restarts.sent("m1", 7, {7: "a"}, {7: "a"})
    restarts.lost(["m1"], {7: "b"})
    restarts.forget(["m1"])
    inbox.nothing["m1"] = time.monotonic()
    assert restarts.lost(["m1"], {7: "b"}) == []
