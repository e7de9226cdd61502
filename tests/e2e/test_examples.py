"""The examples run as their README says, and stay as short as it says."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fcit.federation.engines.inline import InlineGrid
from fcit.models.quieting import quiet

EXAMPLES = Path(__file__).parents[2] / "examples"


def lines(*files: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


def test_every_example_is_in_the_readme():
    readme = (EXAMPLES / "README.md").read_text()
    there = [p for p in EXAMPLES.iterdir() if p.is_dir() or p.suffix == ".py"]
    assert len(there) >= 4
    assert all(f"`{p.name}{'/' * p.is_dir()}`" in readme for p in there if p.name != "__pycache__")


@pytest.fixture
def app(monkeypatch):
    """The Flower app's two parts and its settings, as Flower would find them."""
    home = EXAMPLES / "flower_disco"
    monkeypatch.syspath_prepend(str(home))
    settings = tomllib.loads((home / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    try:
        parts = [
            getattr(importlib.import_module(m), a) for m, a in (p.split(":") for p in settings["components"].values())
        ]
        yield *parts, settings["config"]
    finally:
        for name in [n for n in sys.modules if n.startswith("flower_disco")]:
            del sys.modules[name]


def test_the_flower_app_discovers_both_tasks(app, capsys):
    assert lines(*(EXAMPLES / "flower_disco").rglob("*.py")) < 200
    server, client, config = app
    config |= {"rounds-per-task": 1, "clients-per-round": 2, "questions": 8}
    grid = InlineGrid(client, int(config["clients"]))
    grid._run_config |= config  # under Flower it comes with the app
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
    server(grid, context)
    scores = dict(context.state["scores"])
    assert scores.keys() == {"task-0", "task-3", "subspaces"}
    assert scores["subspaces"] == 2
    assert all(0 <= scores[task] <= 100 for task in ("task-0", "task-3"))
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)


@pytest.fixture(scope="module")
def mixing():
    spec = importlib.util.spec_from_file_location("mix_loras", EXAMPLES / "mix_loras.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mixed_loras_equal_plain_peft_the_bare_model_and_the_row_alone(mixing, tmp_path, capsys):
    assert lines(EXAMPLES / "mix_loras.py") < 60
    with quiet():
        mixing.demo(str(tmp_path))
    one, none, alone, other = (float(line.rpartition(": ")[2]) for line in capsys.readouterr().out.splitlines())
    assert max(one, none, alone) < 1e-5 < 1e-2 < other


def test_mixed_loras_answer_questions(mixing, tmp_path):
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "what": 2, "is": 3, "it": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    small = LlamaConfig(vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with quiet():
        base = LlamaForCausalLM(small)
        base.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        lora = mixing.LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False)
        mixing.get_peft_model(base, lora).save_pretrained(tmp_path / "one")
        folders = [str(tmp_path / "base"), str(tmp_path / "one"), str(tmp_path / "one")]
        said = mixing.answer(*folders, "--", "1,0:what is it", "0,1:what is it", "0.5,0.5:what")
    assert len(said) == 3
    assert said[0] == said[1]
    assert said[0]
