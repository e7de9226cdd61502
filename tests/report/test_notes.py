"""What a report says in words beside its numbers."""

import io
import json

import pytest
from rich.console import Console

from clients.worker.training import learning_rates
from fcit import config as configuration
from fcit.config import Training
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.federation.messages import ClientUpdate
from fcit.report import figures, hours, notes, page, terminal
from fcit.runs.folder import RunDir
from fcit.runs.reader import Run
from server.journal import remarks


@pytest.fixture
def made(tmp_path):
    """A run folder with these rounds, each a list of (client, subspace, records); returns it read."""

    def _made(rounds: list[list[tuple[int, str, int]]], idle=(), method="disco", left_out=0, how=(), **more) -> Run:
        raw = {"benchmark": "fcit-mini-short", "method": method, **more}
        folder = RunDir.place(tmp_path / method, configuration.dump(configuration.parse(raw)), {"python": "3"})
        matrix = AccuracyMatrix(["iconqa", "figureqa"], [{"iconqa": 80.0}])
        folder.matrix.write_text(json.dumps(matrix.to_json()))
        lines = []
        for number, slots in enumerate(rounds):
            clients, subspaces, examples = (list(column) for column in zip(*slots, strict=True))
            event = {"event": "round", "stage": 0, "round": number, "clients": clients, "subspaces": subspaces}
            event |= {"examples": examples, "tasks": [[0]] * len(slots), "loss": {}, "up": 0, "down": 0, "seconds": 1}
            event |= {"idle": idle[number]} if idle else {}
            event |= {"how": how[number]} if how else {}
            lines.append(json.dumps(event) + "\n")
        lines += [json.dumps({"event": "left-out", "clients": [1]}) + "\n"] * left_out
        folder.events.write_text("".join(lines))
        return Run(folder.path)

    return _made


def test_subspaces_that_one_client_trained_are_named(made):
    run = made([[(1, "0", 90), (2, "1", 2), (3, "0", 5)], [(2, "1", 2), (4, "2", 1), (5, "2", 0)]])
    (said,) = notes.notes(run)
    assert said == (
        "Only one client ever trained subspaces 1 (client 2: 2 records in each of 2 rounds), 2 (client 4: 1 record); "
        "method.min_records keeps small clients from opening their own."
    )
    assert said in page.render([run])
    console = Console(width=400, record=True, file=io.StringIO())
    terminal.show(console, [run])
    assert said in console.export_text()


@pytest.mark.parametrize(("method", "extra", "label"), [("finetune", False, "stage"), ("mrlora", True, "round")])
def test_without_a_federation_the_course_is_of_stages_unless_a_method_adds_rounds(made, method, extra, label):
    federation = {"clients": 1, "clients_per_round": 1, "rounds": 1}
    run = made([[(0, "0", 9)], [(0, "0", 9)]], method=method, setting="centralised", federation=federation)
    if extra:
        first, second = run.folder.events.read_text().splitlines()
        run.folder.events.write_text(f'{first}\n{second[:-1]}, "extra": true}}\n')
    assert [axis.get_xlabel() for axis in figures.course(run).axes] == [label]


def test_steps_that_float16_could_not_hold_are_counted(made):
    how = [[{"steps_overflowed": 2}, {}], [{"steps_overflowed": 1}, {"dtype": "float16"}]]
    run = made([[(1, "0", 9), (2, "0", 9)]] * 2, how=how)
    assert notes.notes(run) == ["3 steps overflowed in float16 and were left out."]


def test_of_another_method_no_option_is_named(made):
    (said,) = notes.notes(made([[(1, "0", 9), (2, "1", 2)], [(3, "0", 1)]], method="olora"))
    assert said == "Only one client ever trained subspace 1 (client 2: 2 records)."


