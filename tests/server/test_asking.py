"""Who is asked how much at a time, and who is given up; on a clock of its own."""

from types import SimpleNamespace

import pytest

from server.asking import FEW, MOST, Asking

NEVER = float("inf")


class Sites:
    """A courier whose node k does one order after the other, each in ``seconds[k]``."""

    def __init__(self, seconds: dict[int, float], timeout: float = 100.0) -> None:
        self.federation = SimpleNamespace(timeout=timeout)
        self.seconds, self.now = seconds, 0.0
        self.free: dict[int, float] = {}
        self.due: dict[str, float] = {}
        self.posts: list[list[int]] = []
        self.forgotten: list[str] = []
        self._count = 0

    def post(self, kind, orders, group, timeout):
        self.posts.append([node for node, _ in orders])
        return [self._message(node, order) for node, order in orders]

    def _message(self, node, order):
        self._count += 1
        self.free[node] = max(self.now, self.free.get(node, 0.0)) + self.seconds[node]
        self.due[f"m{self._count}"] = self.free[node]
        metadata = SimpleNamespace(dst_node_id=node, message_id=f"m{self._count}")
        return SimpleNamespace(metadata=metadata, content=order)

    def replies(self, messages, seconds):
        coming = sorted(messages, key=lambda m: self.due[m.metadata.message_id])
        for message in coming:
            due, until = self.due[message.metadata.message_id], self.now + seconds
            if due > until:
                break
            self.now = max(self.now, due)
            node, order = message.metadata.dst_node_id, message.metadata.message_id
            yield SimpleNamespace(metadata=SimpleNamespace(src_node_id=node, reply_to_message_id=order))
        self.now += seconds

    def forget(self, messages, overdue=False):
        self.forgotten += [message.metadata.message_id for message in messages]


def asked(sites: Sites, counts: dict[int, int]) -> tuple[dict[int, int], float]:
    """How many orders of so many each node has answered, and after how many seconds all was over."""
    orders = [(node, f"{node}-{n}") for node, count in counts.items() for n in range(count)]
    got = dict.fromkeys(counts, 0)
    for reply in Asking(sites, "evaluate", orders, "0", read=lambda: sites.now).replies():
        got[reply.metadata.src_node_id] += 1
    return got, sites.now


def test_an_evaluation_may_take_longer_than_an_order_as_long_as_answers_come():
    sites = Sites({1: 90.0, 2: 60.0})
    assert asked(sites, {1: 10, 2: 10}) == ({1: 10, 2: 10}, 900.0)


def test_orders_are_sent_together_and_not_all_at_once():
    sites = Sites({1: 1.0, 2: 1.0})
    asked(sites, {1: 20, 2: 20})
    assert sites.posts[0] == [1] * MOST + [2] * MOST
    assert all(len(post) <= 2 * (MOST - FEW + 1) for post in sites.posts[1:])
    assert len(sites.posts) < 20  # and not one by one
    assert sum(map(len, sites.posts)) == 40


def test_who_is_silent_is_given_up_and_keeps_nobody_from_going_on():
    sites = Sites({1: 10.0, 2: NEVER})
    assert asked(sites, {1: 20, 2: 20}) == ({1: 20, 2: 0}, 200.0)
    assert sites.posts[0].count(2) == MOST == sum(post.count(2) for post in sites.posts)  # nothing more was sent


def test_who_answers_just_often_enough_does_not_hold_up_the_others_for_ever():
    sites = Sites({1: 1.0, 2: 99.0})
    got, seconds = asked(sites, {1: 20, 2: 20})
    assert (got[1], seconds) == (20, 20.0 + 100.0)  # the timeout after the first one that is through
    sites = Sites({1: 20.0, 2: 99.0})
    got, seconds = asked(sites, {1: 20, 2: 20})
    assert (got[1], seconds) == (20, 400.0 + 400.0)  # or twice as long


def test_a_site_that_is_alone_has_all_the_time_that_it_needs():
    assert asked(Sites({1: 99.0}), {1: 20}) == ({1: 20}, 99.0 * 20)


def test_time_in_which_nobody_listens_does_not_count():
    """Answers are scored between two of them, which may take minutes."""
    sites = Sites({1: 90.0})
    asking = Asking(sites, "evaluate", [(1, n) for n in range(10)], "0", read=lambda: sites.now)
    got = 0
    for _ in asking.replies():
        got += 1
        sites.now += 500.0
    assert got == 10


def test_nor_does_the_time_that_sending_takes(monkeypatch):
    sites = Sites({1: 90.0})
    post = sites.post

    def slow(*parts):
        sites.now += 500.0
        return post(*parts)

    monkeypatch.setattr(sites, "post", slow)
    assert asked(sites, {1: 10})[0] == {1: 10}


def test_nothing_is_looked_for_once_the_caller_has_enough():
    sites = Sites({1: 1.0})
    replies = Asking(sites, "evaluate", [(1, n) for n in range(4)], "0", read=lambda: sites.now).replies()
    next(replies)
    replies.close()
    assert sorted(sites.forgotten) == ["m1", "m2", "m3", "m4"]


@pytest.mark.parametrize("counts", [{}, {1: 0}])
def test_nothing_to_ask(counts):
    assert asked(Sites({1: 1.0}), counts)[1] == 0.0
