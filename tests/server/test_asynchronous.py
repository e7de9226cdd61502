"""Events, buffer, staleness and resumption of asynchronous runs, with clients that are a line of arithmetic."""

import copy
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from fcit import config as configuration
from fcit.errors import RunError
from fcit.federation.messages import ClientUpdate
from fcit.fedopt.staleness import RULES
from fcit.methods.base import ServerState
from fcit.methods.finetune import Finetune
from fcit.runs.folder import RunDir
from server import checkpoint
from server.checkpoint import Progress
from server.clock import Clock
from server.dispatch import Dispatcher
from server.late import LateSpill
from server.orders import Orders
from server.simulated import SimulatedCollector
from server.timeline import Timeline

pytestmark = pytest.mark.usefixtures("lowest_first")

#: Seconds that each client needs for its one record; links are too fast to count.
SECONDS = (10, 4, 3, 7, 20, 5, 5, 5)


class Stream:
    def slots(self, stage):
        return [(0,), (1,)]

    def most_records(self, client, tasks):
        return 1


class Run:
    """An asynchronous run of toys: client k moves its only number by k + 1."""

    def __init__(self, folder, restored=None, rounds=3, backwards=False, refuses=(), windows="", **settings):
        folder.mkdir(exist_ok=True)
        path = folder / "traces.csv"
        rows = [f"{k},{1 / s},1e9,1e9,{windows or ','}" for k, s in enumerate(SECONDS)]
        path.write_text("client,speed,down,up,begin,end\n" + "\n".join(rows) + "\n")
        raw = {
            "method": "finetune",
            "federation": {"mode": "async", "clients": len(SECONDS), "clients_per_round": 2, "rounds": rounds},
            "devices": {"profile": str(path)},
            "asynchronous": {"a": 1.0, **settings},
        }
        self.config = configuration.parse(raw)
        self.folder = RunDir(folder)
        self.state, self.progress = restored or (
            ServerState(subspaces={"0": {"x": np.zeros(1, np.float32)}}),
            Progress(timeline=Timeline()),
        )
        self.backwards, self.refuses, self.trained, self.events = backwards, set(refuses), [], []
        self.method = Finetune(self.config)
        fedopt = SimpleNamespace(broadcast=lambda t, memory: {}, extra_shapes=lambda trained: {})
        orders = Orders(self.config, Stream(), self.method, fedopt)
        clock = Clock(self.config, Stream(), orders, self.progress.timeline)
        rule = RULES[self.config.asynchronous.rule](self.config.asynchronous)
        self.spill = LateSpill(self.folder, rule, self.progress.timeline.flights)
        parts = {
            "config": self.config,
            "stream": Stream(),
            "state": self.state,
            "progress": self.progress,
            "orders": orders,
            "clock": clock,
        }
        run = self

        class Toys(SimulatedCollector):
            def _ask(self, asked, attempt):
                run.trained.append(sorted(client for client, _ in asked))
                done = {}
                for pair, order in sorted(asked.items(), reverse=run.backwards):
                    if order.client not in run.refuses:
                        self.spill.put(order, run.update(order))
                        done[pair] = order
                return done

        self.collector = Toys(
            **parts,
            run=self.folder,
            courier=SimpleNamespace(count=lambda order, update: None),
            handshake=None,
            assigner=None,
            journal=SimpleNamespace(
                timed=lambda name: nullcontext(),
                round_event=lambda kind, **values: self.events.append((kind, values)),
                show=lambda kind, **values: None,
            ),
            stop=None,
            validator=SimpleNamespace(reject_reason=lambda *args: None),
            spill=self.spill,
            dispatcher=Dispatcher(**parts, assign=self.assign),
        )

    def assign(self, slots):
        self.method.assign(self.state, [slot.pair for slot in slots], {}, None)

    def update(self, order) -> ClientUpdate:
        return ClientUpdate(
            **order.answered,
            examples=1,
            steps=1,
            loss=0.0,
            seconds=0.0,
            tensors={"x": order.tensors["x"] + np.float32(order.client + 1)},
        )

    def round(self, killed: bool = False) -> tuple[list[int], list[int]]:
        """One server update, with its checkpoint unless the process is killed before; clients and their staleness."""
        gathered = self.collector.round()
        updates = [update.tensors["x"] for update in self.spill]
        self.state.subspaces["0"] = {"x": np.mean(updates, axis=0, dtype=np.float64).astype(np.float32)}
        self.state.turns["0"] = self.state.turns.get("0", 0) + 1
        self.progress.round += 1
        if not killed:
            checkpoint.save(self.folder, self.state, self.progress)
            self.spill.clear()
        clients = [slot.client for slot in gathered.slots]
        return clients, [gathered.staleness.get(client, -1) for client in clients]

    @property
    def x(self) -> float:
        return float(self.state.subspaces["0"]["x"][0])

    @property
    def now(self) -> float:
        return self.progress.timeline.now


