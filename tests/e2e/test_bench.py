"""A bench of two methods through the command line: stopped, gone on with, read, looked at."""

import json
import signal
from pathlib import Path

import pytest
import yaml

from fcit import load_run
from fcit.bench import folders, plan
from fcit.cli import main
from tests.e2e.conftest import assert_themes_differ
from tests.e2e.test_report import browser  # noqa: F401  (a fixture)
from tests.helpers.commands import Command
from tests.helpers.runs import SMALL, rounds
from tests.helpers.waiting import wait

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

RUNS = ["finetune-s1", "disco-s1"]


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory) -> tuple[Path, Path]:
    """A bench that was asked to stop in its first run: its file and its folder."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    file = folder / "bench.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "both",
                "base": "small.yaml",
                "seeds": [1],
                "jobs": 1,
                "output": str(folder / "runs"),
                "set": {"federation.rounds": 1, "federation.clients_per_round": 1, "evaluation.samples": 8},
                "axes": {"method": ["finetune", "disco"]},
            }
        )
    )
    process = Command("bench", file)
    wait(lambda: rounds(folder / "runs" / "both" / RUNS[0]) or process.returncode is not None)
    process.signal(signal.SIGTERM)
    assert process.wait() == 75 and "goes on" in process.stderr and "Traceback" not in process.stderr, process.stderr
    return file, folder / "runs" / "both"


@pytest.mark.page
def test_a_bench_goes_on_where_it_was_stopped(stopped, capsys):
    file, folder = stopped
    assert (folder / RUNS[0] / "state").is_dir()
    assert not (folder / RUNS[0] / "results.json").exists()
    assert not (folder / RUNS[1]).exists()
    second = plan.load(file).runs[1]
    folders.place(second)
    assert main(["resume", str(second.folder)]) == 0  # what a process of the bench would do, without its imports
    assert main(["bench", str(file)]) == 0
    out = capsys.readouterr().out
    assert "resuming at stage" in (folder / RUNS[0] / "log.txt").read_text()
    assert all(load_run(folder / name).finished and (folder / name / "report.html").is_file() for name in RUNS)
    assert load_run(folder / RUNS[1]).config.seed == 1
    assert "finetune-s1: Last" in out
    assert "disco" in out
    assert "reduced (8 questions a test set" in out
    table = json.loads((folder / "leaderboard.json").read_text())["tables"][0]
    by_row = {row["row"]: row for row in table["rows"]}
    assert by_row["disco"]["figures"]["Last"]["values"] == [load_run(folder / RUNS[1]).matrix.last]
    assert by_row["disco"]["difference"]["left_out"] == {}  # captions too
    assert by_row["disco"]["made_elsewhere"] == []
    assert by_row["disco"]["differs_in"] == []


def test_what_is_done_is_not_done_again(stopped, capsys):
    file, folder = stopped
    before = {name: (folder / name / "results.json").stat().st_mtime_ns for name in RUNS}
    assert main(["bench", str(file)]) == 0
    assert before == {name: (folder / name / "results.json").stat().st_mtime_ns for name in RUNS}
    (folder / "leaderboard.md").unlink()
    assert main(["bench", str(file), "--table", "--into", str(file.parent / "kept")]) == 0
    assert (file.parent / "kept" / "leaderboard.md").read_text() == (folder / "leaderboard.md").read_text()
    capsys.readouterr()
    assert main(["bench", str(file), "--dry-run"]) == 0
    assert "2 runs, 2 done; baseline finetune" in capsys.readouterr().out


def test_a_run_that_fails(stopped, tmp_path, capsys):
    """It is told with the last thing it said."""
    (tmp_path / "broken.py").write_text(
        "from fcit.fedopt.fedavg import FedAvg\n\n\nclass Broken(FedAvg):\n    summary = 'fails'\n\n"
        "    def __init__(self, *arguments):\n        raise ValueError('on purpose')\n"
    )
    file = tmp_path / "bench.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "some",
                "base": str(stopped[0].with_name("small.yaml")),
                "output": str(tmp_path),
                "axes": {"fedopt": ["./broken.py:Broken"]},
            }
        )
    )
    assert main(["bench", str(file)]) == 1
    captured = capsys.readouterr()
    assert "fcit: Broken-s0 failed (exit 1: ValueError: on purpose); see " in captured.err
    assert "tries it again" in captured.err
    assert "no run has finished yet" in captured.out


def test_the_page_in_a_browser(stopped, browser):  # noqa: F811
    browser.get((stopped[1] / "leaderboard.html").as_uri())
    charts = browser.execute_script(
        """return [...document.querySelectorAll('svg')].map(s => {
             const box = s.getBoundingClientRect();
             return [s.getAttribute('aria-label'), box.width, box.height, s.querySelectorAll('path, use').length];
           })"""
    )
    assert [label.split(",")[0] for label, *_ in charts] == ["Last of every row", "Accuracy against bytes"]
    assert all(width > 300 and height > 50 and shapes > 10 for _, width, height, shapes in charts)
    links = browser.execute_script("return [...document.querySelectorAll('td a')].map(a => a.getAttribute('href'))")
    assert sorted(links) == sorted(f"{name}/report.html" for name in RUNS)
    assert all((stopped[1] / link).is_file() for link in links)
    assert_themes_differ(browser)
    assert browser.get_log("browser") == []
