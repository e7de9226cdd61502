"""Rows that share no table: other questions, other test data, other stages."""

import csv
import io
import json

import pytest
from rich.console import Console

from fcit.bench import data, figures, leaderboard, page, tables
from fcit.evaluation.matrix import AccuracyMatrix
from tests.bench.conftest import ENVIRONMENT, finish


def test_without_the_baseline(planned):
    made = planned(
        rows=[{"axes": {"method": ["finetune"]}}, {"axes": {"method": ["disco"], "training.lr": [0.1, 0.2]}}]
    )
    for run in made.runs[1:]:
        finish(run, {"a": [1.0]})
    (table,) = leaderboard.collect(made).tables
    assert table.baseline is None
    assert table.reference == "disco / lr=0.1"
    assert table.waiting == ["finetune"]
    assert [line.differs for line in table.lines] == [[], ["training.lr 0.2, not 0.1"]]
    said = "so there are no differences to it; settings and versions are compared with disco / lr=0.1"
    assert said in tables.markdown(leaderboard.Leaderboard("b", made.folder, [table]))


def test_rows_whose_block_names_another_baseline(planned):
    blocks = [
        {"axes": {"method": ["finetune", "disco"]}},
        {"axes": {"method": ["disco"], "training.lr": [0.001]}, "baseline": "{method}"},
    ]
    made = planned(rows=blocks)
    for run, marks in zip(made.runs, ([1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]), strict=True):
        finish(run, {"a": [float(mark) for mark in marks]})
    board = leaderboard.collect(made)
    [table] = board.tables
    lines = {line.label: line for line in table.lines}
    assert (lines["disco"].against, lines["disco"].difference.estimate) == ("finetune", 50)
    slow = lines["disco / lr=0.001"]
    assert (slow.against, slow.difference.estimate, slow.differs) == ("disco", -25, ["training.lr 0.001, not 0.003"])
    said = "difference: row minus finetune; disco / lr=0.001 minus disco in points of Last"
    assert any(note.startswith(said) for note in tables.notes(table))
    axis = figures.lasts(table).axes[1]
    assert axis.get_xlabel() == "difference to the row named below\nthe table, 95 % interval"
    [row] = [row for row in json.loads(data.to_json(board))["tables"][0]["rows"] if row["row"] == slow.label]
    assert row["difference"]["baseline"] == "disco"
    [row] = [row for row in csv.DictReader(io.StringIO(data.to_csv(board))) if row["row"] == slow.label]
    assert (row["baseline"], float(row["difference"])) == ("disco", -25)


def test_a_row_whose_own_baseline_is_not_finished_has_no_difference(planned):
    made = planned(
        rows=[{"axes": {"method": ["finetune", "disco"]}}, {"axes": {"method": ["ewc"]}, "baseline": "disco"}]
    )
    for run in made.runs:
        if run.row.label != "disco":
            finish(run, {"a": [1.0]})
    [table] = leaderboard.collect(made).tables
    assert {line.label: line.difference for line in table.lines} == {"finetune": None, "ewc": None}


def test_tables_are_not_mixed(planned):
    made = planned(
        axes={"setting": ["homogeneous", "heterogeneous"], "method": ["finetune", "disco"]},
        set={"federation.clients_per_round": 5},
    )
    for run in made.runs:
        finish(run, {"a": [1.0, 0.0]})
    board = leaderboard.collect(made)
    assert [table.key.setting for table in board.tables] == ["homogeneous", "heterogeneous"]
    assert [[line.row.label for line in table.lines] for table in board.tables] == [["finetune", "disco"]] * 2
    assert all(table.lines[1].difference.estimate == 0.0 for table in board.tables)


