"""Columns that a leaderboard has where a row knows their figures, and only there."""

import csv
import io
import json

from fcit.bench import data, figures, leaderboard, page, tables
from fcit.evaluation.matrix import AccuracyMatrix
from tests.bench.conftest import COST, finish


def test_a_centralised_table_has_no_columns_of_a_federation(planned):
    base = {"setting": "centralised", **{f"federation.{key}": 1 for key in ("clients", "clients_per_round", "rounds")}}
    made = planned(set=base, rows=[{"axes": {"method": ["finetune"]}}])
    for run in made.runs:
        finish(run, {"a": [1.0, 0.0]}, {**COST, "client_rounds": 1})
    board = leaderboard.collect(made)
    [table] = board.tables
    columns = ["row", "s/task", "kept MB", "state MB", "trainable", "stored", "active", "s/sample"]
    assert tables.cost_head(table) == columns
    assert tables.cost_cells(table, table.lines[0])[1:4] == ["0.500", "0", "2.00"]
    assert not {"up", "down"} & set(next(csv.reader(io.StringIO(data.to_csv(board)))))
    assert "up" not in json.loads(data.to_json(board))["tables"][0]["rows"][0]["cost"]
    assert figures.points(table) == []
    assert "MB up" not in page.render(board)


def test_rounds_that_a_method_adds_belong_to_their_task_without_a_federation(planned):
    base = {"setting": "centralised", **{f"federation.{key}": 1 for key in ("clients", "clients_per_round", "rounds")}}
    made = planned(set=base, rows=[{"axes": {"method": ["mrlora"]}}])
    for run in made.runs:  # one task of two rounds
        finish(run, {"a": [1.0, 0.0]}, {**COST, "client_rounds": 2, "client_cpu_seconds": 0.25})
    [table] = leaderboard.collect(made).tables
    cells = dict(zip(tables.cost_head(table), tables.cost_cells(table, table.lines[0]), strict=True))
    assert (cells["s/task"], cells["CPU s/task"]) == ("1.00", "0.500")


def test_cpu_seconds_have_columns_where_a_row_knows_them(planned):
    made = planned(rows=[{"axes": {"method": ["finetune", "disco"]}}])
    for run in made.runs:
        known = {"client_cpu_seconds": 0.4, "cpu_seconds_per_sample": 0.003}
        finish(run, {"a": [1.0, 0.0]}, COST | (known if run.row.label == "disco" else {}))
    board = leaderboard.collect(made)
    (table,) = board.tables
    assert tables.cost_head(table)[-2:] == ["client CPU s", "CPU s/sample"]
    cells = {line.label: tables.cost_cells(table, line)[-2:] for line in table.lines}
    assert cells == {"finetune": ["-", "-"], "disco": ["0.400", "0.00300"]}
    assert any(note.startswith("CPU s: the same of a core alone") for note in tables.notes(table))
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(data.to_csv(board)))}
    assert (rows["disco"]["client_cpu_seconds"], rows["finetune"]["cpu_seconds_per_sample"]) == ("0.4", "")


def test_no_columns_of_cpu_seconds_where_no_row_knows_them(board):
    assert "CPU" not in tables.markdown(board[1])


def test_what_was_not_trained_has_columns_where_some_row_asked_it(planned):
    made = planned(seeds=[0, 1], rows=[{"axes": {"method": ["finetune", "disco"]}}])
    for run in made.runs:
        asked = {"0": {"a": 5.0, "g": 80.0}, "1": {"g": 70.0 - 20 * run.seed}}
        finish(run, {"a": [1.0, 0.0]}, untrained=asked if run.row.label == "disco" else None)
    board = leaderboard.collect(made)
    [table] = board.tables
    assert table.untrained == ["general", "general lost"]  # one stage: nothing was unseen after it
    cells = {line.row.label: tables.accuracy_cells(table, line)[7:9] for line in table.lines}
    assert cells == {"finetune": ["-", "-"], "disco": ["60.0 ± 14.1", "20.0 ± 14.1"]}
    assert tables.accuracy_head(table)[7:9] == table.untrained
    assert len(tables.accuracy_head(table)) == len(tables.accuracy_cells(table, table.lines[0]))
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(data.to_csv(board)))}
    assert (rows["disco"]["general lost"], rows["finetune"]["general lost"]) == ("20", "")
    line = next(row for row in json.loads(data.to_json(board))["tables"][0]["rows"] if row["row"] == "disco")
    assert line["untrained"]["general"]["values"] == [70, 50]
    assert line["held_out"]["0"] == {"0": {"g": 80}, "1": {"g": 70}}
    assert any(note.startswith("general lost: ") for note in tables.notes(table))
    assert "general lost" in page.render(board)


def test_rows_that_held_out_different_data_sets_share_no_column(planned):
    made = planned(rows=[{"axes": {"method": ["finetune", "disco"]}}])
    for run in made.runs:
        name = "g" if run.row.label == "disco" else "h"
        finish(run, {"a": [1.0, 0.0]}, untrained={"0": {name: 80.0}, "1": {name: 70.0}})
    [table] = leaderboard.collect(made).tables
    assert table.untrained == ["general (g)", "general (h)", "general lost (g)", "general lost (h)"]


