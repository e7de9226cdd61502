from types import SimpleNamespace

import pytest

from fcit.config import RunConfig
from fcit.errors import RunError
from fcit.federation.messages import Scores
from fcit.methods.base import ServerState
from server import site_scores
from server.checkpoint import Progress


def scores(**changes) -> Scores:
    plain = {"client": 2, "scores": {"0": 50.0, "1": 100.0}, "counts": {"0": 10, "1": 5}, "seconds": 1.0}
    return Scores(**{**plain, **changes})


def test_honest_scores_are_believed():
    assert site_scores.reject_reason(scores()) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scores": {}, "counts": {}}, "at least one"),
        ({"counts": {"0": 10}}, "same tasks"),
        ({"scores": {"0": float("nan"), "1": 1.0}}, "between 0 and 229"),
        ({"scores": {"0": 229.0, "1": 1.0}}, "between 0 and 229"),
        ({"scores": {"../x": 1.0}, "counts": {"../x": 1}}, "numbered"),
        ({"scores": {"9" * 5000: 1.0}, "counts": {"9" * 5000: 1}}, "numbered"),
        ({"counts": {"0": 0, "1": 5}}, "0 questions"),
        ({"seconds": float("inf")}, "seconds"),
    ],
)
def test_other_scores_are_not(changes, says):
    assert says in site_scores.reject_reason(scores(**changes))


def test_worst_site_stands_beside_the_mean():
    row = {"0.0": 80.0, "0.1": 60.0, "1.0": 90.0, "11.0": 20.0}
    assert site_scores.summary(row) == {
        "sites": {"0": 70.0, "1": 90.0, "11": 20.0},
        "worst_site": {"site": "11", "score": 20.0},
    }
    assert site_scores.summary({}) == {}


def asked(stages: set[int]) -> site_scores.SiteEvaluation:
    """A survey that may ask after these stages, counted from 0; whom it asks is nobody."""
    method = SimpleNamespace(pooled=False, needs_task_at_inference=False)
    orders = SimpleNamespace(method=method, evaluates=stages.__contains__)
    courier = SimpleNamespace(nodes=[], send=lambda *arguments: iter(()))
    run = SimpleNamespace(events="events.jsonl", path="runs/a-1")
    return site_scores.SiteEvaluation(RunConfig(stream="site"), None, run, orders, courier, print)


def test_sites_are_asked_after_the_stages_of_evaluation_when():
    progress = Progress(stage=0)
    asked({1}).stage(ServerState(), progress)
    assert progress.row == {}
    with pytest.raises(RunError, match="stage 2: no site sent a usable score"):
        asked({1}).stage(ServerState(), Progress(stage=1))


def test_columns_are_those_of_the_last_row_there_is():
    rows = [{"0.0": 1.0, "1.0": 2.0}, {"0.0": 3.0}, {}]
    assert asked(set()).columns(Progress(rows=rows)) == ["0.0"]
    assert asked(set()).columns(Progress(rows=[{}])) == asked(set()).columns(Progress()) == []
