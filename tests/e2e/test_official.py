"""The published benchmark as a lab runs it: check, run, score, export, load, chat; on stand-ins of data and model."""

import json
from pathlib import Path

import pytest
import yaml
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import fcit as library
from fcit.data.shipped import SHIPPED
from fcit.runs.reader import Run
from tests.helpers.java import light_java
from tests.helpers.llava import small_llava
from tests.helpers.official import official_tree

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

CLIENTS = 4


@pytest.fixture
def java(tmp_path, monkeypatch) -> None:
    """The official caption score needs it."""
    light_java(tmp_path, monkeypatch)


def two_stages(folder: Path) -> Path:
    """The shipped file of all twelve data sets, with its four groups in two tasks."""
    raw = yaml.safe_load((SHIPPED / "fcit-cap.yaml").read_text())
    general, other, maths, chart = raw["tasks"]
    raw |= {"name": "fcit-two", "tasks": [maths + chart, general + other], "homogeneous": [0, 1]}
    del raw["heterogeneous"]
    path = folder / "fcit-two.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def test_from_check_to_chat(java, fcit, tmp_path):
    benchmark = two_stages(tmp_path)
    root = official_tree(tmp_path / "data", "fcit-cap", records=6, tests=2)
    code, out, _ = fcit("data", "check", benchmark, "--root", root, "--all", "--clients", CLIENTS, "--json")
    found = json.loads(out)
    assert code == 0
    assert len(found["datasets"]) == 12

    model, identity = small_llava(tmp_path)
    config = tmp_path / "official.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "extends": str(Path("configs/fcit/task-hom-disco.yaml").resolve()),
                "name": "official",
                "benchmark": str(benchmark),
                "data_root": str(root),
                "output": str(tmp_path / "runs"),
                "federation": {
                    "clients": CLIENTS,
                    "clients_per_round": 2,
                    "rounds": 1,
                    "sampling": "seeded",
                    "engine": "inline",
                },
                "evaluation": {"max_new_tokens": 3},
                "training": {"batch_size": 4},  # the trainer's first step of an epoch moves nothing
                "backbone": {"model": model, "identity": identity, "device": "cpu", "dtype": "float32", "threads": 1},
            }
        )
    )
    code, out, err = fcit("run", config)
    assert code == 0, out + err
    run = Run(tmp_path / "runs" / "official-1")
    assert [len(row) for row in run.matrix.scores] == [6, 12]
    assert run.results["traffic"]["rejected"] == 0

    for name in ("iconqa", "grounding", "dvqa"):  # every kind of rule but that of captions, see test_runs
        score = run.matrix.scores[-1][name]
        file = run.folder.predictions / "stage-2" / f"{name}.jsonl"
        code, out, err = fcit(
            "evaluate", "--predictions", file, "--dataset", name, "--benchmark", benchmark, "--root", root, "--json"
        )
        rules = json.loads(out)["scores"]
        assert code == 0 and rules[0]["score"] == pytest.approx(score, abs=1e-3), (name, err)
        assert len(rules) == 2, name  # the cleaned rule beside

    out_folder = tmp_path / "adapters"
    assert fcit("export", run.path, "--to", out_folder)[0] == 0
    folders = sorted((out_folder / "subspaces").iterdir())
    assert [f.name for f in folders] == run.subspaces
    for folder in folders:
        peft = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(model), folder)
        saved = load_file(folder / "adapter_model.safetensors")
        assert get_peft_model_state_dict(peft).keys() == saved.keys()

    assistant = library.load(out_folder)
    said = [p for name in ("iconqa", "grounding", "flickr30k", "tabmwp") for p in run.predictions(name)]
    answers = assistant.answer([root / "datasets" / p.image for p in said], [p.prompt for p in said])
    assert [a.text for a in answers] == [p.text for p in said]

    code, out, err = fcit("chat", out_folder, "--image", root / "datasets" / said[0].image, "--json", said[0].prompt)
    assert code == 0 and json.loads(out)["text"] == said[0].text, err
