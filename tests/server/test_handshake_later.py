"""Sites that answer the handshake later, again or not at all, and what a round waits for."""

import pytest
from flwr.app import Error, Message

from server.courier import NOBODY
from tests.helpers.grids import FakeGrid, answer, probe
from tests.helpers.waiting import wait
from tests.server.stories import fails, said, tells, until_seated


def test_an_answer_after_the_timeout_counts_from_the_next_round(hands, events):
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[8] = lambda m: []
    shake = hands(grid, timeout=0.3)
    shake.start()
    assert shake.courier.nodes == [7, 9]
    assert said(events) == [("refused", 1)]
    grid.answer_late(8, probe())
    until_seated(shake, 1)
    assert said(events) == [("refused", 1), ("joined", 1)]


def test_a_late_answer_is_judged_like_any_other(hands, events):
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[8] = lambda m: []
    shake = hands(grid, timeout=0.3)
    shake.start()
    grid.answer_late(8, probe(hashes={"backbone": "xyz"}))
    del grid.story[8]  # asked again, it is like the others
    until_seated(shake, 1)
    assert said(events) == [("refused", 1), ("refused", 1), ("joined", 1)]
    assert "'xyz'" in events[1]["reason"]


def test_a_silent_site_is_asked_again_and_waited_for_briefly(hands, events, monkeypatch):
    monkeypatch.setattr("server.handshake._BRIEF", 0.01)
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[8] = lambda m: []
    shake = hands(grid, timeout=0.3)
    shake.start()
    waits = []
    replies = shake.courier.replies
    monkeypatch.setattr(
        shake.courier, "replies", lambda m, seconds: waits.append((len(m), seconds)) or replies(m, seconds)
    )
    wait(lambda: shake.update() or grid.asked.count(8) == 2)  # its question is as old as the timeout
    assert {seconds for count, seconds in waits if count} == {0.0}
    grid.restarts[8] = 1
    shake.update()
    assert grid.asked.count(8) == 3
    assert {seconds for count, seconds in waits if count} == {0.0, 0.01}
    assert said(events) == [("refused", 1)]


@pytest.mark.parametrize("code", [5, 8, 3], ids=["its node was restarted", "its executor has died", "gone"])
def test_an_answer_that_was_lost_is_asked_for_again_in_the_next_round_and_waited_for(hands, events, code):
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[8] = lambda m: [Message(Error(code=code, reason="gone"), reply_to=m)]
    shake = hands(grid, timeout=60.0)
    shake.start()
    assert shake.courier.nodes == [7, 9]
    del grid.story[8]
    shake.update()
    assert shake.courier.nodes == [7, 8, 9]
    assert said(events) == [("refused", 1), ("joined", 1)]


def test_a_site_that_connects_while_another_is_waited_for_takes_part_in_the_same_round(hands, events):
    grid = FakeGrid(n7="0")
    shake = hands(grid, min_updates=1)
    shake.start()
    grid.names[8] = "1"

    def meanwhile(message: Message) -> list[Message]:
        grid.names[9] = "2"
        return [answer(message, probe())]

    grid.story[8] = meanwhile
    shake.update()
    assert shake.courier.nodes == [7, 8, 9]


def test_a_refused_site_is_asked_once_in_a_round_however_many_connect_meanwhile(hands):
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[9] = fails("refused ref-17")
    shake = hands(grid, clients=6)
    shake.start()

    def meanwhile(message: Message) -> list[Message]:
        """One after the other."""
        if len(grid.names) < 6:
            grid.names[max(grid.names) + 1] = str(len(grid.names))
        return [answer(message, probe())]

    grid.names[10] = "3"
    grid.story[10] = grid.story[11] = grid.story[12] = meanwhile
    before = grid.asked.count(9)
    shake.update()
    assert shake.courier.nodes == [7, 8, 10, 11, 12]
    assert grid.asked.count(9) == before + 1


def test_a_site_that_restarts_whenever_it_is_asked_is_waited_for_once_in_a_round(hands, events):
    grid = FakeGrid(n7="0", n8="1")
    shake = hands(grid, clients=2)
    shake.start()

    def restarts(message: Message) -> list[Message]:
        grid.restarts[8] = grid.restarts.get(8, 0) + 1
        return [Message(Error(code=5, reason="gone"), reply_to=message)]

    grid.story[8], grid.restarts[8] = restarts, 1
    before = grid.asked.count(8)
    shake.update()
    assert grid.asked.count(8) == before + 2  # the second time without anybody waiting
    assert shake.courier.nodes == [7]


def test_a_site_that_appears_later_takes_part_and_one_that_leaves_does_not(hands, events):
    grid = FakeGrid(n7="0", n8="1")
    shake = hands(grid)
    shake.start()
    grid.names = {7: "0", 9: "2"}
    shake.update()
    assert (shake.courier.node(0), shake.courier.node(1), shake.courier.node(2)) == (7, NOBODY, 9)
    assert grid.asked == [7, 8, 9]
    assert said(events) == [("joined", 2)]


def test_a_late_site_that_differs_stays_out_until_it_is_repaired(hands, events):
    """It is asked again each round, and told once."""
    grid = FakeGrid(n7="0", n8="1")
    shake = hands(grid)
    shake.start()
    grid.names[9], grid.story[9] = "2", tells(hashes={"backbone": "xyz"})
    for _ in range(2):
        shake.update()
        assert shake.courier.node(2) == NOBODY
    assert said(events) == [("refused", 2)]
    assert events[0]["reason"] == "hashes.backbone is 'xyz', 'abc' at client 0"
    del grid.story[9]
    until_seated(shake, 2)
    assert said(events) == [("refused", 2), ("joined", 2)]
