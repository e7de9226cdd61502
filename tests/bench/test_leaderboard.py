"""What the tables say, from run folders made by hand."""

import csv
import io
import json

import pytest
from rich.console import Console

from fcit.bench import command, data, figures, leaderboard, page, tables
from fcit.bench.overrides import flat
from fcit.evaluation.matrix import AccuracyMatrix
from tests.bench.conftest import ENVIRONMENT, finish

COST = {
    "client_rounds": 6,
    "up_per_client_round": 400_000.0,
    "down_per_client_round": 500_000.0,
    "client_seconds": 0.5,
    "server_bytes": 2_000_000,
    "client_memory_bytes": 0.0,
    "parameters": {"trainable": 97_536, "stored": 390_144, "active": 97_536},
    "seconds_per_sample": 0.004,
}


@pytest.fixture
def board(planned):
    """Two seeds of fine-tuning and DISCO, one of two of DISCO with another rate, references."""
    made = planned(
        seeds=[0, 1],
        set={"evaluation.samples": 4},
        rows=[
            {"axes": {"method": ["finetune", "disco", "joint"]}},
            {"axes": {"method": ["disco"], "training.lr": [0.001]}},
            {"axes": {"method": ["zero_shot"]}, "seeds": [0]},
        ],
    )
    marks = {"finetune": [1, 0, 0, 0], "disco": [1, 1, 0, 0], "joint": [1, 1, 1, 0], "disco / lr=0.001": [1, 1, 1, 1]}
    for run in made.runs:
        label = run.row.label
        if label == "zero_shot" or (label, run.seed) == ("disco / lr=0.001", 1):
            continue
        environment = {**ENVIRONMENT, "libraries": {"torch": "9.9"}} if label == "joint" else ENVIRONMENT
        values = [1.0, *marks[label][1:]] if run.seed == 0 else [0.0, *marks[label][1:]]
        finish(run, {"a": values}, COST if label == "disco" else None, 50.0, environment)
    return made, leaderboard.collect(made)


def test_a_centralised_table_has_no_columns_of_a_federation(planned):
    base = {"setting": "centralised", **{f"federation.{key}": 1 for key in ("clients", "clients_per_round", "rounds")}}
    made = planned(set=base, rows=[{"axes": {"method": ["finetune"]}}])
    for run in made.runs:
        finish(run, {"a": [1.0, 0.0]}, COST)
    board = leaderboard.collect(made)
    [table] = board.tables
    columns = ["row", "s/task", "kept MB", "state MB", "trainable", "stored", "active", "s/sample"]
    assert tables.cost_head(table) == columns
    assert tables.cost_cells(table, table.lines[0])[1:4] == ["0.500", "0", "2.00"]
    assert not {"up", "down"} & set(next(csv.reader(io.StringIO(data.to_csv(board)))))
    assert "up" not in json.loads(data.to_json(board))["tables"][0]["rows"][0]["cost"]
    assert figures.points(table) == []
    assert "MB up" not in page.render(board)


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


def test_figures_and_order(board):
    (table,) = board[1].tables
    assert table.key.title == "fcit-mini-short, homogeneous, reduced (4 questions a test set, choice 0)"
    assert [line.row.label for line in table.lines] == ["disco / lr=0.001", "disco", "finetune", "joint"]
    assert [line.group for line in table.lines] == ["", "", "", "reference"]
    assert table.waiting == ["zero_shot"]
    assert table.baseline == "finetune"
    # marks 2/4 and 1/4, and 50 for the captions: Last 50 and 37.5
    assert tables.spread(table.lines[1].figures["Last"]) == "43.8 ± 8.8"
    assert [line.seeds for line in table.lines] == ["1 of 2", "2", "2", "2"]
    assert table.lines[3].figures["Avg"] is None
    assert table.lines[3].figures["MFT"] is None
    assert table.lines[0].differs == ["training.lr 0.001, not 0.003"]
    assert table.lines[1].differs == []
    assert table.lines[3].elsewhere == ["torch 9.9, not 2.6"]
    assert table.lines[1].difference.estimate == 25.0
    assert table.lines[2].difference is None


def test_markdown(board):
    text = tables.markdown(board[1])
    assert "| disco | 2 | 43.8 ± 8.8 |" in text
    assert "| +25.0 [0.0, 50.0] | +25.0 +25.0 |" in text
    assert "| disco / lr=0.001 | 1 of 2 |" in text
    assert "| *references* |" in text
    assert text.index("*references*") < text.index("| joint ‡ |")
    assert "- ‡ joint: torch 9.9, not 2.6." in text
    assert (
        "- The difference leaves out captions (its score is of the whole corpus), so it is not that of the column Last."
        in text
    )
    assert "- No finished run yet: zero_shot." in text
    assert "| disco | 0.400 | 0.500 | 0.500 | 0 | 2.00 | 97.5 k | 390 k | 97.5 k | 0.00400 |" in text
    assert "| finetune | - | - | - |" in text  # an older run has no cost


