"""Whole federations through the command line, with the built-in model."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fcit.federation.engines.inline import InlineGrid
from fcit.io.files import write_text
from fcit.runs.folder import RunDir


def fingerprint(run: Path) -> dict[str, bytes]:
    """Everything that must be the same in two equal runs."""
    files = [run / "matrix.json", *sorted((run / "adapters").rglob("*.safetensors"))]
    files += sorted((run / "predictions").rglob("*.jsonl"))
    return {str(f.relative_to(run)): f.read_bytes() for f in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run and the configuration it came from."""
    import yaml

    from fcit.cli import main
    from tests.e2e.conftest import SMALL

    folder = tmp_path_factory.mktemp("finished")
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump({**SMALL, "output": str(folder / "runs")}))
    assert main(["run", str(config)]) == 0
    return config, folder / "runs" / "small-1"


def test_run_folder_is_complete(finished):
    _, run = finished
    matrix = json.loads((run / "matrix.json").read_text())
    assert [len(row) for row in matrix["scores"]] == [1, 2, 3, 4]
    results = json.loads((run / "results.json").read_text())
    assert results["method"] == "disco" and results["traffic"]["rejected"] == 0
    assert set(results["seconds"]) >= {"training", "evaluation", "aggregation", "checkpoint", "start-up"}
    rows = [json.loads(line) for line in (run / "predictions/stage-4/figureqa.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and len({row["answer_id"] for row in rows}) == 16
    assert list(rows[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]  # the official ones
    assert set(rows[0]["metadata"]) == {"image", "answer", "mark", "mix"} and rows[0]["model_id"] == "fcit-tiny-disco"
    assert not (run / "spill").exists()


@pytest.mark.parametrize("dataset", ["figureqa", "flickr30k"])
def test_evaluate_gives_a_runs_own_predictions_the_runs_score(finished, fcit, dataset):
    _, run = finished
    file = run / "predictions/stage-4" / f"{dataset}.jsonl"
    code, out, err = fcit(
        "evaluate", "--predictions", file, "--dataset", dataset, "--benchmark", "fcit-mini-short", "--json"
    )
    assert code == 0 and "have no prediction" in err  # the run was asked a part of the questions
    matrix = json.loads((run / "matrix.json").read_text())
    assert json.loads(out)["scores"][0]["score"] == matrix["scores"][-1][dataset] and json.loads(out)["lines"] == 16


def test_a_client_sends_one_subspace_and_the_projector(finished):
    _, run = finished
    rounds = [e for e in RunDir(run).read_events() if e["event"] == "round"]
    state = json.loads((run / "results.json").read_text())["state_bytes"]
    for event in rounds:
        assert event["up"] / len(event["clients"]) < state / 2


def test_same_seed_same_bits(finished, fcit):
    config, run = finished
    assert fcit("run", config)[0] == 0
    assert fingerprint(run.with_name("small-2")) == fingerprint(run)


class _Dies:
    """A watcher that ends the process' work after a number of rounds or scored datasets."""

    def __init__(self, left: int) -> None:
        self.left = left

    def say(self, kind: str, **values) -> None:
        if kind in ("round", "scored"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize("after", [2, 9])
def test_cut_anywhere_and_resumed_gives_the_same_bits(finished, fcit, after):
    from clients.app import app
    from server.app import run as serve

    _, whole = finished
    run = whole.with_name(f"cut-{after}")
    run.mkdir()
    write_text(run / "config.yaml", (whole / "config.yaml").read_text())
    write_text(run / "environment.json", "{}")
    with pytest.raises(KeyboardInterrupt):
        serve(run, InlineGrid(app, 50), _Dies(after))
    code, out, _ = fcit("resume", run)
    assert code == 0 and "Accuracy matrix" in out
    assert fingerprint(run) == fingerprint(whole)
    events = [(e["event"], e.get("stage"), e.get("round"), e.get("dataset")) for e in RunDir(run).read_events()]
    done = [e for e in events if e[0] in ("round", "scored")]
    assert len(done) == len(set(done))


def _spawn(config: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "fcit.cli", "run", str(config), *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for_round(run: Path, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if (run / "events.jsonl").exists() and '"event": "round"' in (run / "events.jsonl").read_text():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("no round within a minute")


def test_sigterm_writes_a_checkpoint_and_exits_75(finished, fcit):
    config, whole = finished
    run = whole.with_name("stopped-1")
    process = _spawn(config, "name=stopped")
    _wait_for_round(run, process)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75 and "fcit resume" in err and "Traceback" not in err
    assert fcit("resume", run)[0] == 0
    assert fingerprint(run) == fingerprint(whole)


def test_resume_refuses_other_versions(finished, fcit):
    _, whole = finished
    run = whole.with_name("other-machine")
    run.mkdir()
    write_text(run / "config.yaml", (whole / "config.yaml").read_text())
    environment = json.loads((whole / "environment.json").read_text())
    environment["backend"]["torch"] = "1.0"
    write_text(run / "environment.json", json.dumps(environment))
    code, _, err = fcit("resume", run)
    assert code == 2 and "torch: 1.0 then" in err


@pytest.mark.parametrize("method", ["finetune", "joint", "individual", "zero_shot"])
def test_other_methods_run(small, fcit, method):
    code, _, err = fcit("run", small, f"method={method}", "federation.rounds=1")
    assert code == 0, err
    matrix = json.loads((small.parent / "runs/small-1/matrix.json").read_text())
    single = method in ("joint", "zero_shot")
    assert [len(row) for row in matrix["scores"]] == ([0, 0, 0, 4] if single else [1, 2, 3, 4])


def test_frozen_projector_bfloat16_wire_and_heterogeneous(small, fcit):
    code, _, err = fcit(
        "run",
        small,
        "adapter.projector=frozen",
        "federation.wire=bfloat16",
        "setting=heterogeneous",
        "federation.rounds=1",
        "federation.clients_per_round=5",
    )
    assert code == 0, err
    run = small.parent / "runs/small-1"
    names = (run / "adapters/0/adapter_model.safetensors").read_bytes()
    assert b"multi_modal_projector" not in names


def test_report_compares_and_draws(finished, fcit, tmp_path):
    _, run = finished
    picture = tmp_path / "both.png"
    code, out, _ = fcit("report", run, run, "--figure", picture, "--output", picture.parent / "report")
    assert code == 0 and "Comparison" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
