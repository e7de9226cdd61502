import io
import sys

import pytest
from rich.console import Console

from fcit.io.console import Ticker
from fcit.runs.progress import ConsoleWatcher


@pytest.mark.parametrize(
    ("kind", "values", "line"),
    [
        ("absent", {"client": 2, "stage": 0, "round": 1}, "run: client 2 is not connected"),
        ("refused", {"client": 1, "reason": "client 1: torch is {x}\nmore"}, "run: client 1 is refused: torch is {x}"),
        (
            "round",
            {"stage": 0, "round": 0, "clients": [3, 7], "loss": {}, "up": 0, "down": 0, "idle": [7]},
            "run: client 7 learnt nothing: with training.schedule: trainer the first step of a local epoch has rate 0",
        ),
        (
            "rejected",
            {"client": 1, "reason": "\x1b]0;x\x07 is\x9b2J no\rthing"},
            "run: update of client 1 rejected: ?]0;x?",
        ),
        (
            "verified",
            {"asked": 3, "compared": 2, "differing": 1},
            "run: 2 of 3 answers that two clients were asked for were compared, 1 differ",
        ),
        (
            "privacy",
            {
                "epsilon": 7.9995,
                "epsilon_rdp": 8.6,
                "delta": 1e-5,
                "noise_multiplier": 2.0794,
                "releases": 12,
                "amplification": "none",
            },
            "run: differential privacy of clients: noise multiplier 2.08, epsilon 8 at delta 1e-05 after the whole "
            "run, 12 releases that count; amplification: none",
        ),
        (
            "record-privacy",
            {"epsilon": 8.0, "noise_multiplier": None, "delta": 1e-5, "clip": 1.0, "trainings": 3},
            "run: differential privacy of records by the clients: epsilon 8 at delta 1e-05; a record is trained on in "
            "up to 3 rounds",
        ),
        ("reused", {"clients": [0, 4]}, "run: updates of clients 0, 4 were accepted before the interruption"),
        (
            "discarded",
            {"client": 2, "order": "0-7"},
            "run: client 2 has answered order 0-7, which was dropped or overdue",
        ),
        ("dropped", {"clients": [2, 3]}, "run: the stage is over; what clients 2, 3 are at work on is dropped"),
        ("lost", {"clients": [2]}, "run: clients 2 were at work when the server ended; their orders are lost"),
    ],
)
def test_what_happens_to_clients_is_said_in_a_line(kind, values, line):
    out = io.StringIO()
    ConsoleWatcher(Console(file=out, width=200), "run").say(kind, **values)
    assert out.getvalue().startswith(line)
    assert out.getvalue().count("\n") == (2 if kind == "round" else 1)


def test_epsilon_so_far_stands_in_the_line_of_a_round():
    out = io.StringIO()
    watcher = ConsoleWatcher(Console(file=out, width=200), "run")
    values = {"stage": 0, "round": 0, "clients": [3], "loss": {"3/a": 1.5}, "up": 0, "down": 0}
    watcher.say("round", **values, privacy={"epsilon": 2.34567, "delta": 1e-5, "clip": 1.0})
    assert "clients 3 loss 1.500 epsilon 2.35 0.00 MB" in out.getvalue()
    watcher.say("round", **values, record_privacy={"epsilon": 1.2, "delta": 1e-5})
    assert "clients 3 loss 1.500 record epsilon 1.2 0.00 MB" in out.getvalue()


def test_real_hours_stand_in_the_line_of_a_round_that_did_not_wait():
    out = io.StringIO()
    watcher = ConsoleWatcher(Console(file=out, width=200), "run")
    watcher.say("round", stage=0, round=0, clients=[1], loss={"1/a": 1.0}, up=0, down=0, elapsed=5400.0)
    assert "loss 1.000 after 1.5 real h 0.00 MB" in out.getvalue()


def test_a_round_without_updates_has_no_loss():
    out = io.StringIO()
    values = {"stage": 0, "round": 0, "clients": [], "loss": {}, "up": 0, "down": 0}
    ConsoleWatcher(Console(file=out, width=200), "run").say("round", **values)
    assert "clients none no updates 0.00 MB" in out.getvalue()


def test_a_loss_that_private_clients_keep_is_not_shown_as_zero():
    out = io.StringIO()
    values = {"stage": 0, "round": 0, "clients": [3], "loss": {"3/a": None}, "up": 0, "down": 0}
    ConsoleWatcher(Console(file=out, width=200), "run").say("round", **values)
    assert "clients 3 loss not sent 0.00 MB" in out.getvalue()


def test_work_that_takes_long_says_how_fast_it_goes(monkeypatch, capsys):
    now = iter([0.0, 4.0, 12.0, 15.0, 24.0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    said = Ticker("images encoded", 2000, lambda: next(now))
    for count in (400, 1200, 1500, 1800):
        said.reached(count)
    assert capsys.readouterr().err.splitlines() == [
        "1,200 of 2,000 images encoded, 100 a second, 8 s left",
        "1,800 of 2,000 images encoded, 75 a second, 3 s left",
    ]


def test_nothing_is_said_where_nobody_watches(capsys):
    Ticker("images encoded", 10, iter([0.0, 60.0]).__next__).reached(5)
    assert capsys.readouterr().err == ""
