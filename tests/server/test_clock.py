"""Simulated time of rounds that wait: the slowest of those that count, over-selection, clients that are away."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from fcit import config as configuration
from fcit.errors import ConfigError, RunError
from fcit.federation.devices import Device, Window
from fcit.federation.sampling import sample
from fcit.methods.base import ServerState
from fcit.methods.finetune import Finetune
from server.clock import Clock
from server.collect import Collector
from server.orders import Orders
from server.timeline import Timeline


class Stream:
    """Every client has ten times its number of records, and ten more."""

    def slots(self, stage):
        return [(0,), (1,)]

    def most_records(self, client, tasks):
        return 10 * (client + 1)


def config_of(tmp_path, rows, over_select=1.0, **training):
    path = tmp_path / "traces.csv"
    path.write_text("client,speed,down,up,begin,end\n" + rows)
    federation = {"clients": rows.count("\n"), "clients_per_round": 2, "over_select": over_select}
    raw = {"method": "finetune", "federation": federation, "devices": {"profile": str(path)}, "training": training}
    return configuration.parse(raw)


ALIKE = "0,1,8,4,,\n1,1,8,4,,\n2,1,8,4,,\n3,1,8,4,,\n"


def clock_of(config) -> Clock:
    method = Finetune(config)
    fedopt = SimpleNamespace(broadcast=lambda tensors, memory: {}, extra_shapes=lambda trained: {})
    return Clock(config, Stream(), Orders(config, Stream(), method, fedopt), Timeline())


def gather(clock: Clock, clients: list[int]):
    """A round of a collector that has everything accepted, without a wire."""
    state = ServerState(subspaces={"0": {"a": np.zeros(500_000, np.float32)}})
    progress = SimpleNamespace(
        stage=0, round=0, offsets={}, memories={}, constants={}, traffic={"down": 0, "up": 0, "orders": 0}
    )

    class Alone(Collector):
        def _present(self, slots):
            return slots

        def _adopt(self, orders):
            return {}

        def _ask(self, orders, attempt):
            self.asked = [client for client, _ in orders]
            return orders

    collector = Alone(
        config=clock.config,
        stream=clock.stream,
        run=None,
        state=state,
        progress=progress,
        orders=clock.orders,
        courier=None,
        handshake=SimpleNamespace(update=lambda: None),
        assigner=SimpleNamespace(assign=lambda slots: Finetune.assign(None, state, [s.pair for s in slots], {}, None)),
        journal=SimpleNamespace(timed=lambda name: nullcontext()),
        stop=None,
        clock=clock,
        validator=None,
        spill=None,
    )
    clock.drawn = lambda stage, round_: clients
    return collector.round(), collector


def test_a_round_takes_as_long_as_its_slowest_client(tmp_path):
    clock = clock_of(config_of(tmp_path, ALIKE, epochs=3))
    gathered, _ = gather(clock, [1, 3])
    # 2 MB at 1 MB/s down, 3 epochs of 40 records at 1/s, 2 MB at 0.5 MB/s up.
    assert clock.timeline.now == 2 + 3 * 40 + 4
    assert clock.timeline.busy == (2 + 60 + 4) + (2 + 120 + 4)
    assert gathered.remarks(clock) == {"simulated": 126.0}


def test_over_selection_keeps_the_first_and_charges_the_others(tmp_path):
    clock = clock_of(config_of(tmp_path, ALIKE, over_select=1.5))
    assert clock.asked == 3
    gathered, collector = gather(clock, [3, 0, 2])
    assert collector.asked == [0, 2]
    assert [slot.client for slot in gathered.slots] == [0, 2]
    assert [client for client, _ in gathered.accepted] == [0, 2]
    assert clock.timeline.now == 2 + 30 + 4
    assert clock.timeline.busy == 16 + 36 + 46
    assert clock.timeline.late == 1
    assert gathered.remarks(clock)["late"] == [3]
    # The late client's tensors both ways; those of the others are counted by what carries them.
    assert collector.progress.traffic == {"down": 2_000_000, "up": 2_000_000, "orders": 1}


def test_clients_that_can_always_be_reached_are_those_of_a_run_without_a_clock(tmp_path):
    clock = clock_of(config_of(tmp_path, ALIKE))
    for round_ in range(5):
        assert clock.drawn(1, round_) == sample(clock.config.federation, clock.config.seed, 1, round_)


def test_a_round_waits_until_enough_clients_can_be_reached(tmp_path):
    clock = clock_of(config_of(tmp_path, "0,1,8,4,1,2\n1,1,8,4,5,9\n2,1,8,4,6,7\n3,1,8,4,20,21\n"))
    assert sorted(clock.drawn(0, 0)) == [1, 2]
    assert clock.timeline.now == 6 * 3600


def test_time_passes_however_little_a_client_is_still_away(tmp_path):
    clock = clock_of(config_of(tmp_path, ALIKE))
    # Of a run that stood still: after the first wait, rounding leaves one of half the last digit of the time.
    clock.fleet = [Device(1.0, 1.0, 1.0, (Window(58194.18506299979, 11774.183709588486),))]
    clock.timeline.now = 85251.39185249423
    clock.wait([0])
    assert 0 < clock.fleet[0].wait(clock.timeline.now) < 1e-10
    clock.wait([0])
    assert clock.reachable(0)


def test_clients_that_are_never_there_together_are_a_sentence(tmp_path):
    clock = clock_of(config_of(tmp_path, "0,1,8,4,1,2\n1,1,8,4,5,6\n"))
    with pytest.raises(RunError, match="at no moment of a day 2 clients can be reached together"):
        clock.drawn(0, 0)


def test_numbers_of_half_the_width_take_half_the_time(tmp_path):
    config = config_of(tmp_path, ALIKE)
    short = config.model_copy(update={"federation": config.federation.model_copy(update={"wire": "bfloat16"})})
    clock = clock_of(short)
    gather(clock, [0])
    assert clock.timeline.now == 1 + 10 + 2


def test_a_run_does_not_go_on_with_another_table_of_traces(tmp_path):
    clock = clock_of(config_of(tmp_path, ALIKE))
    timeline = Timeline(rounds=[1.0], traces=clock.timeline.traces)
    Clock(clock.config, Stream(), clock.orders, timeline)
    config_of(tmp_path, ALIKE.replace("3,1", "3,2"))
    with pytest.raises(ConfigError, match="is not what it was when the run began"):
        Clock(clock.config, Stream(), clock.orders, timeline)
