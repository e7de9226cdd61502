"""Files that a configuration names: where they lie."""

from pathlib import Path

import pytest
import yaml

from fcit import config


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """``project/configs`` with a benchmark and a model beside the configuration; the current folder is ``project``."""
    configs = tmp_path / "project" / "configs"
    (configs / "model").mkdir(parents=True)
    (configs / "mine.yaml").write_text("{}")
    monkeypatch.chdir(configs.parent)
    return configs


def test_every_file_name_but_output_is_relative_to_the_file_that_names_it(folders):
    (folders / "run.yaml").write_text(
        "benchmark: mine.yaml\ndata_root: data\nmethod: ./own.py:Mine\noutput: results\n"
        "trackers: [./own.py:Told]\nbackbone: {model: ./model, identity: openai/clip-vit-large-patch14-336}\n"
    )
    raw = yaml.safe_load((folders / "run.yaml").read_text())
    anchored = config.anchored(config._normal(raw), folders)
    assert anchored["benchmark"] == str(folders / "mine.yaml")
    assert anchored["data_root"] == str(folders / "data")
    assert anchored["method"]["name"] == f"{folders / 'own.py'}:Mine"
    assert anchored["trackers"] == [f"{folders / 'own.py'}:Told"]
    assert anchored["backbone"] == {
        "model": str(folders / "model"),
        "identity": "openai/clip-vit-large-patch14-336",  # the hub's: no such folder here
    }
    assert anchored["output"] == "results"


def test_output_is_relative_to_the_current_folder(folders):
    (folders / "run.yaml").write_text("name: a\n")
    assert config.load(Path("configs/run.yaml")).output == "runs"
    assert config.load(Path("configs/run.yaml"), ["output=out"]).output == "out"
    assert config.load(Path("configs/run.yaml"), ["output=~/out"]).output == str(Path.home() / "out")
    described = {key: text for key, _, text in config.settings()}
    assert "relative to the current folder" in described["output"]


def test_a_file_that_is_extended_names_files_relative_to_itself(folders):
    (folders / "run.yaml").write_text("benchmark: mine.yaml\ndata_root: data\nbackbone: {model: ./model}\n")
    (folders / "inner").mkdir()
    (folders / "inner" / "mine.yaml").write_text("{}")
    (folders / "inner" / "more.yaml").write_text("extends: ../run.yaml\nseed: 1\n")
    loaded = config.load(folders / "inner" / "more.yaml")
    assert (loaded.benchmark, loaded.data_root) == (str(folders / "mine.yaml"), str(folders / "data"))
    assert loaded.backbone.model == str(folders / "model")


def test_names_on_the_command_line_are_relative_to_the_current_folder(folders):
    (folders / "run.yaml").write_text("name: a\n")
    found = config.load(folders / "run.yaml", ["benchmark=mine.yaml"])  # only there is one
    assert found.benchmark == str(folders / "mine.yaml")
    (folders.parent / "mine.yaml").write_text("{}")
    found = config.load(folders / "run.yaml", ["benchmark=mine.yaml", "data_root=data", "backbone.model=configs/model"])
    assert found.benchmark == str(folders.parent / "mine.yaml")
    assert found.data_root == str(folders.parent / "data")
    assert found.backbone.model == str(folders / "model")


@pytest.mark.parametrize("name", ["", "x" * 5000, "a/b\\c", "fcit-tiny"])
def test_strange_model_names_stay_as_they_are(name, tmp_path):
    assert config.model_path(name, tmp_path) == name