@pytest.mark.parametrize(("width", "heads"), [(140, 8), (100, 6), (70, 4), (30, 2)])
def test_the_terminal_gets_what_fits(board, width, heads):
    grid = tables.terminal(board[1].tables[0], "small", width)
    assert len(grid.columns) == heads
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(grid)
    text = console.export_text()
    assert "43.8 ± 8.8" in text
    assert "…" not in text
    assert "disco" in text


def test_csv_json_latex(board):
    rows = list(csv.DictReader(io.StringIO(data.to_csv(board[1]))))
    disco = rows[1]
    assert (disco["row"], disco["Last"], disco["up"], disco["seeds"], disco["planned"]) == (
        "disco",
        "43.75",
        "400000",
        "2",
        "2",
    )
    assert disco["family"] == "routing"
    assert disco["reduced"] == "4 questions a test set, choice 0"
    assert rows[2]["up"] == ""
    assert rows[0]["Last_sd"] == ""
    raw = json.loads(data.to_json(board[1]))["tables"][0]
    assert raw["reduced"] == ["4 questions a test set, choice 0"]
    assert raw["rows"][1]["figures"]["Last"]["values"] == [50.0, 37.5]
    assert raw["rows"][1]["difference"]["by_seed"] == {"0": 25.0, "1": 25.0}
    assert raw["rows"][1]["runs"] == [
        "disco-s0",
        "disco-s1",
    ]
    latex = tables.tex(board[1])
    assert r"43.8 $\pm$ 8.8" in latex
    assert r"joint$^\ddagger$" in latex
    assert "±" not in latex
    assert r"\begin{tabular}{lrrrrrrrrll}" in latex


def test_methods_of_our_own_and_methods_that_store(board, monkeypatch):
    from fcit.methods.disco import Disco

    monkeypatch.setattr(Disco, "dagger", True, raising=False)
    monkeypatch.setattr(Disco, "group", "replay", raising=False)
    (table,) = leaderboard.collect(board[0]).tables
    assert [line.row.label for line in table.lines] == ["finetune", "disco / lr=0.001", "disco", "joint"]
    text = tables.markdown(leaderboard.Leaderboard("b", board[0].folder, [table]))
    assert "| *store samples* |" in text
    assert "| disco † | 2 |" in text
    assert "- † our definition." in text


def test_frontier(board):
    (table,) = board[1].tables
    assert [point.line.row.label for point in figures.points(table)] == ["disco"]

    def point(name: str, x: float, y: float, group: str = "") -> figures.Point:
        line = leaderboard.Line(table.lines[1].row, {}, group, "", False, {}, {})
        return figures.Point(line, x, y)

    a, b, c, d = point("a", 1, 10), point("b", 2, 9), point("c", 3, 12), point("d", 0.5, 99, "replay")
    assert figures.frontier([a, b, c, d]) == [a, c]
    assert figures._corners([a, c], 5) == [(1, 10), (3, 10), (3, 12), (5, 12)]


def test_page_and_pictures(board):
    filled = board[1]
    pictures = page.write_figures(filled)
    assert [file.name for file in pictures] == ["pareto.svg", "last.svg"]
    assert all(file.stat().st_size > 2000 and file.with_suffix(".pdf").is_file() for file in pictures)
    text = page.render(filled)
    assert text.startswith("<!doctype html>")
    assert 'href="disco-s1/report.html"' in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text


def test_table_only_and_copies(board, tmp_path, capsys):
    made, _ = board
    assert command.bench(command.BenchOptions(made.file, table=True, into=tmp_path / "kept")) == 0
    kept = {file.name for file in (tmp_path / "kept").iterdir()}
    assert kept == {"leaderboard.md", "leaderboard.csv", "leaderboard.json", "pareto.svg", "last.svg"}
    assert {"leaderboard.tex", "leaderboard.html", "pareto.pdf"} <= {f.name for f in made.folder.iterdir()}
    out = capsys.readouterr().out
    assert "disco / lr=0.001" in out
    assert "leaderboard.html" in out


def test_surroundings_are_compared_seed_by_seed(planned):
    made = planned(axes={"method": ["finetune", "disco"]}, seeds=[0, 1])
    for run in made.runs:
        crossed = run.seed == (0 if run.row.label == "disco" else 1)
        finish(run, {"a": [1.0]}, environment={**ENVIRONMENT, "libraries": {"torch": "2.7" if crossed else "2.6"}})
    (table,) = leaderboard.collect(made).tables
    disco = next(line for line in table.lines if line.row.label == "disco")
    assert disco.elsewhere == ["torch 2.6, not 2.7 and 2.7, not 2.6"]


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
    assert "so there are no differences; settings and versions are compared with disco / lr=0.1" in tables.markdown(
        leaderboard.Leaderboard("b", made.folder, [table])
    )


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


def test_pictures_say_that_numbers_are_reduced(board):
    (table,) = board[1].tables
    for maker in (figures.pareto, figures.lasts):
        assert maker(table).get_suptitle() == "reduced (4 questions a test set, choice 0)"


def test_flat():
    assert flat({"a": {"b": {"c": 1}}, "d": []}) == {"a.b.c": 1, "d": []}


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