def test_the_first_updates_step_and_late_ones_count_less(tmp_path):
    run = Run(tmp_path)
    # 0 and 1 begin; 1 comes at 4 and 2 takes its place; 2 comes at 7.
    assert run.round() == ([1, 2], [0, 0])
    assert run.now == pytest.approx(7)
    assert run.trained == [[0, 1, 2]]  # together, though 0 is not back yet
    assert run.x == (2 + 3) / 2
    # 1 takes the place of 2 and needs until 11; 0 comes at 10, and 2 takes its place until 13.
    assert run.round() == ([0, 1], [1, 0])
    assert run.now == pytest.approx(11)
    assert run.trained[1:] == [[1, 2]]
    # 0 has moved by 1 from where it began and counts half: 2.5 + 1/2; 1 is fresh: 2.5 + 2.
    assert run.x == (3.0 + 4.5) / 2
    assert run.progress.timeline.staleness == {"0": 3, "1": 1}


def test_what_cannot_come_before_the_end_of_a_stage_is_not_trained_and_is_dropped(tmp_path):
    run = Run(tmp_path, rounds=1)
    assert run.round() == ([1, 2], [0, 0])
    assert run.trained == [[1, 2]]
    assert run.events == [("dropped", {"clients": [0]})]
    timeline = run.progress.timeline
    assert timeline.flights == {}
    assert timeline.dropped == 1
    assert timeline.busy == pytest.approx(4 + 3 + 7)  # 0 was at work for nothing
    assert run.progress.traffic == {"up": 0, "down": 4, "orders": 1, "rejected": 0}


def test_the_order_of_replies_changes_nothing(tmp_path):
    one, other = Run(tmp_path / "a"), Run(tmp_path / "b", backwards=True)
    assert [one.round() for _ in range(3)] == [other.round() for _ in range(3)]
    assert one.x == other.x


@pytest.mark.parametrize("rule", [{}, {"rule": "fedasync", "mixing": 0.5}])
def test_a_run_goes_on_from_either_of_its_last_checkpoints(tmp_path, rule):
    settings = {"rounds": 5, **rule}
    whole = Run(tmp_path / "whole", **settings)
    expected = [(whole.round(), whole.x, whole.now) for _ in range(5)]

    run = Run(tmp_path / "killed", **settings)
    done = [(run.round(), run.x, run.now) for _ in range(3)]
    run.round(killed=True)
    for back in range(2):
        folder = shutil.copytree(tmp_path / "killed", tmp_path / f"again-{back}")
        again = Run(folder, restored=checkpoint._read(checkpoint.complete(run.folder)[back]), **settings)
        assert [(again.round(), again.x, again.now) for _ in range(2 + back)] == expected[3 - back :]
    assert done == expected[:3]