@pytest.mark.parametrize(
    ("axis", "values", "titles"),
    [
        (
            "evaluation.samples",
            [None, 50, 100],
            ["", ", reduced (50 questions a test set, choice 0)", ", reduced (100 questions a test set, choice 0)"],
        ),
        ("data.max_records", [None, 200], ["", ", reduced (200 training records a data set)"]),
        ("data.turns", ["all", "first"], ["", ", reduced (the first turn of every conversation)"]),
        (
            "evaluation.when",
            ["stage", [2], "final"],
            ["", ", evaluated after stages 2, 4 only", ", evaluated after stage 4 only"],
        ),
        ("evaluation.split", ["test", "val"], ["", ", val split"]),
    ],
)
def test_reduced_and_full_numbers_are_not_mixed(planned, axis, values, titles):
    made = planned(axes={axis: values, "method": ["finetune", "disco"]}, baseline="finetune")
    assert len({run.folder for run in made.runs}) == 2 * len(values)
    for run in made.runs:
        finish(run, {"a": [1.0, 0.0]})
    board = leaderboard.collect(made)
    assert [table.key.title for table in board.tables] == [f"fcit-mini-short, homogeneous{t}" for t in titles]
    assert [[line.row.label for line in table.lines] for table in board.tables] == [["finetune", "disco"]] * len(values)
    assert all(line.differs == [] for table in board.tables for line in table.lines)
    text = tables.markdown(board)
    assert text.count("- Reduced numbers:") == sum("reduced" in title for title in titles)
    assert page.render(board).count("Reduced numbers:") == text.count("- Reduced numbers:")


def test_another_choice_of_as_many_questions_is_another_table(planned):
    made = planned(set={"evaluation.samples": 50}, axes={"evaluation.seed": [0, 1], "method": ["finetune", "disco"]})
    assert [row.table.reduced for row in made.rows[::2]] == [
        ("50 questions a test set, choice 0",),
        ("50 questions a test set, choice 1",),
    ]
    # ... and without samples there is no choice to make
    made = planned(set={"evaluation.seed": 3}, axes={"method": ["finetune", "disco"]})
    assert {row.table.title for row in made.rows} == {"fcit-mini-short, homogeneous"}


def test_an_average_over_some_stages_is_called_that(planned):
    made = planned(set={"evaluation.when": [2]}, axes={"method": ["finetune", "disco"]})
    for run in made.runs:
        finish(run, {"a": [1.0, 0.0]})
        matrix = AccuracyMatrix(["a", "b"], [{}, {"a": 80.0}, {}, {"a": 60.0, "b": 20.0}])
        (run.folder / "matrix.json").write_text(json.dumps(matrix.to_json()))
    board = leaderboard.collect(made)
    (table,) = board.tables
    figures_ = table.lines[0].figures
    assert figures_["Avg"].mean == 60.0
    assert figures_["MFT"] is figures_["BWT"] is figures_["forgetting"] is None
    head = "| row | seeds | Last | Avg over stages 2, 4 | MFT |"
    assert head in tables.markdown(board)
    assert "Avg over stages 2, 4" in tables.tex(board)
    assert "Avg over stages 2, 4</th>" in page.render(board)
    assert "Avg over stages 2, 4" in [column.header for column in tables.terminal(table, "b", 160).columns]
    (row, _) = csv.DictReader(io.StringIO(data.to_csv(board)))
    assert row["evaluated_after"] == "2 4"
    assert row["reduced"] == ""
    assert json.loads(data.to_json(board))["tables"][0]["stages"] == [2, 4]


CONSTANTS = {"a": {"text": "x", "score": 20.0}, "captions": {"text": "A.", "score": 14.0}}


def told(made, constants) -> leaderboard.Table:
    """The table after each finished run was told the next of these constants; None: an older run folder."""
    left = iter(constants)
    for run in made.runs:
        file = run.folder / "results.json"
        found = next(left, None) if file.is_file() else None
        if found is not None:
            file.write_text(json.dumps({**json.loads(file.read_text()), "constants": found}))
    return leaderboard.collect(made)


def test_the_best_constant_answer_has_a_row_of_its_own(board):
    made, before = board
    assert before.tables[0].constant is None
    assert "best constant" not in tables.markdown(before)
    known = told(made, [None, CONSTANTS, CONSTANTS])
    assert "| best constant answer | - | 17.0 | 17.0 | - | - | - | - | - | - |  |" in tables.markdown(known)
    assert any("a 20.0, captions 14.0" in note for note in tables.notes(known.tables[0]))
    assert "best constant answer</th><td>-</td><td>17.0</td>" in page.render(known)
    last = list(csv.DictReader(io.StringIO(data.to_csv(known))))[-1]
    assert (last["row"], last["group"], last["Last"], last["MFT"]) == ("best constant answer", "constant", "17", "")
    assert json.loads(data.to_json(known))["tables"][0]["best_constant_answer"]["Last"] == 17.0
    assert "best constant answer & - & 17.0" in tables.tex(known)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tables.terminal(known.tables[0], "small", 140))
    assert "best constant answer" in console.export_text()