def test_what_secure_aggregation_showed_the_server(made):
    run = made([], left_out=2, privacy={"secure_aggregation": "on", "min_group": 4})
    (note,) = notes.notes(run)
    assert note.startswith("Secure aggregation: the server saw sums of 4 updates or more; records and losses shown")
    assert note.endswith("Times that a group had no sum and was left out: 2.")


def test_nothing_is_said_where_clients_share(made):
    assert notes.notes(made([[(1, "0", 9), (2, "1", 2)], [(2, "0", 1), (1, "1", 1)]])) == []


def test_nothing_is_said_of_pooled_data_and_of_a_federation_of_one(made):
    assert notes.notes(made([[(-1, "0", 9)], [(-1, "1", 9)]], method="individual")) == []
    assert notes.notes(made([[(0, "0", 9)], [(0, "1", 9)]])) == []


def test_epochs_that_learnt_nothing_are_counted(made):
    run = made([[(1, "0", 9), (2, "0", 2)], [(1, "0", 9), (2, "0", 2), (3, "0", 0)]], idle=[[2], [2]])
    assert notes.notes(run) == [
        "In 2 of 4 local epochs nothing was learnt: they have one optimiser step, whose rate is 0 with "
        "training.schedule: trainer (client 2)."
    ]


def head(client: int, steps: int) -> ClientUpdate:
    return ClientUpdate(
        stage=0,
        round=0,
        client=client,
        shard="s",
        subspace="0",
        examples=4,
        steps=steps,
        loss=0.5,
        seconds=0.1,
        tensors={},
    )


def test_a_round_names_who_learnt_nothing():
    heads = [head(3, 1), None, head(5, 2)]
    assert remarks(heads, Training(schedule="trainer")) == {"idle": [3]}
    assert remarks(heads, Training()) == remarks(heads, Training(schedule="trainer", warmup_ratio=0)) == {}


@pytest.mark.parametrize("schedule", ["trainer", "cosine", "constant"])
@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.9])
def test_who_learns_nothing_is_known_without_a_schedule(schedule, ratio):
    training = Training(schedule=schedule, warmup_ratio=ratio)
    for steps in range(1, 40):
        assert training.moves(steps) is (sum(learning_rates(training, steps)) > 0)


SPENT = {
    "epsilon": 7.9995,
    "epsilon_rdp": 8.59885,
    "epsilon_replaced": 19.12,
    "delta": 1e-5,
    "noise_multiplier": 2.079,
    "clip": 0.9,
    "releases": 12,
    "after_stages": [{"epsilon": 4.2}, {"epsilon": 7.9995}],
    "by_subspace": {"0": {"epsilon": 5.5}, "shared": {"epsilon": 7.9995}},
    "not_covered": ["losses", "scores"],
    "public_noise": False,
    "amplification": "none: participants follow from the seed",
}


def private(run, **spent):
    """The run as a finished one with differential privacy."""
    raw = configuration.load_resolved(run.folder.config).model_dump(mode="json")
    raw["privacy"] |= {"client_dp": "on", "epsilon": 8.0}
    run.folder.config.write_text(configuration.dump(configuration.parse(raw)))
    if spent:
        run.folder.results.write_text(json.dumps({"privacy": {**SPENT, **spent}}))
    return Run(run.path)


def test_what_privacy_costs_and_what_it_does_not_cover(made):
    first, second = notes.privacy(private(made([[(1, "0", 9)]]), clip=0.9))
    assert "epsilon 8 at delta 1e-05 for a client's contribution replaced by zero" in first
    assert "12 releases that count. Amplification: none: participants follow from the seed." in first
    assert first.endswith("After the stages: 4.2, 8. Spent on single parts: subspace 0 5.5, shared 8.")
    assert second == "Epsilon says nothing about: losses; scores."


def test_noise_that_anyone_can_subtract_is_named(made):
    *_, last = notes.privacy(private(made([[(1, "0", 9)]]), public_noise=True))
    assert last.endswith("this run keeps nothing private.")


