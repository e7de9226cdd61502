import pytest

from fcit.federation.records import Scores
from server import survey


def scores(**changes) -> Scores:
    plain = {"client": 2, "scores": {"0": 50.0, "1": 100.0}, "counts": {"0": 10, "1": 5}, "seconds": 1.0}
    return Scores(**{**plain, **changes})


def test_honest_scores_are_believed():
    assert survey.problem(scores()) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scores": {}, "counts": {}}, "at least one"),
        ({"counts": {"0": 10}}, "same tasks"),
        ({"scores": {"0": float("nan"), "1": 1.0}}, "between 0 and 100"),
        ({"scores": {"0": 101.0, "1": 1.0}}, "between 0 and 100"),
        ({"scores": {"../x": 1.0}, "counts": {"../x": 1}}, "numbered"),
        ({"scores": {"9" * 5000: 1.0}, "counts": {"9" * 5000: 1}}, "numbered"),
        ({"counts": {"0": 0, "1": 5}}, "0 questions"),
        ({"seconds": float("inf")}, "seconds"),
    ],
)
def test_other_scores_are_not(changes, says):
    assert says in survey.problem(scores(**changes))


def test_worst_site_stands_beside_the_mean():
    row = {"0.0": 80.0, "0.1": 60.0, "1.0": 90.0, "11.0": 20.0}
    assert survey.summary(row) == {
        "sites": {"0": 70.0, "1": 90.0, "11": 20.0},
        "worst_site": {"site": "11", "score": 20.0},
    }
    assert survey.summary({}) == {}
