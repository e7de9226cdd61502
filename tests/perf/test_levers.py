"""The variants run at toy size and write their rows; the tables of results are those of the recorded figures."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from fcit.errors import DataError
from tests.perf import gpu, levers, training_levers
from tests.perf.training_levers import TrainingStep
from tests.perf.variants import Column, Variant, limited, run, table

RESULTS = Path(__file__).parent / "results"
RECORDED = json.loads((RESULTS / "variants-nvidia-h200.json").read_text())


def measure(what, only, folder):
    file = folder / "out" / "rows.json"
    chosen = [word for name in only for word in ("--only", name)]
    assert levers.main([what, "--size", "toy", "--device", "cpu", "--json", str(file), *chosen]) == 0
    report = json.loads(file.read_text())
    assert (report["what"], report["size"]) == (what, "toy")
    rows = {row["variant"]: row for row in report["rows"]}
    assert sorted(rows) == sorted(only)
    assert not [row for row in rows.values() if "error" in row or "skipped" in row]
    return rows


def test_training_variants_compute_the_same_gradients(tmp_path, capsys):
    rows = measure("training", ["reference", "as is", "as is, checkpointing", "as is, uneven"], tmp_path)
    assert rows["as is"]["gradient_gap_lora"] == rows["as is"]["gradient_gap_projector"] == 0
    assert rows["as is, checkpointing"]["gradient_gap_lora"] < 1e-6
    assert rows["as is, uneven"]["tokens"] < rows["as is"]["tokens"]
    assert all(row["seconds"] > 0 for name, row in rows.items() if name != "reference")
    assert "| as is, uneven |" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_step_that_is_really_compiled_computes_the_same_gradients(tmp_path):
    """The one test that waits for a C++ compiler: ten seconds of processor time."""
    step = TrainingStep(gpu.build("toy", "cpu", tmp_path), "toy")
    loss, step.reference = step.gradients([training_levers.OLD])
    row: dict[str, Any] = {}
    step.compare(row, [training_levers.NEW])
    assert step.backbone.layers.kinds == {"records"}
    assert row["loss_without_dropout"] == pytest.approx(loss, rel=1e-5)
    assert row["gradient_gap_lora"] < 1e-4
    assert row["gradient_gap_projector"] < 1e-4


def test_answering_variants_say_the_same(tmp_path):
    one, before = "one by one, batch 1", "transformers, batch 2"
    static = ["static, batch 1", "static, batch 2", "static, mixture as backbone, batch 2"]
    subspaces = ["static, 8 subspaces", "static, 8 subspaces, negligible left out"]
    rows = measure("answering", [one, before, *static, *subspaces, "uneven, by length"], tmp_path)
    assert [rows[name]["tokens_equal"] for name in static] == [1, 1, 1]
    assert all(row["prefill_seconds"] > 0 for name, row in rows.items() if name != "uneven, by length")
    assert rows["uneven, by length"]["seconds_16_new"] > 0


def test_variants_are_listed_and_unknown_ones_refused(capsys):
    assert levers.main(["training", "--size", "7b", "--list"]) == 0
    assert "autocast, autotuned: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        levers.main(["training", "--only", "as was"])
    assert "'as was'" in capsys.readouterr().err


def variant(work, **limits):
    return Variant("a", "a way", work, **limits)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no kernel"), "RuntimeError: no kernel"),
        (DataError("no text"), "DataError: no text"),
        (TypeError("no keyword"), "TypeError: no keyword"),
    ],
)
def test_a_failure_is_a_row(error, reason, tmp_path):
    def work(bench, row):
        raise error

    report: dict[str, Any] = {"rows": []}
    file = tmp_path / "rows.json"
    run([variant(work), variant(lambda bench, row: row.update(seconds=bench))], 2.5, report, file, 60)
    assert [row.get("error") for row in report["rows"]] == [reason, None]
    assert json.loads(file.read_text()) == report
    text = table(report["rows"], [Column("ms", "seconds", 1e3, ".0f")])
    assert text.splitlines()[2:] == [f"| a |  | a way (error: {reason}) |", "| a | 2500 | a way |"]


def test_a_gpu_that_is_lost_leaves_a_row_for_each_variant(monkeypatch):
    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for name in ("release", "reset_peak"):
        monkeypatch.setattr(f"tests.perf.variants.{name}", lost)
    report: dict[str, Any] = {"rows": []}
    run([variant(lost), variant(lost)], None, report, None, 60)
    assert ["illegal memory access" in row["error"] for row in report["rows"]] == [True, True]


def test_a_variant_that_is_killed_leaves_a_row(tmp_path):
    def work(bench, row):
        raise KeyboardInterrupt

    file = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        run([variant(work)], None, {"rows": []}, file, 60)
    assert json.loads(file.read_text())["rows"] == [{"variant": "a", "means": "a way", "error": "not finished"}]


def test_a_variant_ends_at_its_limit():
    def work(bench, row):
        try:
            time.sleep(60)
        except Exception:  # noqa: BLE001  (as compilers do)
            row["caught"] = True

    report: dict[str, Any] = {"rows": []}
    run([variant(work, limit=1.0), variant(work, needs=100.0)], None, report, None, 60)
    late, skipped = report["rows"]
    assert late["error"].startswith("TimeLimit")
    assert "caught" not in late
    assert skipped["skipped"].endswith("100 s needed")
    with limited(60):
        pass


def test_a_variant_that_the_end_of_all_cuts_off_is_no_failure():
    report: dict[str, Any] = {"rows": []}
    run([variant(lambda bench, row: time.sleep(60), limit=30.0, needs=0.5)], None, report, None, 1.0)
    assert report["rows"][0]["skipped"].endswith("s left, more needed")
    assert "error" not in report["rows"][0]


@pytest.mark.parametrize("what", levers.LEVERS)
def test_tables_of_results_are_the_recorded_figures(what):
    _, _, columns = levers.LEVERS[what]
    rows = RECORDED[what]["rows"]
    assert table(rows, columns) in (RESULTS / "README.md").read_text()


def test_two_versions_are_compared():
    one: dict[str, Any] = {"what": "training", "micro_batch": 2, "checkpointing": True, "seconds": 2.0}
    result: dict[str, Any] = {
        "device": "GPU",
        "size": "7b",
        "rows": [{"what": "numbers", "loss": 1.5, "gradient_norm": 0.5}, one],
    }
    later = {**result, "rows": [result["rows"][0], {**one, "seconds": 1.0}]}
    assert gpu.compared(result, later) == (
        ["numbers  loss 1.5 = 1.5  gradient_norm 0.5 = 0.5", "training 2 True  2 s -> 1 s"],
        True,
    )
    other = {**result, "rows": [{**result["rows"][0], "loss": 1.25}, one]}
    lines, same = gpu.compared(result, other)
    assert not same
    assert "loss 1.5 != 1.25" in lines[0]
    with pytest.raises(ValueError, match="device: 'GPU' against 'CPU'"):
        gpu.compared(result, {**result, "device": "CPU"})
    with pytest.raises(ValueError, match="rows differ"):
        gpu.compared(result, {**result, "rows": [one]})
