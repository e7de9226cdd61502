"""Evaluation after some stages only: what is asked, what is said of it, and that training does not notice."""

import json
import re

from fcit import load_run
from tests.helpers.runs import bits

#: Four stages, so that one in the middle can be named beside the last; small ones.
FOUR = ["benchmark=fcit-mini-short", "federation.rounds=1", "federation.clients_per_round=1", "evaluation.samples=4"]


def test_fewer_evaluations_change_nothing_but_their_number(small, fcit):
    assert fcit("run", small, *FOUR, "name=whole")[0] == 0
    code, out, err = fcit("run", small, *FOUR, "evaluation.when=[2]")
    assert code == 0, err
    run, whole = (load_run(small.parent / "runs" / name) for name in ("small-1", "whole-1"))
    assert [bool(row) for row in run.matrix.scores] == [False, True, False, True]
    assert run.matrix.evaluated == [2, 4]
    assert run.matrix.scores[1] == whole.matrix.scores[1]
    assert run.matrix.scores[3] == whole.matrix.scores[3]
    mine, theirs = bits(run.path), bits(whole.path)
    assert {k: v for k, v in theirs.items() if re.match(r"adapters|predictions/stage-[24]", k)} == {
        k: v for k, v in mine.items() if k != "matrix.json"
    }
    assert len(run.of("scored")) == len(run.matrix.scores[1]) + len(run.matrix.scores[3])
    results = json.loads((run.path / "results.json").read_text())
    assert results["evaluated"] == [2, 4]
    assert results["MFT"] is results["BWT"] is results["forgetting"] is None
    assert results["Avg"] == run.matrix.avg != whole.matrix.avg
    # as the small configuration says
    assert results["reduced"] == ["4 questions a test set, choice 0", "400 training records a data set"]
    assert results["scorers"]["ocr-vqa"] == "exact"
    assert set(results["scorers"]) == set(run.matrix.datasets)
    assert "Accuracy matrix of small-1, reduced (4 questions a test set, choice 0; 400 " in out
    assert "Avg over" in out