def test_runs_that_disagree_about_it_were_asked_other_questions(board):
    other = {**CONSTANTS, "a": {"text": "x", "score": 30.0}}
    assert told(board[0], [CONSTANTS, other]).tables[0].constant is None


# ---------------------------------------------------------------------- test data


def hashed(test: str, train: str = "t" * 64) -> dict:
    """An environment with fingerprints of one data set."""
    colors = {
        "train": {"instructions": {"file": "train.json", "sha256": train}},
        "test": {"split": "test", "questions": {"file": "test.json", "sha256": test * 64}},
    }
    return {**ENVIRONMENT, "data": {"version": 1, "datasets": {"colors": colors}, "partitions": [], "code": {}}}


def test_rows_on_other_test_data_have_a_table_of_their_own(planned):
    made = planned(axes={"method": ["finetune", "disco", "ewc"]}, seeds=[0, 1], baseline="finetune")
    for run in made.runs:
        other = run.row.label == "ewc" or (run.row.label, run.seed) == ("disco", 1)
        finish(run, {"a": [1.0, 0.0]}, environment=hashed("b" if other else "a"))
    board = leaderboard.collect(made)
    one, two = board.tables
    assert [(line.row.label, list(line.runs)) for line in one.lines] == [("finetune", [0, 1]), ("disco", [0])]
    assert [(line.row.label, list(line.runs)) for line in two.lines] == [("disco", [1]), ("ewc", [0, 1])]
    assert one.baseline == "finetune"
    assert two.baseline is None
    assert one.waiting == two.waiting == []
    assert one.key.title.startswith("fcit-mini-short, homogeneous, test data ")
    assert one.key.title != two.key.title
    why = (
        "finetune-s0 and disco-s1 do not share a table: their test data differ (colors, test split, questions "
        "(test.json): aaaaaaaa in finetune-s0, bbbbbbbb in disco-s1)."
    )
    notes = tables.notes(one)
    assert why in notes
    assert why in tables.markdown(board)
    assert why in page.render(board)
    assert why in data.to_json(board)
    rows = list(csv.DictReader(io.StringIO(data.to_csv(board))))
    assert len({row["test_data"] for row in rows}) == 2
    assert all(row["test_data"] for row in rows)
    assert figures.lasts(one).get_suptitle() == one.key.test_data


def test_one_kind_of_test_data_is_not_spoken_of(planned):
    made = planned(axes={"method": ["finetune", "disco"]})
    for run in made.runs:
        finish(run, {"a": [1.0, 0.0]}, environment=hashed("a", ("u" if run.row.label == "disco" else "t") * 64))
    (table,) = leaderboard.collect(made).tables
    assert table.key.title == "fcit-mini-short, homogeneous"
    assert table.apart == []
    # ... training data that differ are a note
    (line,) = [line for line in table.lines if line.row.label == "disco"]
    said = "training: colors, train split, instructions (train.json): tttttttt there, uuuuuuuu here"
    assert line.elsewhere == [said]
    assert f"‡ disco: {said}." in tables.notes(table)


def test_a_row_whose_test_data_changed_on_the_way_stands_alone(planned):
    made = planned(axes={"method": ["finetune", "disco"]})
    what = {"what": "colors, test split, questions", "file": "test.json", "images": None}
    change = {"concerns": "test", **what, "before": "a", "now": "b"}
    for run in made.runs:
        more = {"data_changes": [{"time": 0.0, "changes": [change], "said": ["colors"]}]}
        finish(run, {"a": [1.0, 0.0]}, environment={**hashed("a"), **(more if run.row.label == "disco" else {})})
    one, two = leaderboard.collect(made).tables
    assert [line.row.label for line in two.lines] == ["disco"]
    assert two.key.test_data.endswith("test data changed during the run")
    assert tables.notes(one)[-1] == (
        "finetune-s0 and disco-s0 do not share a table: the test data of disco-s0 changed during the run."
    )
