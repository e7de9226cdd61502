"""The paired bootstrap on cases small enough to check by hand."""

import numpy as np
import pytest

from fcit import seeding
from fcit.bench import bootstrap
from fcit.runs.reader import Run
from tests.bench.conftest import finish


def interval(*cells: list[float], resamples: int = 4000) -> tuple[float, float, float]:
    """Each list is a dataset of one seed."""
    found = {0: {str(n): marked(cell) for n, cell in enumerate(cells)}}
    return bootstrap.interval(found, seeding.generator(0, "test"), resamples)


def marked(differences: list[float]) -> bootstrap.Cell:
    """Two runs whose marks differ so."""
    keys = tuple((str(n), 0) for n in range(len(differences)))
    ours, theirs = (np.array(values, dtype=float)[:, None] for values in (differences, [0.0] * len(differences)))
    return bootstrap.Cell(*(bootstrap.Answered(keys, values, bootstrap.mean_mark) for values in (ours, theirs)))


def test_equal_differences_have_no_width():
    assert interval([1.0] * 5) == (100.0, 100.0, 100.0)
    assert interval([0.0] * 5, [-0.5] * 3) == pytest.approx((-25.0, -25.0, -25.0))


def test_two_records():
    """Of {0, 1} two draws give 0, 50 or 100 with chances 1/4, 1/2, 1/4."""
    assert interval([0.0, 1.0]) == (50.0, 0.0, 100.0)
    draws = bootstrap.resampled_means(np.array([0.0, 1.0]), np.random.default_rng(0), 40_000)
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / 40_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_the_interval_is_that_of_the_binomial():
    """100 records, half of them better: standard error 100 * sqrt(0.25 / 100) = 5 points."""
    _, low, high = interval([0.0, 1.0] * 50, resamples=20_000)
    assert (low, high) == pytest.approx((50 - 1.96 * 5, 50 + 1.96 * 5), abs=0.8)


def test_datasets_weigh_the_same_whatever_their_size():
    assert interval([1.0], [0.0] * 99)[0] == 50.0


def test_chunks_are_the_same_distribution(monkeypatch):
    values = np.random.default_rng(1).random(50)
    monkeypatch.setattr(bootstrap, "CHUNK", 120)  # two resamples at a time
    draws = bootstrap.resampled_means(values, np.random.default_rng(0), 3001)
    assert len(draws) == 3001
    assert draws.mean() == pytest.approx(values.mean(), abs=0.005)
    assert draws.std() == pytest.approx(values.std() / np.sqrt(50), rel=0.06)


@pytest.fixture
def pair(planned):
    """Make finished runs of two rows with given marks; returns their runs by seed."""

    def make(ours: dict, theirs: dict, seeds=(0,), **more):
        made = planned(axes={"method": ["finetune", "disco"]}, seeds=list(seeds))
        for run in made.runs:
            finish(run, ours if run.row.label == "disco" else theirs, **more)
        return [{r.seed: Run(r.folder) for r in made.runs if r.row.label == name} for name in ("disco", "finetune")]

    return make


def test_sign_and_reproducible(pair):
    ours, theirs = pair({"a": [1, 1, 1, 0], "b": [1, 0]}, {"a": [1, 0, 0, 0], "b": [1, 0]}, seeds=(0, 1))
    found = bootstrap.difference("x", ours, theirs)
    assert found.estimate == pytest.approx(25.0)
    assert found.by_seed == {0: 25.0, 1: 25.0}
    assert found.datasets == ("a", "b")
    assert found.low < found.estimate < found.high
    assert bootstrap.difference("x", ours, theirs) == found
    mirrored = bootstrap.difference("x", theirs, ours)
    assert mirrored.estimate == pytest.approx(-25.0)


def test_only_seeds_both_have(pair):
    ours, theirs = pair({"a": [1.0]}, {"a": [0.0]}, seeds=(0, 1, 2))
    del theirs[1]
    assert set(bootstrap.difference("x", ours, theirs).by_seed) == {0, 2}
    assert bootstrap.difference("x", ours, {}) is None


def test_scores_that_are_no_mean_of_marks_are_left_out(pair):
    ours, theirs = pair({"a": [1.0, 0.0]}, {"a": [0.0, 0.0]}, score=40.0)
    found = bootstrap.difference("x", ours, theirs)
    assert found.datasets == ("a",)
    assert found.left_out == {"captions": "its score is of the whole corpus"}
    ours[0].matrix.scores[0]["a"] = 51.0
    bootstrap.answered.cache_clear()  # a run that has finished does not change
    assert bootstrap.difference("x", ours, theirs) is None


def test_other_records_are_left_out(pair):
    ours, theirs = pair({"a": [1.0, 0.0], "b": [1.0]}, {"a": [0.0, 0.0], "b": [0.0]})
    file = ours[0].path / "predictions" / "stage-1" / "a.jsonl"
    file.write_text(file.read_text().replace('"question_id": "1"', '"question_id": "7"'))
    found = bootstrap.difference("x", ours, theirs)
    assert found.left_out == {"a": "the two rows answered different records"}
    assert found.estimate == 100.0
    file.unlink()
    bootstrap.answered.cache_clear()
    assert bootstrap.difference("x", ours, theirs).left_out == {"a": "its predictions are missing"}


def test_a_score_of_sums_is_drawn_record_by_record():
    """Score = 100 (sum a / sum b): (1 + 1) / (1 + 3) against 0. Drawn twice: (2, 2), (2, 4) or (2, 6) of sums."""

    def ratio(sums, count):
        return 100.0 * sums[..., 0] / sums[..., 1]

    keys = (("0", 0), ("1", 0))
    ours = bootstrap.Answered(keys, np.array([[1.0, 1], [1, 3]]), ratio)
    theirs = bootstrap.Answered(keys, np.array([[0.0, 1], [0, 3]]), ratio)
    cell = bootstrap.Cell(ours, theirs)
    assert cell.estimate == 50.0
    values, counts = np.unique(cell.draws(np.random.default_rng(0), 40_000).round(6), return_counts=True)
    assert values.tolist() == pytest.approx([100 / 3, 50, 100])
    assert counts / 40_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)
