"""DISCO's switches and the projector's policies in whole federations."""

import json
import warnings
from pathlib import Path

import pytest
from peft import PeftModel

import fcit
from fcit.cli import main
from fcit.config import Backbone as Config
from fcit.models.backbone import Backbone
from fcit.runs.reader import Run
from server.courier import Courier
from tests.helpers.runs import BACKBONE, SMALL, Copies, bits

QUICK = {
    **SMALL,
    "evaluation": {"samples": 2},
    "federation": {"rounds": 1, "clients": 50, "clients_per_round": 1},
}


def run(folder: Path, name: str, **overrides) -> Run:
    return fcit.simulate({**QUICK, "output": str(folder), "name": name}, **overrides)


def test_the_oracle_uses_the_subspace_of_each_task(tmp_path):
    from clients.app import app
    from fcit.errors import StopRequested
    from fcit.federation.engines.inline import InlineGrid
    from fcit.runs.create import create
    from server.app import run as serve

    class Stops:
        def say(self, kind, **values):
            if kind == "stage" and values["stage"] == 0:
                raise StopRequested("after the first stage")

    raw = {**QUICK, "output": str(tmp_path), "method": {"name": "disco", "mix": "oracle"}}
    path = create(fcit.config.resolve(raw, tmp_path, "test")).path
    with pytest.raises(StopRequested):
        serve(path, InlineGrid(app, 50), Stops())
    assert main(["resume", str(path)]) == 0  # what was trained on is remembered
    whole = fcit.load_run(path)
    assert whole.results["group"] == "reference"
    assert whole.results["dagger"] is False
    state = json.loads((max((path / "state").iterdir()) / "state.json").read_text())
    trained = state["progress"]["trained"]
    examples = [event["examples"] for event in whole.of("round")]
    assert [sum(counts.values()) for counts in trained.values()] == [sum(e) for e in examples]
    for task, dataset in enumerate(whole.matrix.datasets):
        counts = trained[f"task-{task}"]
        chosen = whole.subspaces.index(max(counts, key=counts.get))
        for answer in whole.predictions(dataset):
            assert answer.mix == [float(i == chosen) for i in range(len(whole.subspaces))]


def test_tokens_from_text_and_images_and_nobody_is_told_the_task(tmp_path, monkeypatch):
    seen = []
    send = Courier.send

    def spy(self, kind, orders, group):
        orders = list(orders)
        seen.extend((order.task, order.knowledge) for _, order in orders if kind == "evaluate")
        return send(self, kind, orders, group)

    monkeypatch.setattr(Courier, "send", spy)
    found = run(tmp_path, "both", method={"name": "disco", "token": "both", "mix": "cosine"})
    assert seen
    assert all(task == "" and "trained" not in knowledge for task, knowledge in seen)
    state = json.loads((max((found.path / "state").iterdir()) / "state.json").read_text())["state"]
    assert len(state["memory"]["method"]["cache"]["sums"]) == len(found.subspaces) > 1
    assert found.matrix.last is not None
    assert not found.of("describe-failed")
    assert found.results["group"] == ""


@pytest.mark.parametrize("method", ["finetune", "individual"])
def test_one_projector_is_one_projector_whoever_owns_it(tmp_path, method):
    """With one subspace for everybody, or a projector per task anyway, both policies are the same run."""
    shared = run(tmp_path, "shared", method=method)
    own = run(tmp_path, "own", method=method, adapter__projector="per_subspace")
    assert bits(own.path) == bits(shared.path)


@pytest.fixture(scope="module")
def per_subspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("per-subspace")
    second = 2, "round"  # before its checkpoint
    raw = {**QUICK, "output": str(folder), "name": "whole"}
    return fcit.simulate(raw, Copies(folder / "whole-1", folder / "cut", *second), adapter__projector="per_subspace")


def test_each_subspace_has_a_projector_of_its_own(per_subspace):
    from safetensors.numpy import load_file

    base = {n: p.numpy() for n, p in Backbone(Config(**BACKBONE, feature_cache="off")).model.named_parameters()}
    saved = [load_file(f) for f in sorted(per_subspace.path.glob("adapters/*/adapter_model.safetensors"))]
    assert len(saved) == len(per_subspace.subspaces) > 1
    name = next(n for n in saved[0] if "multi_modal_projector" in n)
    every = [base[name.removeprefix("base_model.model.")], *(tensors[name] for tensors in saved)]
    assert len({tensor.tobytes() for tensor in every}) == len(every)
    state = json.loads((max((per_subspace.path / "state").iterdir()) / "state.json").read_text())
    assert state["progress"]["stage"] == 2


def test_its_adapters_load_into_plain_peft(per_subspace):
    model = Backbone(Config(**BACKBONE, feature_cache="off")).model
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        loaded = PeftModel.from_pretrained(model, str(per_subspace.path / "adapters" / "1"))
    assert "multi_modal_projector" in "".join(n for n, _ in loaded.named_parameters() if "modules_to_save" in n)


def test_it_resumes_to_the_same_bits(per_subspace):
    cut = per_subspace.path.with_name("cut")
    assert not (cut / "results.json").exists()
    assert main(["resume", str(cut)]) == 0
    assert bits(cut) == bits(per_subspace.path)


def test_check_method_takes_options(capsys):
    assert main(["check", "disco", "mix=concat", "token=both"]) == 0
    assert "disco keeps the contract" in capsys.readouterr().out
    assert main(["check", "disco", "mix=softmx"]) == 2
    said = capsys.readouterr().err
    assert "method.mix: input should be 'softmax', 'concat', 'cosine', 'argmax' or 'oracle', got 'softmx'" in said
