"""How long missing runs will take: as finished seeds took, else by formula, set right by what is finished."""

import json

import pytest

from fcit.bench.expected import expected, spent
from fcit.runs.folder import RunDir
from tests.bench.conftest import finish

#: What the formula says, by method; of one it knows nothing.
SAID = {"finetune": 10.0, "disco": 20.0, "olora": 40.0, "ewc": None}


def formula(config):
    return SAID[config.method["name"]]


@pytest.fixture
def made(planned):
    return planned(axes={"method": list(SAID)}, seeds=[0, 1, 2])


def took(run, **seconds: float) -> None:
    finish(run, {"a": [1.0]})
    results = RunDir(run.folder).results
    results.write_text(json.dumps({**json.loads(results.read_text()), "seconds": seconds}))


def run_of(made, name: str):
    return next(run for run in made.runs if run.name == name)


def test_without_any_finished_run_the_formula_counts(made):
    times = expected(made.runs, made.runs, 2, formula)
    assert times.seconds["disco-s1"] == 20
    assert times.seconds["ewc-s0"] is None
    assert times.unknown == 3
    assert times.together == 3 * (10 + 20 + 40) / 2
    assert times.known == "formula"


def test_finished_seeds_of_a_row_say_how_long_the_others_take(made):
    took(run_of(made, "disco-s0"), training=50.0, evaluation=10.0)
    took(run_of(made, "disco-s1"), training=70.0, evaluation=10.0)
    times = expected(made.runs, [run_of(made, "disco-s2")], 1, formula)
    assert times.seconds == {"disco-s2": 70}
    assert times.known == "2 finished runs"


def test_other_rows_set_the_formula_right(made):
    took(run_of(made, "finetune-s0"), training=30.0)  # three times what was said
    times = expected(made.runs, made.runs, 3, formula)
    assert times.seconds["finetune-s1"] == 30
    assert times.seconds["olora-s0"] == 3 * 40
    assert "finetune-s0" not in times.seconds
    assert times.known == "1 finished run and formula"


def test_no_bench_is_shorter_than_its_longest_run(made):
    times = expected(made.runs, [run_of(made, "olora-s0"), run_of(made, "finetune-s0")], 2, formula)
    assert times.together == 40


def test_what_does_not_say_how_long_it_took_is_left_out(made):
    finish(made.runs[0], {"a": [1.0]})
    assert spent(made.runs[0]) is None
    assert expected(made.runs, made.runs, 1, formula).known == "formula"
