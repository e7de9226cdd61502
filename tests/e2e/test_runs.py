"""Whole federations through the command line, with the built-in model."""

import json
import signal

import pytest

from fcit import config as configuration
from fcit.data.stream import open_stream
from fcit.doctor import plan
from fcit.evaluation.personal import MODELS
from fcit.federation.engines.inline import InlineGrid
from fcit.io.files import write_text
from fcit.models.shapes import shape_of
from fcit.runs.folder import RunDir
from tests.helpers.commands import Command
from tests.helpers.runs import SMALL, Dies, bits, rounds
from tests.helpers.waiting import wait


@pytest.fixture(scope="module")
def finished(reference):
    """One finished run and the configuration it came from."""
    return reference.with_name("small.yaml"), reference


def test_run_folder_is_complete(finished):
    _, run = finished
    matrix = json.loads((run / "matrix.json").read_text())
    assert [len(row) for row in matrix["scores"]] == [1, 2]
    results = json.loads((run / "results.json").read_text())
    assert results["method"] == "disco"
    assert results["traffic"]["rejected"] == 0
    assert set(results["seconds"]) >= {"training", "evaluation", "aggregation", "checkpoint", "start-up"}
    assert min(results["cost"][key] for key in ("client_cpu_seconds", "cpu_seconds_per_sample")) > 0
    rows = [json.loads(line) for line in (run / "predictions/stage-2/figureqa.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert len({row["answer_id"] for row in rows}) == 8
    assert list(rows[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]  # the official ones
    assert set(rows[0]["metadata"]) == {"image", "answer", "mark", "mix"}
    assert rows[0]["model_id"] == "fcit-tiny-disco"
    assert not (run / "spill").exists()


def test_evaluate_gives_a_runs_own_predictions_the_runs_score(finished, fcit):  # captions: test_benchmarks.py
    _, run = finished
    file = run / "predictions/stage-2/figureqa.jsonl"
    code, out, err = fcit(
        "evaluate", "--predictions", file, "--dataset", "figureqa", "--benchmark", SMALL["benchmark"], "--json"
    )
    assert code == 0
    assert "have no prediction" in err  # the run was asked a part of the questions
    matrix = json.loads((run / "matrix.json").read_text())
    assert json.loads(out)["scores"][0]["score"] == matrix["scores"][-1]["figureqa"]
    assert json.loads(out)["lines"] == 8


def test_a_client_sends_one_subspace_and_the_projector(finished):
    _, run = finished
    rounds = [e for e in RunDir(run).read_events() if e["event"] == "round"]
    results = json.loads((run / "results.json").read_text())
    size = 4 * results["cost"]["parameters"]["trainable"]  # bytes of a subspace and the projector
    assert 1.3 * size < results["state_bytes"]  # which has two
    for event in rounds:
        assert event["up"] / len(event["clients"]) == pytest.approx(size, rel=0.03)


def test_a_dry_run_says_before_what_is_sent(finished):
    file, run = finished
    config = configuration.load(file)
    shape = shape_of(config.backbone, config.adapter.targets)
    stages = list(plan.stages(config, open_stream(config), shape))
    traffic = json.loads((run / "results.json").read_text())["traffic"]
    assert sum(stage.training for stage in stages) == 2 * len(stages) * 2
    assert sum(stage.up for stage in stages) == pytest.approx(traffic["up"], rel=0.2)
    assert sum(stage.down for stage in stages) == pytest.approx(traffic["down"], rel=0.2)


def test_same_seed_same_bits(finished, fcit):
    config, run = finished
    assert fcit("run", config)[0] == 0
    assert bits(run.with_name("small-2")) == bits(run)


@pytest.mark.parametrize("after", [1, 4])
def test_cut_anywhere_and_resumed_gives_the_same_bits(finished, fcit, after):
    from clients.app import app
    from server.app import run as serve

    _, whole = finished
    run = whole.with_name(f"cut-{after}")
    run.mkdir()
    write_text(run / "config.yaml", (whole / "config.yaml").read_text())
    write_text(run / "environment.json", "{}")
    with pytest.raises(KeyboardInterrupt):
        serve(run, InlineGrid(app, 50), Dies(after, "round", "scored"))
    code, out, _ = fcit("resume", run)
    assert code == 0
    assert "Accuracy matrix" in out
    assert bits(run) == bits(whole)
    events = [(e["event"], e.get("stage"), e.get("round"), e.get("dataset")) for e in RunDir(run).read_events()]
    done = [e for e in events if e[0] in ("round", "scored")]
    assert len(done) == len(set(done))


def test_sigterm_writes_a_checkpoint_and_exits_75(finished, fcit):
    config, whole = finished
    run = whole.with_name("stopped-1")
    process = Command("run", config, "name=stopped")
    wait(lambda: rounds(run) or process.returncode is not None)
    process.signal(signal.SIGTERM)
    assert process.wait() == 75, process.stderr
    assert "fcit resume" in process.stderr
    assert "Traceback" not in process.stderr
    assert fcit("resume", run)[0] == 0
    assert bits(run) == bits(whole)


def test_resume_refuses_other_versions(finished, fcit):
    _, whole = finished
    run = whole.with_name("other-machine")
    run.mkdir()
    write_text(run / "config.yaml", (whole / "config.yaml").read_text())
    environment = json.loads((whole / "environment.json").read_text())
    environment["backend"]["torch"] = "1.0"
    write_text(run / "environment.json", json.dumps(environment))
    code, _, err = fcit("resume", run)
    assert code == 2
    assert "torch: 1.0 then" in err


@pytest.mark.parametrize("method", ["finetune", "joint", "individual", "zero_shot"])
def test_other_methods_run(small, fcit, method):
    code, _, err = fcit("run", small, f"method={method}", "federation.rounds=1")
    assert code == 0, err
    matrix = json.loads((small.parent / "runs/small-1/matrix.json").read_text())
    single = method in ("joint", "zero_shot")
    assert [len(row) for row in matrix["scores"]] == ([0, 2] if single else [1, 2])


def test_frozen_projector_thin_wire_and_heterogeneous(small, fcit):
    code, _, err = fcit(
        "run",
        small,
        "adapter.projector=frozen",
        "federation.wire=int8",
        "federation.top_k=0.2",
        "setting=heterogeneous",
        "federation.rounds=1",
        "federation.clients_per_round=5",
        "evaluation.personal={clients: 2, share: 0.5, alone: 1}",
    )
    assert code == 0, err
    run = small.parent / "runs/small-1"
    own = json.loads((run / "results.json").read_text())["personal"]
    assert {model for stage in own["scores"].values() for row in stage.values() for model in row} == {*MODELS} - {
        "private"
    }
    assert own["clients"] == sum(len(row) for row in own["scores"].values())
    names = (run / "adapters/0/adapter_model.safetensors").read_bytes()
    assert b"multi_modal_projector" not in names