def test_privacy_of_a_run_that_goes_on(made):
    run = private(made([[(1, "0", 9)]]))
    assert notes.privacy(run) == []
    event = {"event": "round", "privacy": {"epsilon": 3.14159, "delta": 1e-5, "clip": 1.0}}
    run.folder.events.write_text(json.dumps(event) + "\n")
    assert notes.privacy(Run(run.path)) == ["Differential privacy of clients: epsilon 3.14 so far."]


RECORDS = {
    "epsilon": 3.14159,
    "epsilon_rdp": 3.5,
    "delta": 1e-5,
    "noise_multiplier": 0.9,
    "clip": 1.0,
    "after_stages": [2.0, 3.14159],
    "clients": {"1": {"epsilon": 2.5}, "7": {"epsilon": 3.14159}},
    "not_covered": ["losses"],
    "public_noise": False,
}


def with_private_records(run, **spent):
    raw = configuration.load_resolved(run.folder.config).model_dump(mode="json")
    raw["privacy"] |= {"record_dp": "on", "record_epsilon": 8.0}
    run.folder.config.write_text(configuration.dump(configuration.parse(raw)))
    if spent:
        run.folder.results.write_text(json.dumps({"record_privacy": {**RECORDS, **spent}}))
    return Run(run.path)


def test_what_privacy_of_records_costs(made):
    first, second = notes.record_privacy(with_private_records(made([[(1, "0", 9)]]), clip=0.5))
    assert first.startswith("Differential privacy of records: epsilon 3.14 at delta 1e-05 for one record added or remo")
    assert first.endswith("clipping norm 0.5. After the stages: 2, 3.14. client 7 3.14, client 1 2.5.")
    assert second == "Epsilon of records says nothing about: losses."


def test_records_whose_noise_anyone_can_subtract(made):
    *_, last = notes.record_privacy(with_private_records(made([[(1, "0", 9)]]), public_noise=True))
    assert last.endswith("records are not private.")


def test_privacy_of_records_in_a_run_that_goes_on(made):
    run = with_private_records(made([[(1, "0", 9)]]))
    assert notes.record_privacy(run) == []
    event = {"event": "round", "record_privacy": {"epsilon": 2.5, "delta": 1e-5}}
    run.folder.events.write_text(json.dumps(event) + "\n")
    assert notes.record_privacy(Run(run.path)) == ["Differential privacy of records: epsilon 2.5 so far."]


def test_accuracy_against_simulated_hours_is_drawn_where_a_run_has_a_clock(made):
    run = made([[(1, "0", 90)]])
    assert hours.curve(run) == []
    run.folder.results.write_text(json.dumps({"method": "disco", "simulated": {"stages": [7200.0, 9000.0]}}))
    assert hours.curve(run) == [(2.0, 80.0)]
    (axis,) = hours.against_hours([run]).axes
    assert axis.get_xlabel() == "simulated hours"


def test_a_deployment_that_did_not_wait_says_its_hours_and_what_was_of_no_use(made):
    run = made([[(1, "0", 90)]])
    assert notes.real_time(run) == []
    times = {"seconds": 9000.0, "rounds": [1.0, 2.0], "stages": [7200.0]}
    counts = {"staleness": {"0": 3, "2": 1}, "dropped": 2, "lost": 0, "discarded": 1}
    run.folder.results.write_text(json.dumps({"method": "disco", "real_time": {**times, **counts}}))
    run = Run(run.path)
    assert hours.curve(run) == []
    assert hours.curve(run, hours.REAL) == [(2.0, 80.0)]
    (axis,) = hours.against_hours([run], hours.REAL).axes
    assert axis.get_xlabel() == "real hours"
    assert notes.real_time(run) == [
        "2 server updates without waiting, in 2.5 real hours with all evaluations but the last: 4 updates of sites "
        "were used, trained 0.5 server updates earlier on average; orders of no use: 2 at the end of a stage, 1 with a "
        "reply after their time. The order in which they came is that of no other run; `arrived` events have it."
    ]
