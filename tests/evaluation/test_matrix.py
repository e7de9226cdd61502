import json

import pytest

from fcit.evaluation.matrix import AccuracyMatrix


def triangle(*rows: list[float]) -> AccuracyMatrix:
    names = [f"d{n}" for n in range(len(rows[-1]))]
    return AccuracyMatrix(names, [dict(zip(names, row, strict=False)) for row in rows])


def test_by_hand():
    matrix = triangle([80], [60, 90], [70, 50, 100])
    assert matrix.last == pytest.approx((70 + 50 + 100) / 3)
    assert matrix.avg == pytest.approx((80 + 75 + 220 / 3) / 3)
    assert matrix.mft == pytest.approx(90)
    assert matrix.bwt == pytest.approx(((70 - 80) + (50 - 90)) / 2)
    assert matrix.forgetting == pytest.approx((10 + 40) / 2)


def test_forgetting_counts_from_the_best_score():
    matrix = triangle([50], [70, 10], [60, 30, 5])
    assert matrix.bwt == pytest.approx((10 + 20) / 2)
    assert matrix.forgetting == pytest.approx(((70 - 60) + (10 - 30)) / 2)


def test_published_matrix():
    matrix = triangle(
        [91.73],
        [90.40, 94.23],
        [89.37, 94.07, 61.37],
        [87.07, 94.10, 57.40, 86.00],
        [87.37, 94.27, 56.70, 78.73, 79.70],
        [86.67, 94.00, 58.71, 79.03, 64.33, 58.20],
    )
    assert matrix.mft == pytest.approx(78.54, abs=0.01)
    assert matrix.last == pytest.approx(73.49, abs=0.01)
    assert matrix.avg == pytest.approx(83.27, abs=0.01)
    assert matrix.bwt == pytest.approx(-6.06, abs=0.01)


def test_published_row_means():
    """A user's LoRA fine-tuning on UCIT: the mean of each row, and what follows from them."""
    rows = [
        [90.97],
        [90.38, 92.60],
        [73.90, 86.33, 59.54],
        [75.67, 68.77, 47.34, 53.30],
        [75.10, 74.53, 46.73, 52.30, 69.73],
        [65.77, 71.27, 45.05, 51.20, 49.60, 57.47],
    ]
    means = [90.97, 91.49, 73.26, 61.27, 63.68, 56.73]
    assert [triangle(*rows[: k + 1]).last for k in range(6)] == pytest.approx(means, abs=0.01)
    assert triangle(*rows).avg == pytest.approx(sum(means) / 6, abs=0.01)
    # BWT is over the T - 1 datasets that can be forgotten
    matrix = triangle(*rows)
    assert matrix.bwt == pytest.approx((matrix.last - matrix.mft) * 6 / 5)


def test_datasets_seen_later():
    matrix = AccuracyMatrix(["b", "c", "a"], [{"b": 40, "c": 60}, {"b": 30, "c": 80, "a": 10}])
    assert matrix.last == 40
    assert matrix.avg == 45
    assert matrix.mft == pytest.approx((40 + 60 + 10) / 3)
    assert matrix.bwt == pytest.approx((-10 + 20) / 2)  # "a" came last and cannot be forgotten
    assert matrix.forgetting == pytest.approx((10 - 20) / 2)


def test_single_row():
    matrix = triangle([50, 70])
    assert (matrix.last, matrix.avg, matrix.mft) == (60, 60, 60)
    assert matrix.bwt is None
    assert matrix.forgetting is None


def test_where_only_the_last_stage_was_evaluated_there_is_no_course():
    matrix = AccuracyMatrix(["a", "b"], [{}, {}, {"a": 20, "b": 40}])
    assert matrix.summary() == {"Last": 30, "Avg": None, "MFT": None, "BWT": None, "forgetting": None}
    assert matrix.evaluated == [3]
    assert matrix.avg_name == "Avg"


def test_avg_over_some_of_the_stages_is_called_that():
    matrix = AccuracyMatrix(["a", "b"], [{}, {"a": 60, "b": 80}, {}, {"a": 20, "b": 40}])
    # "a" was learnt after the first stage: what it scored then, and its best score, nobody knows
    assert matrix.summary() == {"Last": 30, "Avg": 50, "MFT": None, "BWT": None, "forgetting": None}
    assert matrix.avg_name == "Avg over stages 2, 4"
    assert triangle([80], [60, 90]).avg_name == "Avg"


def test_a_run_that_has_not_come_to_a_stage_that_is_evaluated():
    matrix = AccuracyMatrix(["a"], [{}, {}])
    assert set(matrix.summary().values()) == {None}
    assert matrix.avg_name == "Avg"
    assert matrix.evaluated == []


def test_empty():
    assert set(AccuracyMatrix(["a"]).summary().values()) == {None}


def test_json_round_trip():
    matrix = triangle([80], [60, 90])
    raw = json.loads(json.dumps(matrix.to_json()))
    assert AccuracyMatrix.from_json(raw) == matrix
    assert (raw["Last"], raw["BWT"]) == (75, -20)


# ---------------------------------------------------------------------- form and content


def test_forgetting_is_split_into_form_and_content():
    """Two datasets lose 40 points each: of the first its content is still there, of the second half of it."""
    matrix = AccuracyMatrix(
        ["a", "b", "c"],
        [{"a": 80}, {"a": 90, "b": 60}, {"a": 50, "b": 20, "c": 70}],
        shares=[{"a": 100}, {"a": 100, "b": 100}, {"a": 50, "b": 25}],  # "c" demands no form
        contents=[{"a": 80}, {"a": 90, "b": 60}, {"a": 90, "b": 40, "c": 70}],
    )
    assert matrix.losses == {"a": (40, 0), "b": (40, 20)}
    assert matrix.losses["b"].form == 20
    assert matrix.form_summary() == {"form share": 37.5, "content forgetting": 10, "form forgetting": 30}
    assert matrix.forgetting == 40
    assert matrix.to_json()["content_scores"][1] == {"a": 90, "b": 60}
    assert AccuracyMatrix.from_json(json.loads(json.dumps(matrix.to_json()))) == matrix


def test_content_is_looked_at_in_the_stage_of_the_best_score():
    """A form that was wrong from the beginning was never lost; one that came later is a gain."""

    def matrix(scores: list[dict[str, float]], contents: list[dict[str, float]]) -> AccuracyMatrix:
        return AccuracyMatrix(["a", "b"], scores, shares=[{}, {}], contents=contents)

    never = matrix([{"a": 20}, {"a": 10, "b": 5}], [{"a": 80}, {"a": 70, "b": 5}])
    assert never.losses["a"].content == 10
    assert never.form_forgetting == 0
    later = matrix([{"a": 20}, {"a": 60, "b": 5}], [{"a": 80}, {"a": 60, "b": 5}])
    assert later.form_summary() == {"form share": None, "content forgetting": 20, "form forgetting": -60}


def test_an_older_matrix_knows_nothing_of_forms():
    matrix = triangle([80], [60, 90])
    assert matrix.form_summary() == {}
    assert matrix.content_forgetting is None
    assert set(matrix.to_json()) == {"datasets", "scores", *matrix.summary()}


def test_a_stage_whose_forms_are_unknown_leaves_none_of_the_split():
    matrix = AccuracyMatrix(["a"], [{"a": 80}, {"a": 60}], shares=[{}, {"a": 50}], contents=[{}, {"a": 70}])
    assert matrix.form_summary() == {"form share": 50, "content forgetting": None, "form forgetting": None}
