"""CPU seconds of clients' work: counted where it is done in the run's own process, added up by part of the run."""

import time
from types import SimpleNamespace

import pytest

from fcit import config as configuration
from fcit.federation.engines.inline import InlineGrid
from server import results
from server.checkpoint import Progress
from server.journal import Journal

CONFIG = {"benchmark": "fcit-mini-short", "method": "finetune"}


def test_the_inline_engine_counts_what_clients_work_and_not_what_they_wait():
    def app(message, context):
        time.sleep(0.05)
        begin = time.process_time()
        while time.process_time() - begin < 0.02:
            pass
        return message

    grid = InlineGrid(app, 2)
    message = SimpleNamespace(metadata=SimpleNamespace(dst_node_id=1))
    for _ in range(2):
        grid._work(message)
    assert 0.04 <= grid.cpu_seconds < 0.09


def test_a_client_that_fails_has_worked_too():
    def app(message, context):
        begin = time.process_time()
        while time.process_time() - begin < 0.01:
            pass
        raise KeyboardInterrupt

    grid = InlineGrid(app, 1)
    with pytest.raises(KeyboardInterrupt):
        grid._work(SimpleNamespace(metadata=SimpleNamespace(dst_node_id=1)))
    assert grid.cpu_seconds >= 0.01


def journal(progress: Progress, steps: list[float]) -> Journal:
    """One that is told this many seconds, one after the other."""
    told = iter(steps)
    return Journal(None, None, progress, lambda: next(told))


def test_seconds_are_added_up_by_part():
    progress = Progress()
    journaled = journal(progress, [0.0, 2.0, 2.0, 5.0, 5.0, 5.0])
    for part in ("training", "training", "checkpoint"):
        with journaled.timed(part):
            pass
    assert progress.cpu_seconds == {"training": 5.0}  # other parts have none of clients
    assert set(progress.seconds) == {"training", "checkpoint"}


def test_a_run_that_an_older_version_began_has_none():
    progress = Progress(cpu_seconds=None)
    with journal(progress, [0.0, 2.0]).timed("training"):
        pass
    assert progress.cpu_seconds is None


@pytest.mark.parametrize(
    ("spent", "more", "cost"),
    [
        (
            {"training": 8.0, "measuring": 2.0, "evaluation": 3.0, "describe": 9.0},
            {},
            {"client_cpu_seconds": 2.5, "cpu_seconds_per_sample": 0.03},
        ),
        ({"evaluation": 3.0}, {}, {"cpu_seconds_per_sample": 0.03}),
        ({"training": 8.0, "evaluation": 3.0}, {"evaluation": {"personal": True}}, {"client_cpu_seconds": 2.0}),
        ({}, {}, {}),
        (None, {}, {}),
    ],
)
def test_the_cost_of_a_client_in_a_round_and_of_an_answer(spent, more, cost):
    config = configuration.parse({**CONFIG, **more})
    assert results._cpu(config, Progress(cpu_seconds=spent, client_rounds=4, samples=100)) == cost
