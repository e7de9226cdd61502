"""Asynchronous rounds of a deployment: sites that answer in any order, late, wrongly or not at all."""

import pytest

from fcit.errors import RunError
from tests.server.live_sites import NEVER, Run, Sites
from tests.server.test_asynchronous import SECONDS
from tests.server.test_asynchronous import Run as Simulated

pytestmark = pytest.mark.usefixtures("lowest_first")


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
