"""What the tables say, from run folders made by hand."""

import csv
import io
import json
import os
from unittest import mock

import numpy as np
import pytest
from rich.console import Console

from fcit.bench import command, data, figures, leaderboard, page, tables
from fcit.bench.overrides import flat
from tests.bench.conftest import ENVIRONMENT, finish


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


def test_the_area_that_a_label_would_cover():
    boxes = np.array([[0.0, 0.0, 4.0, 2.0], [10.0, 10.0, 11.0, 11.0]])
    others = np.array([[3.0, 1.0, 9.0, 9.0], [1.0, -1.0, 2.0, 3.0], [4.0, 0.0, 5.0, 2.0]])
    # The first shares a corner of 1 x 1 with one and a band of 1 x 2 with another, and only an edge with the third.
    assert figures._overlaps(boxes, others).tolist() == [3.0, 0.0]


def test_page_and_pictures(board):
    made, filled = board
    for run in made.runs:
        if run.folder.is_dir():
            (run.folder / "report.html").write_text("")
    pictures = page.write_figures(filled)
    assert [file.name for file in pictures] == ["pareto.svg", "last.svg"]
    assert all(file.stat().st_size > 2000 and file.with_suffix(".pdf").is_file() for file in pictures)
    files = [file.with_suffix(ending) for file in pictures for ending in (".svg", ".pdf")]
    before = [file.read_bytes() for file in files]
    with mock.patch.dict(os.environ, {"SOURCE_DATE_EPOCH": "86400"}):
        page.write_figures(filled)
    assert [file.read_bytes() for file in files] == before
    text = page.render(filled)
    assert text.startswith("<!doctype html>")
    assert 'href="disco-s1/report.html"' in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text


def test_table_only_and_copies(board, tmp_path, capsys):
    made, _ = board
    assert command.bench(command.BenchOptions(made.file, table=True, into=tmp_path / "kept")) == 0
    kept = {file.name for file in (tmp_path / "kept").iterdir()}
    assert kept == {"leaderboard.md", "leaderboard.csv", "leaderboard.json", "pareto.svg", "last.svg", "runs.tar.xz"}
    assert {"leaderboard.tex", "leaderboard.html", "pareto.pdf"} <= {f.name for f in made.folder.iterdir()}
    out = capsys.readouterr().out
    assert "disco / lr=0.001" in out
    assert "leaderboard.html" in out


def test_a_bench_that_went_on_elsewhere_says_which_seeds(planned):
    made = planned(seeds=[0, 1, 2], axes={"method": ["finetune", "disco"]})
    for run in made.runs:
        environment = {**ENVIRONMENT, "cpus": 64, "libraries": {"torch": "9.9"}} if run.seed == 2 else ENVIRONMENT
        finish(run, {"a": [1.0, 0.0]}, environment=environment)
    (table,) = leaderboard.collect(made).tables
    assert all(
        line.elsewhere == ["cpus - (seed 0, 1) and 64 (seed 2)", "torch 2.6 (seed 0, 1) and 9.9 (seed 2)"]
        for line in table.lines
    )
    (note,) = [note for note in tables.notes(table) if note.startswith("‡")]
    assert note == "‡ every row: cpus - (seed 0, 1) and 64 (seed 2); torch 2.6 (seed 0, 1) and 9.9 (seed 2)."


def test_surroundings_are_compared_seed_by_seed(planned):
    made = planned(axes={"method": ["finetune", "disco"]}, seeds=[0, 1])
    for run in made.runs:
        crossed = run.seed == (0 if run.row.label == "disco" else 1)
        finish(run, {"a": [1.0]}, environment={**ENVIRONMENT, "libraries": {"torch": "2.7" if crossed else "2.6"}})
    (table,) = leaderboard.collect(made).tables
    disco = next(line for line in table.lines if line.row.label == "disco")
    assert disco.elsewhere == ["torch 2.6, not 2.7 and 2.7, not 2.6", "torch 2.7 (seed 0) and 2.6 (seed 1)"]


def test_pictures_say_that_numbers_are_reduced(board):
    (table,) = board[1].tables
    for maker in (figures.pareto, figures.lasts):
        assert maker(table).get_suptitle() == "reduced (4 questions a test set, choice 0)"


def test_flat():
    assert flat({"a": {"b": {"c": 1}}, "d": []}) == {"a.b.c": 1, "d": []}
