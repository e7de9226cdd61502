"""Reduced and full numbers, some stages, other rules: what reports say of run folders made by hand."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from fcit import config as configuration
from fcit.cli import main
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.report import figures, heat, page, scope, tables, terminal
from fcit.runs.folder import RunDir
from fcit.runs.reader import Run

WHOLE = [{"iconqa": 80.0}, {"iconqa": 60.0, "figureqa": 90.0}]
REDUCED = "reduced (50 questions a test set, choice 0)"


@pytest.fixture
def made(tmp_path):
    """Leave behind a run folder of this name, configuration and matrix; returns it read."""

    def _made(
        name: str,
        scores: list[dict[str, float]] = WHOLE,
        finished: bool = True,
        more: dict | None = None,
        forms: dict[str, list[dict[str, float]]] | None = None,  # shares and contents
        untrained: dict[str, dict[str, float]] | None = None,
        **config,
    ) -> Run:
        raw = {"benchmark": "fcit-mini-short", "method": "finetune", **config}
        folder = RunDir.place(tmp_path / name, configuration.dump(configuration.parse(raw)), {"python": "3"})
        matrix = AccuracyMatrix.of(["iconqa", "figureqa"], scores, untrained or {}, **(forms or {}))
        folder.matrix.write_text(json.dumps(matrix.to_json()))
        folder.events.write_text("")
        line = {"question_id": "0", "image": "x.png", "prompt": "?", "text": "a", "answer": "a", "mark": 1.0}
        for dataset in matrix.datasets:
            file = folder.predictions / "stage-2" / f"{dataset}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(line) + "\n")
        if finished:
            folder.results.write_text(
                json.dumps(
                    {
                        "method": "finetune",
                        "traffic": {"up": 1e6, "down": 2e6, "rejected": 0},
                        "seconds": {"training": 60},
                        "subspaces": 1,
                        "subspace_names": ["0"],
                        **matrix.summary(),
                        **(more or {}),
                    }
                )
            )
        return Run(folder.path)

    return _made


def shown(runs: list[Run]) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    terminal.show(console, runs)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def heads(rows: list[list[str]]) -> list[str]:
    return rows[0][3:8]


def test_a_run_says_that_its_numbers_are_reduced(made, tmp_path):
    run = made("few", evaluation={"samples": 50})
    assert f"Accuracy matrix of few, {REDUCED}" in shown([run])
    assert f"Comparison, {REDUCED}" in shown([run])
    text = page.render([run])
    assert text.count(f'<span class="bad">{REDUCED}</span>') == 3  # figures of merit, matrix, activation
    assert REDUCED in figures.matrices([run]).axes[0].get_title()
    assert REDUCED in figures.forgetting([run]).axes[0].get_title()
    assert REDUCED in figures.means([run]).axes[0].get_title()
    page.write_tables([run], tmp_path / "out" / "tables")
    for name in ("matrix-few", "comparison"):
        rows = list(csv.reader((tmp_path / "out" / "tables" / f"{name}.csv").open()))
        assert rows[0][-1] == "numbers"
        assert {row[-1] for row in rows[1:]} == {REDUCED}
        assert REDUCED in (tmp_path / "out" / "tables" / f"{name}.tex").read_text()


def test_nothing_is_said_of_full_numbers(made, tmp_path):
    run = made("whole")
    raw = yaml.safe_load(run.folder.config.read_text())
    # a run folder from before there was such a thing
    raw["evaluation"] = {"batch_size": 64, "max_new_tokens": 24, "limit": None, "batches_per_order": 4, "split": "test"}
    del raw["data"]
    run.folder.config.write_text(yaml.safe_dump(raw))
    run = Run(run.path)
    assert "reduced" not in shown([run])
    assert "reduced" not in re.sub(r"<pre.*?</pre>", "", page.render([run]))
    page.write_tables([run], tmp_path / "out" / "tables")
    assert (tmp_path / "out" / "tables" / "comparison.csv").read_text().splitlines()[0].endswith("minutes")


@pytest.mark.parametrize(
    "other",
    [
        {"evaluation": {"samples": 50}},
        {"data": {"max_records": 200}},
        {"evaluation": {"split": "val"}},
        {"data": {"turns": "first"}},
    ],
    ids=["samples", "max_records", "val", "turns"],
)
def test_reduced_and_full_numbers_share_no_column(made, tmp_path, other):
    full, less = made("whole"), made("less", **other)
    said = scope.label(less)
    assert scope.groups([less, full]) == [("", [full]), (said, [less])]
    out = shown([less, full])
    assert out.index(f"Comparison, {said}") > out.index("Comparison\n") > out.index("Accuracy matrix of whole")
    page.write_tables([full, less], tmp_path / "out" / "tables")
    files = sorted((tmp_path / "out" / "tables").glob("comparison*.csv"), key=lambda f: len(f.name))
    assert len(files) == 2
    assert files[0].name == "comparison.csv"
    found = [[row[0] for row in csv.reader(file.open())] for file in files]
    assert found == [["run", "whole"], ["run", "less"]]
    text = page.render([full, less])
    assert "<h3>Full</h3>" in text
    assert f"<h3>{said[0].upper()}{said[1:]}</h3>" in text
    panels = [axis for axis in figures.means([full, less]).axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == ["", said]
    assert all(len(axis.lines) == 1 for axis in panels)


def test_reductions_of_different_kinds_share_no_column(made):
    runs = [
        made("a", evaluation={"samples": 50}),
        made("b", evaluation={"samples": 100}),
        made("c", evaluation={"samples": 50, "seed": 1}),
        made("d", evaluation={"samples": 50}),
        made("e", evaluation={"samples": 50}, data={"max_records": 9}),
    ]
    assert [[run.name for run in members] for _, members in scope.groups(runs)] == [["a", "d"], ["b"], ["c"], ["e"]]


def test_an_average_over_some_stages_has_a_column_of_its_own(made):
    course = [{}, {"iconqa": 60.0}, {}, {"iconqa": 40.0, "figureqa": 80.0}]
    some, whole = made("some", course, evaluation={"when": [2]}), made("whole")
    final = made("final", [{}, {}, {}, {"iconqa": 10.0, "figureqa": 20.0}], evaluation={"when": "final"})
    rows = tables.summary([some, whole, final])
    assert heads(rows) == ["Last", "Avg", "Avg over stages 2, 4", "MFT", "BWT"]
    assert [row[3:9] for row in rows[1:]] == [
        ["60.0", "-", "60.0", "-", "-", "-"],
        ["75.0", "77.5", "-", "85.0", "-20.0", "20.0"],
        ["15.0", "-", "-", "-", "-", "-"],
    ]
    assert heads(tables.summary([final])) == ["Last", "Avg", "MFT", "BWT", "forgetting"]
    assert "<span>Avg over stages 2, 4</span>" in page.render([some])


def test_every_run_has_the_family_of_its_method(made, tmp_path):
    """As its results say; a run from before they did has that of its method today."""
    runs = [made("older"), made("said", more={"family": "merging"}), made("own", more={"family": ""})]
    assert [row[2] for row in tables.summary(runs)] == ["family", "baseline", "merging", "-"]
    assert '<th scope="col">family</th>' in page.render(runs)
    page.write_tables(runs, tmp_path / "out" / "tables")
    rows = list(csv.DictReader((tmp_path / "out" / "tables" / "comparison.csv").open()))
    assert [row["family"] for row in rows] == ["baseline", "merging", ""]


SHARES, CONTENTS = [{"iconqa": 100.0}, {"iconqa": 40.0}], [{"iconqa": 80.0}, {"iconqa": 75.0, "figureqa": 90.0}]


def test_the_form_of_answers_where_people_look(made, tmp_path):
    demanded = {"iconqa": {"letter": 4, "phrase": 4}, "figureqa": {}}
    run, older = made("formed", forms={"shares": SHARES, "contents": CONTENTS}, more={"forms": demanded}), made("older")
    assert tables.forms(run)[1:] == [
        ["iconqa", "letter or phrase", "100.0", "40.0", "60.0", "75.0", "20.0", "5.0", "15.0"],
        ["figureqa", "-", "-", "-", "90.0", "90.0", "-", "-", "-"],
        ["mean", "-", "-", "40.0", "75.0", "82.5", "20.0", "5.0", "15.0"],
    ]
    assert len(tables.forms(older)) == 1
    out = shown([run, older])
    assert "Form of the answers of formed, last stage" in out
    assert "Form of the answers of older" not in out
    text = page.render([run, older])
    assert text.count("<h3>Form of the answers, last stage</h3>") == 1
    assert "<b>15.0</b><span>form forgetting</span>" in text
    figure = figures.forms([run])
    assert [bar.get_width() for bar in figure.axes[0].patches] == [5.0, 15.0]
    page.write_all([run, older], tmp_path / "out")
    assert (tmp_path / "out" / "tables" / "forms-formed.csv").is_file()
    assert not (tmp_path / "out" / "tables" / "forms-older.csv").exists()
    rows = list(csv.DictReader((tmp_path / "out" / "tables" / "comparison.csv").open()))
    assert [row["content forgetting"] for row in rows] == ["5.0", ""]
    assert "forms.svg" in {file.name for file in (tmp_path / "out" / "figures").iterdir()}


def test_a_run_without_forms_has_no_column_of_them(made):
    assert "form share" not in tables.summary([made("older")])[0]
    assert "Content and form" not in page.render([made("oldest")])


def test_a_gain_is_drawn_to_the_left(made):
    scores = [{"iconqa": 60.0}, {"iconqa": 50.0, "figureqa": 1.0}]
    run = made("gains", scores, forms={"contents": [{"iconqa": 90.0}, {"iconqa": 50.0}]})
    content, form = figures.forms([run]).axes[0].patches
    assert (content.get_x(), content.get_width()) == (0, 40)
    assert (form.get_x(), form.get_width()) == (0, -30)


def test_a_run_before_the_first_stage_that_is_evaluated(made, capsys):
    run = made("begun", [{}], finished=False, evaluation={"when": [2]})
    assert main(["report", str(run.path)]) == 1
    assert "no stage has been evaluated yet" in capsys.readouterr().err
    later = made("later", [{}, {"iconqa": 50.0}], finished=False, evaluation={"when": [2]})
    assert "unfinished, 1 stages evaluated" in page.render([later])


def test_scores_by_other_rules_stand_beside_those_of_the_matrix(made, tmp_path):
    more = {
        "scorers": {"iconqa": "exact", "figureqa": "./own.py:rule"},
        "also": {
            "iconqa": {},
            "figureqa": {"substring-official": 95.0, "substring": 70.25},
        },
    }
    run = made("both", more=more)
    expected = [
        ["dataset", "rule", "score", "other rule", "its score"],
        ["figureqa", "rule", "90.0", "substring-official", "95.0"],
        ["figureqa", "rule", "90.0", "substring", "70.2"],
    ]
    assert tables.rules(run) == expected
    out = shown([run])
    assert "Scores of both by other rules" in out
    assert re.search(r"rule +│ +90\.0 │ substring-official +│ +95\.0", out)
    assert "<td>substring-official</td><td>95.0</td>" in page.render([run])
    page.write_tables([run], tmp_path / "out" / "tables")
    assert list(csv.reader((tmp_path / "out" / "tables" / "rules-both.csv").open())) == expected
    # nothing to show, nothing shown; runs from before name no rule of the matrix
    assert len(tables.rules(made("one", more={"also": {"iconqa": {}}}))) == 1
    assert tables.rules(made("old", more={"also": more["also"]}))[1][1] == "-"


@pytest.mark.parametrize(("images", "places"), [("x.png", 2), (["x.png", "y.png"], 4), (None, 0)])
def test_samples_show_all_images_of_a_question(made, images, places):
    run = made("pictures")
    for file in run.folder.predictions.glob("*/*.jsonl"):
        line = {**json.loads(file.read_text()), "image": images}
        file.write_text(json.dumps(line) + "\n")
    assert page.render([run]).count("image not here") == places  # of two data sets


def test_the_end_of_a_run_names_its_folder(made):
    run = made("done", more={"traffic": {"up": 0, "down": 0, "rejected": 3}})
    console = Console(width=160, record=True, file=io.StringIO())
    terminal.ending(console, run)
    text = console.export_text()
    assert "3 client updates were rejected" in text
    assert f"report:     {Path(run.path) / 'report.html'}" in text


def test_the_best_constant_answer_stands_below_the_matrix(made, tmp_path):
    constants = {"iconqa": {"text": "2", "score": 40.0}, "figureqa": {"text": "yes", "score": 55.5}}
    run = made("known", more={"constants": constants})
    row = ["best constant answer", "40.0", "55.5", "47.8"]
    assert tables.matrix_rows(run)[-1] == row
    assert re.search(
        r"best constant +│ +40\.0 │ +55\.5 │ +47\.8|best constant answer │ +40\.0 │ +55\.5 │ +47\.8", shown([run])
    )
    text = page.render([run])
    assert "best constant answer</th><td>40.0</td><td>55.5</td><td>47.8</td></tr>" in text
    page.write_tables([run], tmp_path / "out" / "tables")
    assert list(csv.reader((tmp_path / "out" / "tables" / "matrix-known.csv").open()))[-1] == row
    part = made("part", more={"constants": {"iconqa": constants["iconqa"]}})  # e.g. no Java for the other
    assert tables.matrix_rows(part)[-1] == ["best constant answer", "40.0", "-", "-"]
    for run in (made("old"), made("unfinished", finished=False)):
        assert "best constant answer" not in shown([run])
        assert "best constant answer<" not in page.render([run])


def test_scores_are_rounded_once():
    """From 49.9999 and 49.95 to 50.0, from 49.949 to 49.9: no rounding lies between a score and its cell."""
    assert [tables.cell(value) for value in (49.9499, 49.95001, 5000 / 101)] == ["49.9", "50.0", "49.5"]


# ---------------------------------------------------------------------- what was not trained

ASKED = {
    "0": {"iconqa": 10.0, "figureqa": 20.0, "general": 90.0},
    "1": {"figureqa": 25.0, "general": 80.0},
    "2": {"general": 70.0},
}


def test_cells_say_whether_they_were_trained(made):
    matrix = made("a", untrained=ASKED).matrix
    assert heat.columns(matrix) == ["iconqa", "figureqa", "general"]
    untouched, first, second = heat.rows(matrix)
    assert [cell.kind for cell in untouched.cells] == ["unseen", "unseen", "held-out"]
    assert first == ("1", [(80.0, "trained"), (25.0, "unseen"), (80.0, "held-out")], 80.0)
    assert second.mean == 75.0
    assert [row.stage for row in heat.rows(made("b").matrix)] == ["1", "2"]


def test_what_was_not_trained_has_tables_of_its_own(made):
    run, plain = made("a", untrained=ASKED), made("b")
    assert tables.matrix_rows(run) == tables.matrix_rows(plain)
    assert tables.summary([run])[0] == tables.summary([plain])[0]
    assert tables.untrained_rows(run) == [
        ["stage", "iconqa", "figureqa", "general"],
        ["0", "10.0", "20.0", "90.0"],
        ["1", "-", "25.0", "80.0"],
        ["2", "-", "-", "70.0"],
    ]
    assert tables.untrained_rows(plain) == [["stage"]]
    assert tables.summary_untrained([run, plain]) == [
        ["run", "method", "unseen", "unseen gain", "FWT", "general", "general lost"],
        ["a", "finetune", "25.0", "5.0", "5.0", "70.0", "20.0"],
        ["b", "finetune", "-", "-", "-", "-", "-"],
    ]
    assert tables.summary_untrained([plain]) == [["run", "method"]]
    assert "Scores of a on what was not trained" in shown([run])
    assert "not trained" not in shown([plain])


def test_the_page_tells_unseen_scores_from_trained_ones(made):
    text = page.render([made("a", untrained=ASKED)])
    assert text.count('class="unseen"') == 3
    assert "general lost: the same of the untouched model" in text
    plain = page.render([made("b")])
    assert 'class="unseen"' not in plain
    assert "untouched" not in plain


def test_the_picture_hatches_unseen_scores(made):
    figure = figures.draw(figures.matrices, [made("a", untrained=ASKED)])
    axis = figure.axes[0]
    assert len(axis.patches) == 3
    assert [label.get_text() for label in axis.get_yticklabels()] == ["untouched", "1", "2"]


def test_further_figures_of_held_out_rules_stand_beside_those_of_the_untouched_model(made):
    also = {"before": {"pope": {"yes": 51.0}}, "after": {"pope": {"yes": 60.0, "./mine.py:own": 2.0}}}
    run = made("a", untrained=ASKED, more={"held_out": {"scorers": {}, "also": also}})
    rows = [["pope", "yes", "51.0", "60.0"], ["pope", "own", "-", "2.0"]]
    assert tables.held_out_rules(run)[1:] == rows
    assert "Further figures of what a held out" in shown([run])
    assert len(tables.held_out_rules(made("b"))) == 1
