"""What ``python -m tests.evidence.peers`` makes of its measurements; the programs themselves run there only."""

import pytest

from tests.evidence.peers import compare

PLAN = {
    "batch_size": 16,
    "stages": [
        {"rounds": [[{"records": 17}, {"records": 16}], [{"records": 17}, {"records": 16}]], "evaluate": ["a"]},
        {"rounds": [[{"records": 1}], [{"records": 1}]], "evaluate": ["a", "b"]},
    ],
    "questions": {"a": {"asked": [{}] * 3}, "b": {"asked": [{}] * 2}},
}
WORK = {"steps": 8, "records": 68, "answers": 8, "loss": 0.5, "accuracy": 0.25}


def a_pass(**walls: float) -> dict[str, compare.Measured]:
    return {
        name.replace("_", "-"): {"wall": wall, "cpu": None if name == "flowertune" else wall / 2, "work": WORK}
        for name, wall in walls.items()
    }


def test_the_work_of_a_plan():
    assert compare.expected(PLAN) == {"steps": 8, "records": 68, "answers": 8}


def test_the_work_of_the_plan_is_accepted():
    compare.check("bare", WORK, compare.expected(PLAN))


@pytest.mark.parametrize("name", compare.WORK)
def test_other_work_is_refused(name):
    with pytest.raises(ValueError, match=f"bare: 7 {name} instead of {WORK[name]}; its time cannot be compared"):
        compare.check("bare", {**WORK, name: 7}, compare.expected(PLAN))


def test_an_answer_is_exact_whatever_its_case_and_blanks():
    assert compare.exact([" Red", "a dog", "cat"], [["red"], ["the dog", "A dog"], ["dog"]]) == 2


def test_ratios_are_pass_by_pass():
    passes = [a_pass(fcit_inline=20, bare=18), a_pass(fcit_inline=10, bare=11), a_pass(fcit_inline=40, bare=40)]
    assert compare.summary(passes)["bare"] == {
        "wall": 18,
        "cpu": 9,
        "ratios": [0.9, 1.1, 1.0],
        "ratio": 1.0,
        "accuracy": 0.25,
        "loss": 0.5,
    }


def test_the_table_has_a_line_for_each_program():
    lines = compare.table(compare.summary([a_pass(fcit_inline=20, flowertune=30)])).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["fcit-inline", "20.00", "10.00", "1.000", "[1.000,", "1.000]", "25.0%", "0.500"],
        ["flowertune", "30.00", "-", "1.500", "[1.500,", "1.500]", "25.0%", "0.500"],
    ]


def test_without_the_reference_there_are_no_ratios():
    [line] = compare.table(compare.summary([a_pass(bare=20)])).splitlines()[1:]
    assert line.split() == ["bare", "20.00", "10.00", "-", "25.0%", "0.500"]
