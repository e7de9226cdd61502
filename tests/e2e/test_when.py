"""Evaluation after some stages only, or of more than was trained: what is asked, what is said of it, and that neither
training nor the other scores notice.
"""

import json
import re

from fcit import load_run
from fcit.runs.reader import Run
from tests.helpers.runs import bits

#: Four stages, so that one in the middle can be named beside the last; small ones.
FOUR = ["benchmark=fcit-mini-short", "federation.rounds=1", "federation.clients_per_round=1", "evaluation.samples=4"]


def test_fewer_evaluations_change_nothing_but_their_number(small, fcit):
    also = ("evaluation.unseen=true", "evaluation.held_out=[mini-general]", "evaluation.held_out_when=[3]")
    more = fcit("run", small, *FOUR, "name=whole", *also)
    assert more[0] == 0, more[2]
    code, out, err = fcit("run", small, *FOUR, "evaluation.when=[2]")
    assert code == 0, err
    run, whole = (load_run(small.parent / "runs" / name) for name in ("small-1", "whole-1"))
    assert [bool(row) for row in run.matrix.scores] == [False, True, False, True]
    assert run.matrix.evaluated == [2, 4]
    assert run.matrix.scores[1] == whole.matrix.scores[1]
    assert run.matrix.scores[3] == whole.matrix.scores[3]
    mine, theirs = bits(run.path), bits(whole.path)
    del mine["matrix.json"]
    assert {name: theirs[name] for name in mine} == mine
    assert {name for name in theirs if re.match(r"adapters|predictions/stage-4/[^m]", name)} <= set(mine)
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
    _unseen(whole, more[1])


def _unseen(run: Run, out: str) -> None:
    """The same run asked the data sets of later stages, too."""
    first, *others = run.matrix.datasets
    unseen = run.matrix.unseen
    assert [list(unseen[stage]) for stage in range(4)] == [[first, *others], others, others[1:], others[2:]]
    asked = {stage: {file.stem for file in (run.path / f"predictions/stage-{stage}").iterdir()} for stage in range(5)}
    held_out = {"mini-general"}
    assert asked == {
        stage: set(run.matrix.datasets) | (held_out if stage in (0, 3, 4) else set()) for stage in range(5)
    }
    assert len(run.of("scored")) == 4 * 5 + 3
    assert {stage: set(row) for stage, row in run.matrix.held_out.items()} == dict.fromkeys((0, 3, 4), held_out)
    assert (
        run.results["general lost"] == run.matrix.held_out[0]["mini-general"] - run.matrix.held_out[4]["mini-general"]
    )
    assert run.results["held_out"]["scorers"] == {"mini-general": "exact"}
    assert run.data["held_out"]["mini-general"]["test"]["images"] == {"rendered": "mini-1"}
    before = run.predictions(others[-1], 0)
    assert {prediction.mix for prediction in before} == {None}  # the untouched model chooses among nothing
    assert all(sum(prediction.mix) > 0.99 for prediction in run.predictions(others[-1], 2))  # by the method's routing
    assert run.results["cost"]["questions"] == 4 * (4 * 5 + 3)
    assert run.results["cost"]["questions_untrained"] == 4 * (4 + 3 + 2 + 1 + 3)
    assert run.results["FWT"] == run.matrix.fwt is not None
    assert "whole-1: scores of the untouched model: ocr-vqa" in out
