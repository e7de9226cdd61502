"""Reports of real runs: files, numbers, and the page in a browser, light and dark."""

import csv
import json
import os
import shutil

import pytest
import yaml

from fcit import load_run
from fcit.cli import main
from fcit.errors import RunError
from fcit.report import tables
from tests.e2e.conftest import assert_themes_differ
from tests.helpers.lighter import PAGES
from tests.helpers.runs import SMALL

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def two(reference, tmp_path_factory):
    """Two finished runs and their comparison."""
    folder = tmp_path_factory.mktemp("two")
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump({**SMALL, "output": str(folder), "method": "finetune", "name": "plain"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PAGES, "1")
        assert main(["run", str(config)]) == 0
    assert (
        main(
            [
                "report",
                str(reference),
                str(folder / "plain-1"),
                "--output",
                str(folder / "out"),
                "--figure",
                str(folder / "matrices.png"),
            ]
        )
        == 0
    )
    return reference, folder / "plain-1", folder / "out"


def test_a_run_ends_with_its_page(two):
    page = (two[1] / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "data:image/png;base64," in page
    # one file that needs nothing else
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_tables_hold_the_matrix(two):
    run = load_run(two[0])
    rows = list(csv.reader((two[2] / "tables" / "matrix-small-1.csv").open()))
    assert rows[0] == ["stage", *run.matrix.datasets, "mean", "numbers"]
    reduced = "8 questions a test set, choice 0; 400 training records a data set"
    assert {row[-1] for row in rows[1:]} == {f"reduced ({reduced})"}
    assert rows[-1][0] == "best constant answer"
    assert all(float(c) > 0 for c in rows[-1][1:-1])
    last = dict(zip(rows[0], rows[-2], strict=True))
    assert {d: float(last[d]) for d in run.matrix.datasets} == {
        d: round(v, 1) for d, v in run.matrix.scores[-1].items()
    }
    assert rows[1][2:3] == [""]  # not evaluated yet
    latex = (two[2] / "tables" / "comparison.tex").read_text()
    assert r"\toprule" in latex
    assert "small-1 & disco" in latex
    assert "plain-1 & finetune" in latex


def test_figures_are_drawn(two):
    assert two[2].with_name("matrices.png").read_bytes().startswith(b"\x89PNG")
    drawn = {file.name for file in (two[2] / "figures").iterdir()}
    for name in ("matrices", "forgetting", "forms", "means", "seconds", "clients-small-1", "course-plain-1"):
        assert {f"{name}.svg", f"{name}.pdf"} <= drawn
    assert all(file.stat().st_size > 2000 for file in (two[2] / "figures").iterdir())


def test_latex_escapes():
    text = tables.latex([["a_b", "50%"], ["x & y", "1.0"]], "50 % of $1")
    assert r"a\_b & 50\% \\" in text
    assert r"x \& y & 1.0 \\" in text
    assert r"\caption{50 \% of \$1}" in text


def test_a_run_can_be_read(two):
    run = load_run(two[0])
    assert run.finished
    assert run.method == "disco"
    assert run.results["subspaces"] == len(run.subspaces) == 2
    answers = run.predictions("ocr-vqa")
    assert len(answers) == 8
    assert len(answers[0].mix) == 2
    assert run.predictions("ocr-vqa", stage=1)[0].question_id == answers[0].question_id
    with pytest.raises(RunError, match="no predictions for 'figureqa' after stage 1"):
        run.predictions("figureqa", stage=1)
    assert [len(e["examples"]) for e in run.of("round")] == [2] * 4


def test_the_form_of_answers_follows_from_the_predictions(two, capsys):
    """What a run says of the form of its answers, ``fcit evaluate`` says of its prediction files."""
    run = load_run(two[1])
    assert run.results["forms"] == {"ocr-vqa": {"phrase": 8}, "figureqa": {"yes/no": 8}}
    for stage, dataset in [(1, "ocr-vqa"), (2, "ocr-vqa"), (2, "figureqa")]:
        file = run.folder.predictions / f"stage-{stage}" / f"{dataset}.jsonl"
        call = ["evaluate", "--predictions", str(file), "--dataset", dataset, "--benchmark", run.config.benchmark]
        assert main([*call, "--json"]) == 0
        score = json.loads(capsys.readouterr().out)["scores"][0]
        assert score["score"] == run.matrix.scores[stage - 1][dataset]
        assert score["content"] == run.matrix.contents[stage - 1][dataset]
        assert score["form_share"] == run.matrix.shares[stage - 1][dataset]
    assert run.results["form share"] == run.matrix.share
    assert run.results["content forgetting"] + run.results["form forgetting"] == pytest.approx(run.matrix.forgetting)


def test_an_unfinished_run_can_be_looked_at(two, tmp_path, capsys):
    copy = tmp_path / "cut-1"
    shutil.copytree(two[0], copy)
    (copy / "results.json").unlink()
    assert main(["report", str(copy), "--output", str(tmp_path / "out")]) == 0
    assert "unfinished, 2 stages evaluated" in (tmp_path / "out" / "report.html").read_text()
    (copy / "matrix.json").unlink()
    assert main(["report", str(copy)]) == 1
    assert "no stage has been evaluated yet" in capsys.readouterr().err


@pytest.fixture
def browser():
    if not (BROWSER and DRIVER):
        reason = "Chromium and ChromeDriver are not installed"
        assert os.environ.get("FCIT_REQUIRE_BROWSER") != "1", reason
        pytest.skip(f"{reason}; FCIT_REQUIRE_BROWSER=1 makes this a failure")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "window-size=1280,1600",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_the_page_in_a_browser(two, browser):
    for page in (two[2] / "report.html", two[1] / "report.html"):
        browser.get(page.as_uri())
        charts = browser.execute_script(
            """return [...document.querySelectorAll('svg')].map(s => {
                 const box = s.getBoundingClientRect();
                 return [s.getAttribute('aria-label'), box.width, box.height, s.querySelectorAll('path, use').length];
               })"""
        )
        assert len(charts) == (8 if page.parent.name == "out" else 6)
        for label, width, height, shapes in charts:
            assert label and width > 300 and height > 50 and shapes > 5, (label, width, height, shapes)
        images = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
        assert len(images) > 5
        assert min(images) > 0
        # both themes: the background changes, and the charts' ink with it
        assert_themes_differ(browser)
        # everything that scrolls or folds can be reached with the keyboard
        assert browser.execute_script(
            "return [...document.querySelectorAll('.scroll, pre')].every(e => e.tabIndex === 0)"
        )
        assert browser.get_log("browser") == []
