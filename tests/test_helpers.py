"""What the tests lean on can fail."""

import pytest

from tests.helpers.cases import check_each


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


def test_no_cases_are_no_success():
    with pytest.raises(AssertionError, match="no cases"):
        check_each([], print)