def test_orders_of_a_round_that_was_cut_off_are_not_trained_twice(tmp_path):
    run = Run(tmp_path)
    run.round(killed=True)
    again = Run(tmp_path)
    assert again.round() == ([1, 2], [0, 0])
    assert again.trained == [[]]
    assert again.events == [("reused", {"clients": [0, 1, 2]})]
    assert again.x == run.x


def test_files_go_when_no_checkpoint_needs_them(tmp_path):
    run = Run(tmp_path, rounds=4)
    before: set[str] = set()
    for _ in range(3):
        run.round()
        held = set(run.progress.timeline.flights)
        assert {file.stem for file in run.folder.late.iterdir()} == held | before
        before = held


def test_a_file_that_is_gone_is_a_sentence(tmp_path):
    run = Run(tmp_path)
    run.round()
    for file in run.folder.late.iterdir():
        file.unlink()
    with pytest.raises(RunError, match=r"late/0-0\.safetensors: is missing, and the checkpoint needs it"):
        run.round()


def test_a_rejected_update_takes_its_place_and_counts_for_nothing(tmp_path):
    run = Run(tmp_path, refuses=[1, 0])
    assert run.round() == ([1, 2], [-1, 0])
    assert run.x == 3
    clients, staleness = run.round()
    assert clients[0] == 0
    assert staleness[0] == -1  # rejected when it was trained, found out when it comes


def test_too_few_updates_end_the_run_with_a_sentence(tmp_path):
    run = Run(tmp_path, refuses=range(8))
    with pytest.raises(RunError, match=r"0 usable updates, 1 needed"):
        run.round()


def test_concurrency_and_buffer_are_of_different_clients(tmp_path):
    run = Run(tmp_path, concurrency=4, buffer=3, rounds=6)
    for _ in range(5):
        clients, _ = run.round()
        assert len(set(clients)) == 3
        flying = [flight.order.client for flight in run.progress.timeline.flights.values()]
        assert len(set(flying)) == len(flying) == 3


def test_a_client_is_given_an_order_only_while_it_can_be_reached(tmp_path):
    run = Run(tmp_path, windows="2,3")
    run.round()
    assert run.now == pytest.approx(2 * 3600 + 7)


def without(run: Run, refuses) -> list:
    """Let shards be left out; returns the list of those that are asked for."""
    assign, asked = run.collector.dispatcher.assign, []

    def some(slots):
        asked.extend((slot.client, slot.tasks) for slot in slots)
        assign([slot for slot in slots if not refuses(slot)])

    run.collector.dispatcher.assign = some
    return asked


def test_an_order_that_no_one_takes_costs_no_time(tmp_path):
    run = Run(tmp_path, concurrency=1)
    asked = without(run, lambda slot: slot.client == 0)
    assert run.round() == ([1, 2], [0, 0])
    assert run.now == pytest.approx(4 + 3)
    assert asked[:3] == [(0, (0,)), (0, (1,)), (1, (0,))]  # neither of its shards


def test_a_client_that_is_left_out_with_one_shard_may_train_another(tmp_path):
    run = Run(tmp_path, concurrency=1, buffer=1)
    asked = without(run, lambda slot: slot.tasks == (0,))
    assert run.round() == ([0], [0])
    assert run.now == pytest.approx(10)
    assert asked == [(0, (0,)), (0, (1,))]


def test_where_everyone_is_left_out_a_sentence_says_so(tmp_path):
    run = Run(tmp_path, concurrency=1)
    without(run, lambda slot: True)
    with pytest.raises(RunError, match="no client could be given an order"):
        run.round()


def test_heterogeneous_slots_are_gone_through_in_turn(tmp_path):
    run = Run(tmp_path, concurrency=4)
    run.collector.round()
    timeline = run.progress.timeline
    tasks = {f.name: f.order.tasks for f in timeline.flights.values()}
    assert all(tasks[name] == [int(name.partition("-")[2]) % 2] for name in tasks)
    assert copy.deepcopy(timeline) == timeline
