"""Every shipped benchmark runs from first stage to report, in both settings where it defines them."""

import json

import pytest
import yaml

from fcit import simulate
from fcit.data.spec import read_spec
from tests.helpers.runs import SMALL


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["fcit-mini-cap", "fcit-mini-alike"])
def test_runs_whole(name, tmp_path, fcit):
    spec = read_spec(name)
    raw = {
        **SMALL,
        "benchmark": name,
        "output": str(tmp_path),
        "evaluation": {"samples": 2},
        "federation": {"rounds": 1, "clients_per_round": 1},
    }
    run = simulate(raw)
    assert len(run.matrix.scores) == len(spec.tasks)
    assert set(run.matrix.scores[-1]) == set(spec.datasets)
    for dataset in [name for name, described in spec.datasets.items() if described.scorer == "caption"]:
        file = run.folder.predictions / f"stage-{len(spec.tasks)}" / f"{dataset}.jsonl"
        code, out, err = fcit("evaluate", "--predictions", file, "--dataset", dataset, "--benchmark", name, "--json")
        assert code == 0, err
        assert json.loads(out)["scores"][0]["score"] == run.matrix.scores[-1][dataset]


def test_configurations_are_whole():
    from pathlib import Path

    from fcit.config import load

    for file in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")):
        assert load(file).name, file
        assert yaml.safe_load(file.read_text()), file
