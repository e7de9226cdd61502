"""What the tests lean on can fail."""

import importlib
from pathlib import Path

import pytest

from tests.helpers.cases import check_each
from tests.helpers.commands import Process
from tests.helpers.superlink import alive
from tests.helpers.waiting import wait

ROOT = Path(__file__).parents[1]


def test_every_case_that_fails_is_named():
    def check(value: int) -> None:
        assert value % 2 == 0, f"{value} is odd"
        if value == 4:
            with pytest.raises(ValueError):
                pass

    with pytest.raises(AssertionError) as caught:
        check_each({"one": 1, "two": 2, "three": 3, "four": 4}, check)
    first, *lines = str(caught.value).splitlines()
    assert first == "3 of 4 cases failed"
    assert [line.partition(":")[0] for line in lines if ": " in line and "at /" in line] == ["one", "three", "four"]


def test_every_evidence_run_can_be_imported():
    """They run for hours and seldom; what they share with the tests may have moved meanwhile."""
    files = sorted((Path(__file__).parent / "evidence").rglob("*.py"))
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    assert len(names) > 30
    check_each({name: name for name in sorted(names)}, importlib.import_module)


def test_no_cases_are_no_success():
    with pytest.raises(AssertionError, match="no cases"):
        check_each([], print)


def test_a_forked_process_has_streams_and_an_exit_code():
    process = Process("tests.helpers.forkserver:execute", "import sys; print('out'); sys.exit('err')")
    assert process.wait() == 1
    assert process.stdout == "out\n"
    assert process.stderr == "err\n"


def test_a_forked_process_is_killed_with_the_one_that_wanted_it():
    process = Process("tests.helpers.forkserver:execute", "import time; time.sleep(900)")
    pid = process.pid
    assert alive(pid)
    del process
    wait(lambda: not alive(pid))