def test_epsilon_has_a_column_where_a_row_is_private(planned):
    made = planned(rows=[{"axes": {"method": ["finetune", "disco"]}}], seeds=[0, 1])
    for run in made.runs:
        finish(run, {"a": [1.0, 0.0]})
        if run.row.label == "disco":
            file = run.folder / "results.json"
            spent = {
                "epsilon": 7.9 + run.seed / 10,
                "delta": 1e-5,
                "public_noise": bool(run.seed),
                "amplification": "no",
            }
            records = {**spent, "epsilon": 2.0 + run.seed, "public_noise": False}
            raw = {**json.loads(file.read_text()), "privacy": spent, "record_privacy": records}
            file.write_text(json.dumps(raw))
    found = leaderboard.collect(made)
    text = tables.markdown(found)
    assert "| forgetting | epsilon | record epsilon | difference" in text
    assert "| disco | 2 | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 | - | - | 8.00 | 3.00 |" in text
    assert "| finetune | 2 | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 | - | - | - | - |" in text
    assert "differential privacy of whole clients (a contribution replaced by zero) at delta 1e-05" in text
    assert "record epsilon: differential privacy of single records (one added or removed) at delta 1e-05" in text
    assert "Amplification by sampling: no." in text
    assert "disco: the noise follows from the seed (privacy.reproducible_noise) and keeps nothing private." in text
    rows = {
        row["row"]: (row["epsilon"], row["record epsilon"]) for row in csv.DictReader(io.StringIO(data.to_csv(found)))
    }
    assert rows == {"finetune": ("", ""), "disco": ("8", "3")}
    assert any("epsilon" in column.header for column in tables.terminal(found.tables[0], "small", 200).columns)


def test_the_epsilon_of_tokens_has_a_column(planned):
    made = planned(rows=[{"axes": {"method": ["finetune", "disco"]}}], seeds=[0])
    for run in made.runs:
        finish(run, {"a": [1.0, 0.0]})
        if run.row.label == "disco":
            file = run.folder / "results.json"
            spent = {"epsilon": 2.0, "delta": 1e-6, "public_noise": False, "amplification": "none"}
            file.write_text(json.dumps({**json.loads(file.read_text()), "token_privacy": spent}))
    text = tables.markdown(leaderboard.collect(made))
    assert "| forgetting | token epsilon | difference" in text
    assert "token epsilon: differential privacy of single records (one added or removed) at delta 1e-06" in text


def test_no_column_of_epsilons_without_privacy(board):
    assert "epsilon" not in tables.markdown(board[1])
    assert "epsilon" not in data.to_csv(board[1])


def test_the_form_of_answers_has_columns_where_a_row_knows_it(planned):
    made = planned(rows=[{"axes": {"method": ["finetune", "disco"]}}], seeds=[0, 1])
    for run in made.runs:
        finish(run, {"a": [1.0, 0.0], "b": [1.0, 1.0]})
        if run.row.label == "disco":
            scores, contents = [{"a": 80.0}, {"a": 50.0, "b": 100.0}], [{"a": 80.0}, {"a": 70.0, "b": 100.0}]
            shares = [{"a": 100.0}, {"a": 60.0 + 10 * run.seed}]
            matrix = AccuracyMatrix(["a", "b"], scores, shares=shares, contents=contents)
            (run.folder / "matrix.json").write_text(json.dumps(matrix.to_json()))
    found = leaderboard.collect(made)
    text = tables.markdown(found)
    assert "| by seed | family | form share | content forgetting | form forgetting | differs in |" in text
    assert "| routing | 65.0 ± 7.1 | 10.0 ± 0.0 | 20.0 ± 0.0 |" in text
    assert "| baseline | - | - | - |" in text
    assert "- form share: answers after the last stage that have the form" in text
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(data.to_csv(found)))}
    assert (rows["disco"]["form share"], rows["disco"]["form forgetting"]) == ("65", "20")
    assert rows["finetune"]["form share"] == ""
    raw = {row["row"]: row["forms"] for row in json.loads(data.to_json(found))["tables"][0]["rows"]}
    assert raw["disco"]["form share"]["values"] == [60.0, 70.0]
    assert raw["finetune"] == {}
    assert "form share" in tables.tex(found)
    assert ">content forgetting</th>" in page.render(found)


def test_no_columns_of_forms_where_no_row_knows_them(board):
    assert "form share" not in tables.markdown(board[1])


def test_simulated_hours_have_a_column_and_a_picture_where_a_row_has_a_clock(planned):
    made = planned(rows=[{"axes": {"method": ["finetune", "disco"]}}], seeds=[0, 1])
    for run in made.runs:
        hours = 2.0 + run.seed
        simulated = run.row.label == "disco"
        finish(run, {"a": [1.0, 0.0]}, cost={"simulated_hours": hours} if simulated else {})
        if simulated:
            file = run.folder / "results.json"
            raw = {**json.loads(file.read_text()), "simulated": {"stages": [3600 * hours]}}
            file.write_text(json.dumps(raw))
    found = leaderboard.collect(made)
    (table,) = found.tables
    assert tables.cost_head(table)[-1] == "simulated h"
    cells = {line.label: tables.cost_cells(table, line)[-1] for line in table.lines}
    assert cells == {"finetune": "-", "disco": "2.50"}
    (axis,) = figures.hours(table).axes
    (line,) = axis.lines
    assert line.get_xydata().tolist() == [[2.5, 50.0]]


def test_no_column_of_simulated_hours_without_a_clock(board):
    assert "simulated" not in tables.markdown(board[1])
