"""A server of an asynchronous deployment that is killed: what had come is used, and what was under way is lost."""

import shutil

import pytest

from server import checkpoint
from tests.server.live_sites import NEVER, Killed, Run, Sites
from tests.server.test_asynchronous import SECONDS

pytestmark = pytest.mark.usefixtures("lowest_first")

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
