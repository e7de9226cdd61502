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


# ---------------------------------------------------------------------- data sets that are not trained yet

#: Of three stages; row t of the upper triangle: after stage t, 0 before the first.
UPPER = {0: {"d0": 10, "d1": 20, "d2": 40}, 1: {"d1": 26, "d2": 42}, 2: {"d2": 50}}


def with_unseen(*rows: list[float], unseen=UPPER) -> AccuracyMatrix:
    whole = triangle([80], [60, 90], [70, 50, 100])
    return AccuracyMatrix(whole.datasets, triangle(*rows).scores if rows else whole.scores, unseen=unseen)


def test_unseen_by_hand():
    matrix = with_unseen()
    # d1: (26); d2: (42 + 50) / 2
    assert matrix.unseen_mean == pytest.approx((26 + 46) / 2)
    assert matrix.unseen_gain == pytest.approx((6 + 6) / 2)
    # right before they are trained: d1 after stage 1, d2 after stage 2
    assert matrix.fwt == pytest.approx((6 + 10) / 2)


def test_other_figures_do_not_see_the_upper_triangle():
    plain = triangle([80], [60, 90], [70, 50, 100])
    assert list(with_unseen().summary().items())[:5] == list(plain.summary().items())
    assert list(plain.summary()) == ["Last", "Avg", "MFT", "BWT", "forgetting"]


def test_a_model_that_answers_unseen_questions_as_before_transfers_nothing():
    same = {t: {name: UPPER[0][name] for name in row} for t, row in UPPER.items()}
    matrix = with_unseen(unseen=same)
    assert (matrix.unseen_gain, matrix.fwt) == (0, 0)
    assert matrix.unseen_mean == pytest.approx((20 + 40) / 2)


def test_data_sets_of_the_first_stage_are_never_unseen():
    matrix = AccuracyMatrix(["a", "b", "c"], [{"a": 1, "b": 2}, {"a": 3, "b": 4, "c": 9}], unseen={0: {}, 1: {"c": 7}})
    matrix.unseen[0] = {"a": 50, "b": 60, "c": 5}
    assert (matrix.unseen_mean, matrix.unseen_gain, matrix.fwt) == (7, 2, 2)


def test_where_a_stage_was_not_evaluated_there_is_no_transfer():
    matrix = AccuracyMatrix(["a", "b"], [{}, {"a": 20, "b": 40}], unseen={0: {"a": 1, "b": 2}})
    assert matrix.untrained() == {"unseen": None, "unseen gain": None, "FWT": None}


def test_unseen_of_a_run_that_goes_on():
    matrix = AccuracyMatrix(["d0", "d1", "d2"], [{"d0": 80}], unseen={0: UPPER[0], 1: UPPER[1]})
    assert matrix.unseen_mean == pytest.approx((26 + 42) / 2)
    assert matrix.fwt is None  # no second stage has come yet


# ---------------------------------------------------------------------- data sets that are never trained


def test_general_ability_by_hand():
    held_out = {0: {"g": 80, "h": 40}, 1: {"g": 90, "h": 30}, 3: {"g": 70, "h": 20}}
    matrix = AccuracyMatrix(["a"], [{"a": 1}, {"a": 2}, {"a": 3}], held_out=held_out)
    assert matrix.general == pytest.approx((70 + 20) / 2)
    assert matrix.general_lost == pytest.approx((10 + 20) / 2)  # start minus end, whatever was between
    assert matrix.untrained() == {"general": matrix.general, "general lost": matrix.general_lost}
    assert matrix.held_out_names == ["g", "h"]


def test_of_the_start_alone_nothing_is_lost_yet():
    matrix = AccuracyMatrix(["a"], [{"a": 1}], held_out={0: {"g": 80}})
    assert (matrix.general, matrix.general_lost) == (None, None)


def test_rows_of_a_run_are_told_apart():
    rows = {"0": {"a": 1, "b": 2, "g": 9}, "1": {"b": 3, "g": 8}, "2": {"g": 7}}
    matrix = AccuracyMatrix.of(["a", "b"], [{"a": 50}, {"a": 40, "b": 60}], rows)
    assert matrix.unseen == {0: {"a": 1, "b": 2}, 1: {"b": 3}}
    assert matrix.held_out == {0: {"g": 9}, 1: {"g": 8}, 2: {"g": 7}}
    assert AccuracyMatrix.from_json(json.loads(json.dumps(matrix.to_json()))) == matrix


def test_json_round_trip_with_unseen():
    raw = json.loads(json.dumps(with_unseen().to_json()))
    assert AccuracyMatrix.from_json(raw) == with_unseen()
    assert raw["FWT"] == 8
    assert "unseen_scores" not in triangle([80]).to_json()


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
