"""A stranger's method, optimiser, scorer and benchmark, by file and by module (on Ray: test_ray.py)."""

import json
import shutil
import sys

import pytest
import yaml

import fcit
from fcit import registry
from fcit.cli import main
from fcit.errors import ConfigError
from fcit.runs.folder import RunDir
from tests.helpers.runs import OWN, SMALL, Copies, bits


@pytest.mark.page
def test_own_parts_run_and_appear_in_results(own_config):
    run = fcit.simulate(own_config)
    assert run.results["method"] == "anchored"
    assert "anchored" in (run.path / "report.html").read_text()
    state = json.loads((max((run.path / "state").iterdir()) / "state.json").read_text())["state"]
    visits = state["memory"]["method"]["visits"]
    # clients came back and remembered
    assert sum(visits.values()) == 2 * 2 * 3
    assert max(visits.values()) > 1
    assert [home for home, _ in state["memory"]["fedopt"]] == ["shared", "subspace-0"]
    # own scorer with half marks, the official rule beside it
    assert run.results["also"]["super-clevr"]["exact"] <= run.matrix.scores[-1]["super-clevr"]


def test_a_cut_run_with_memories_ends_in_the_same_bits(own_config):
    cut = RunDir(own_config.parent / "cut")
    amid = 5, "client"  # the second of the second round
    whole = fcit.simulate(own_config, Copies(own_config.parent / "own-1", cut.path, *amid))
    assert len(list(cut.memory.glob("*/0-1.json"))) == 2  # two clients have already written their memories
    assert main(["resume", str(cut.path)]) == 0
    assert bits(cut.path) == bits(whole.path)


def test_a_module_on_the_path_can_be_named(own_config, monkeypatch, tmp_path):
    shutil.copy(OWN / "anchored.py", tmp_path / "anchored_module.py")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert (
        fcit.config.load(own_config, ["method=anchored_module:Anchored"]).method["name"] == "anchored_module:Anchored"
    )
    assert main(["check", "anchored_module:Anchored"]) == 0


def test_the_example_keeps_the_contract(capsys):
    assert main(["check", str(OWN / "anchored.py:Anchored")]) == 0
    assert "Anchored keeps the contract" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere.py:Mine", r"method: no such file '.*nowhere.py'"),
        ("./anchored.py:Anchord", r"method: '.*anchored.py' has no 'Anchord'; did you mean 'Anchored'\?"),
        ("./momentum.py:Momentum", r"method: .*momentum.py:Momentum is not a subclass of fcit.methods.base.Method"),
        ("no_such_package.mine:Mine", r"method: cannot import 'no_such_package.mine'"),
        ("./broken.py:Mine", r"method: .*broken.py, line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_with_an_own_part_is_said(own_config, name, said):
    (own_config.parent / "broken.py").write_text("x = 1\ny = x / 0\n")
    raw = yaml.safe_load(own_config.read_text())
    own_config.write_text(yaml.safe_dump({**raw, "method": name}))
    with pytest.raises(ConfigError, match=said):
        fcit.config.load(own_config)


def test_own_options_are_checked(own_config):
    with pytest.raises(ConfigError, match=r"method.strength: input should be greater than or equal to 0, got -1"):
        fcit.config.load(own_config, ["method.strength=-1"])


def test_simulate_takes_a_mapping(tmp_path):
    raw = {**SMALL, "output": str(tmp_path), "method": "zero_shot"}
    run = fcit.simulate(raw, evaluation__samples=4, name="api")
    assert run.name == "api-1"
    assert run.config.evaluation.samples == 4
    assert fcit.load_run(run.path).matrix.last is not None


FAILING = """
from fcit.methods.finetune import Finetune


class Failing(Finetune):
    summary = "fails for some clients"

    def loss(self, session, examples, features):
        if session.client % 2:
            raise KeyError("lozzes")
        return super().loss(session, examples, features)


class Crooked(Finetune):
    summary = "routes wrongly"

    def route(self, names, knowledge, features):
        return features[:, 0]
"""


@pytest.mark.page
def test_an_error_in_a_hook_is_told_with_its_place(tmp_path, capsys):
    own = tmp_path / "failing.py"
    own.write_text(FAILING)
    config = tmp_path / "f.yaml"
    config.write_text(yaml.safe_dump({**SMALL, "output": str(tmp_path), "method": "./failing.py:Failing"}))
    assert main(["run", str(config), "name=failing", "federation.clients_per_round=5", "evaluation.samples=2"]) == 0
    out = capsys.readouterr().out
    assert "client updates were rejected or failed" in out
    run = fcit.load_run(tmp_path / "failing-1")
    rejected = run.of("rejected")
    assert rejected
    assert not run.of("missing")  # they answered, if badly
    first, *trail = rejected[0]["reason"].splitlines()
    assert "KeyError: 'lozzes'" in first
    assert first.startswith("client ")
    assert any("failing.py" in line for line in trail)
    assert "lozzes" in (run.path / "report.html").read_text()

    assert main(["run", str(config), "method=" + str(own) + ":Crooked", "name=crooked"]) == 1
    said = capsys.readouterr().err
    assert "method Crooked: route must return finite weights (8, 1), got (8,)" in said
    assert "fcit resume" in said


def test_too_few_records_are_told_before_a_run_is_made(own_config, capsys):
    assert main(["run", str(own_config), "federation.clients=5000", "federation.clients_per_round=2"]) == 2
    said = capsys.readouterr().err
    assert "task 0 (super-clevr)" in said
    assert "lower federation.clients" in said
    assert not list(own_config.parent.glob("own-*"))


MERGED = '''
"""A new method: one file."""

import numpy as np

from fcit.methods.base import INVARIANTS
from fcit.methods.per_stage import PerStage


class Merged(PerStage):
    """A LoRA per stage, all with half their weight."""

    name = "merged"
    summary = "a LoRA per stage, all with half their weight"
    answers = "Answers come from all subspaces with half their weight each."
    invariants = INVARIANTS - {"mix-sums-to-one"}

    def route(self, names, knowledge, features):
        return np.full((len(features), len(names)), 0.5, dtype=np.float32)
'''


def test_a_method_is_one_file_and_one_line(tmp_path, monkeypatch, capsys):
    """Listed, checked, run, reported, exported: its model card says how it answers, and the export answers so."""
    (tmp_path / "merged_method.py").write_text(MERGED)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setitem(registry.METHODS, "merged", "merged_method:Merged")
    config = tmp_path / "m.yaml"
    federation = {"rounds": 1, "clients": 50, "clients_per_round": 2}
    reduced = {"federation": federation, "evaluation": {"samples": 2, "when": "final"}}
    config.write_text(yaml.safe_dump({**SMALL, **reduced, "output": str(tmp_path), "method": "merged"}))
    assert main(["list", "method"]) == 0
    assert main(["check", "merged"]) == 0
    printed = capsys.readouterr().out
    assert "merged               a LoRA per stage, all with half" in printed
    assert "merged keeps the contract" in printed
    assert main(["run", str(config)]) == 0
    run = fcit.load_run(tmp_path / "small-1")
    assert main(["export", str(run.path), "--to", str(tmp_path / "out")]) == 0
    assert (
        "Answers come from all subspaces with half their weight each." in (tmp_path / "out" / "README.md").read_text()
    )
    [answer] = fcit.load(tmp_path / "out").answer([None], ["What is this?"])
    assert set(answer.mix.values()) == {0.5}
    assert len(answer.mix) == 2
