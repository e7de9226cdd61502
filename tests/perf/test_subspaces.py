"""The measurement runs; what is recorded stands in the README."""

import json
from pathlib import Path

import numpy as np

from tests.perf import subspaces

RESULTS = Path(__file__).parent / "results"


def test_leaving_out_what_is_negligible_changes_no_answer():
    report = subspaces.measured((1, 6), batch=2, rounds=1)
    assert [row["subspaces"] for row in report["rows"]] == [1, 6]
    assert [row["equal"] for row in report["rows"]] == [1, 1]


def test_weights_sum_to_one():
    np.testing.assert_allclose(subspaces.mix(8, 3).sum(axis=1), 1, atol=1e-6)


def test_recorded_figures_stand_in_the_readme():
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    for row in json.loads((RESULTS / "subspaces.json").read_text(encoding="utf-8"))["rows"]:
        assert f"| {row['subspaces']} | {row['ms']} | {row['ms_negligible']} |" in text
