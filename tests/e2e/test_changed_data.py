"""Data or own code that change under a run: refused and named, or accepted and told everywhere; tables keep apart."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

import fcit
from fcit import load_run
from fcit.cli import main
from fcit.errors import StopRequested
from fcit.report import scope
from tests.helpers.commands import fcit as process
from tests.helpers.own_data import make_own, rows
from tests.helpers.runs import OWN


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def own(tmp_path) -> Path:
    return make_own(tmp_path)


class Stops:
    """Asks to stop after the first round."""

    def say(self, kind, **values):
        if kind == "round":
            raise StopRequested("enough")


def stopped(own: Path, **changes) -> Path:
    """A run that was stopped after its round, before it was scored."""
    with pytest.raises(StopRequested):
        fcit.simulate(own, Stops(), **changes)
    return own.parent / "runs" / "own-1"


def blue(own: Path) -> None:
    rows(own, lambda content: [row.update(answer="blue") for row in content[:2]], "test.json")


def refused(run: Path, capsys) -> str:
    capsys.readouterr()
    assert main(["resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not (run / "results.json").exists()
    assert f"`fcit resume {run} --accept-changed-data` goes on" in said
    return said


def environment(run: Path) -> dict:
    return json.loads((run / "environment.json").read_text())


def test_both_files_of_a_run_hold_the_fingerprints(own):
    run = fcit.simulate(own)
    held = environment(run.path)["data"]
    assert held == run.results["data"] == run.data
    assert held["datasets"]["colors"]["test"]["questions"]["sha256"]
    assert run.data_changes == []
    assert "data_changes" not in run.results
    assert scope.notes([run]) == [] == scope.accepted(run)


def test_a_run_that_was_killed_is_not_scored_on_other_questions(own, capsys):
    assert process("run", own, point="server.evaluation,score,before,1").returncode == -9
    run = own.parent / "runs" / "own-1"
    before = environment(run)
    old = before["data"]["datasets"]["colors"]["test"]["questions"]["sha256"][:8]
    blue(own)
    said = refused(run, capsys)
    assert f"colors, test split, questions (test.json): {old} when the run began, " in said
    assert environment(run) == before

    # what was there is put back
    rows(own, lambda content: [row.update(answer="red") for row in content[:2]], "test.json")
    assert main(["resume", str(run)]) == 0
    assert load_run(run).data_changes == []
    assert load_run(run).of("data-changed") == []


@pytest.mark.page
def test_accepted_changes_are_told_everywhere(own, capsys, tmp_path):
    run = stopped(own)
    old = environment(run)["data"]["datasets"]["colors"]["test"]["questions"]["sha256"]
    blue(own)
    assert main(["resume", str(run), "--accept-changed-data"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    done = load_run(run)
    (change,) = done.data_changes[0]["changes"]
    new = done.data["datasets"]["colors"]["test"]["questions"]["sha256"]
    assert (change["what"], change["before"], change["now"]) == ("colors, test split, questions", old, new)
    assert done.results["data_changes"] == done.data_changes
    assert done.results["data"] == done.data
    (event,) = done.of("data-changed")
    assert event["accepted"] == done.data_changes[0]["time"]
    assert (event["stage"], event["round"]) == (0, 0)
    sentence = f"colors, test split, questions (test.json): {old[:8]} when the run began, {new[:8]} now"
    assert event["reason"] == sentence
    assert "goes on with changed data: colors, test split" in out
    assert "accepted with --accept-changed-data" in out
    assert "Accuracy matrix of own-1, test data changed during the run" in out
    text = (run / "report.html").read_text()
    assert text.count('<span class="bad">test data changed during the run</span>') >= 2
    assert f"accepted with --accept-changed-data: {sentence}." in text
    # a run that began on the new data is on another footing, although its data are the same now
    other = fcit.simulate(own)
    assert scope.tested(other) != scope.tested(done)
    assert scope.groups([done, other]) == [("", [other]), ("test data changed during the run", [done])]
    assert "the test data of own-1 changed during the run" in scope.notes([done, other])[0]


def test_a_change_that_was_accepted_is_told_once_more_after_a_crash(own):
    run = stopped(own)
    blue(own)
    done = process("resume", run, "--accept-changed-data", point="server.evaluation,score,before,1")
    assert done.returncode == -9, done.stderr
    assert main(["resume", str(run)]) == 0  # what was accepted is what is there
    assert len(load_run(run).of("data-changed")) == len(load_run(run).data_changes) == 1


def test_a_changed_image_is_named(own, capsys):
    run = stopped(own)
    data = own.parent / "data/datasets"
    Image.new("RGB", (40, 30), (1, 2, 3)).save(data / "q2.png")
    Image.new("RGB", (40, 30), (1, 2, 3)).save(data / "7.png")
    said = refused(run, capsys)
    assert "colors, train split, images: " in said
    assert "(differ: 7.png)" in said
    assert "colors, test split, images: " in said
    assert "(differ: q2.png)" in said
    assert main(["resume", str(run), "--accept-changed-data"]) == 0
    assert len(load_run(run).data_changes[0]["changes"]) == 2


def test_training_data_and_the_benchmark_file(own, capsys):
    run = stopped(own)
    rows(own, lambda content: content[3]["conversations"][1].update(value="green"))
    spec = own.parent / "mine.yaml"
    spec.write_text(spec.read_text() + "# a remark\n")
    said = refused(run, capsys)
    assert "colors, train split, instructions (train.json): " in said
    assert f"benchmark file ({spec}): " in said
    assert main(["resume", str(run), "--accept-changed-data"]) == 0
    # ... are no other test data
    assert scope.label(load_run(run)) == ""


def test_an_own_scorer_that_changed(own, capsys):
    scorer = own.parent / "mine.py"
    scorer.write_text((OWN / "close_enough.py").read_text())
    spec = yaml.safe_load((own.parent / "mine.yaml").read_text())
    spec["datasets"]["colors"]["scorer"] = "./mine.py:close_enough"
    (own.parent / "mine.yaml").write_text(yaml.safe_dump(spec))
    whole = fcit.simulate(own)
    run = own.parent / "runs" / "own-2"
    with pytest.raises(StopRequested):
        fcit.simulate(own, Stops())
    scorer.write_text(scorer.read_text() + "\n# another\n")
    assert f"scorer close_enough ({scorer}): " in refused(run, capsys)
    assert main(["resume", str(run), "--accept-changed-data"]) == 0
    assert scope.label(load_run(run)) == "test data changed during the run"
    third = fcit.simulate(own)
    assert len(scope.groups([whole, third])) == 2
    assert "their test data differ (scorer close_enough" in scope.notes([whole, third])[0]


def test_a_run_from_before_there_were_fingerprints_goes_on(own):
    run = stopped(own)
    old = environment(run)
    del old["data"]
    (run / "environment.json").write_text(json.dumps(old))
    blue(own)
    assert main(["resume", str(run)]) == 0
    done = load_run(run)
    assert done.data == {}
    assert "data" not in done.results
    assert scope.tested(done) == ""


def test_runs_on_different_questions_share_no_table(own, capsys, tmp_path):
    one, same = fcit.simulate(own, name="one"), fcit.simulate(own, name="same", seed=1)
    blue(own)
    other = fcit.simulate(own, name="other")
    assert [[run.name for run in members] for _, members in scope.groups([one, same, other])] == [
        ["one-1", "same-1"],
        ["other-1"],
    ]
    capsys.readouterr()
    assert main(["report", *(str(run.path) for run in (one, same, other)), "--output", str(tmp_path / "out")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    tests = [scope.tested(run)[:8] for run in (one, other)]
    assert all(f"Comparison, test data {test}" in out for test in tests)
    why = "one-1 and other-1 do not share a table: their test data differ (colors, test split, questions (test.json): "
    assert why in out
    found = [[row[0] for row in csv.reader(file.open())] for file in (tmp_path / "out/tables").glob("comparison*.csv")]
    assert sorted(found) == [["run", "one-1", "same-1"], ["run", "other-1"]]
    assert why in (tmp_path / "out" / "report.html").read_text()


def test_training_data_that_differ_are_a_note(own):
    one = fcit.simulate(own, name="one")
    rows(own, lambda content: content[3]["conversations"][1].update(value="green"))
    other = fcit.simulate(own, name="other")
    ((said, members),) = scope.groups([one, other])
    assert said == ""
    assert len(members) == 2
    (note,) = scope.notes([one, other])
    assert note.startswith("one-1 and other-1 differ in what they learnt from: colors, train split, instructions (")


def test_an_old_run_beside_a_new_one(own):
    one, two = fcit.simulate(own, name="one"), fcit.simulate(own, name="two")
    old = environment(one.path)
    del old["data"]
    (one.path / "environment.json").write_text(json.dumps(old))
    one = load_run(one.path)
    assert next(said for said, _ in scope.groups([one, two])) == "test data not recorded"
    assert "what one-1 was scored on was not recorded" in scope.notes([one, two])[0]
    assert scope.groups([one, one]) == [("", [one, one])]
    assert scope.notes([one, one]) == []
