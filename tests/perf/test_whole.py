"""What `make gpu` concludes from its rows; `.ci/run` runs the whole of it at toy size."""

import time
from pathlib import Path

import numpy as np
import pytest

from fcit.models import hashes
from fcit.models.decoding.greedy import Greedy
from tests.perf import answering_levers, gpu, training_levers, whole
from tests.perf.answering_levers import next_equal
from tests.perf.test_gpu_toy import narrow
from tests.perf.training_levers import TrainingStep


def rows(lora: float, loss: float) -> dict[str, dict[str, float]]:
    """Three variants of training: float32, the slow path, and a fast one with these figures."""
    slow = {"gradient_gap_lora": 0.056, "gradient_gap_projector": 0.064, "loss_without_dropout": 11.4}
    fast = {**slow, "gradient_gap_lora": lora, "loss_without_dropout": loss}
    return {"reference": {"loss_without_dropout": 11.4}, "as is": slow, "fast": fast}


@pytest.mark.parametrize(
    ("lora", "loss", "failing"),
    [
        (0.06, 11.5, []),
        (0.07, 11.4, ["fast: lora gradients, further from float32 than as is"]),
        (0.03, 11.7, ["fast: relative gap of the loss"]),
    ],
)
def test_fast_training_is_held_against_the_slow(lora, loss, failing):
    assert [check.name for check in whole.training_checks(rows(lora, loss)) if not check.holds] == failing


def test_training_without_its_reference_is_not_judged():
    assert list(whole.training_checks({"as is": {"gradient_gap_lora": 0.1}})) == []


@pytest.mark.parametrize(("failed", "ran", "holds"), [(False, True, [True, True]), (True, False, [False, False])])
def test_layers_that_run_uncompiled_are_a_failed_check(failed, ran, holds):
    measured = {"autocast, compiled": {"compile_failed": failed, "ran_compiled": ran}}
    assert [check.holds for check in whole.training_checks(measured)] == holds


def test_a_variant_is_not_taken_for_compiled_because_one_before_it_was(tmp_path):
    step, row = TrainingStep(gpu.build("toy", "cpu", tmp_path), "toy"), {}
    step.backbone.layers.used = True
    step.backbone.layers.kinds.add("records")
    step.timed(row, 2, [training_levers.OLD], uneven=False)
    assert row["ran_compiled"] is False


EQUAL = {"first_equal": 1.0, "next_equal": 0.97}
CAPTURED = {**EQUAL, "captured_steps": 1, "uncaptured_equal": 0.97}


@pytest.mark.parametrize(
    ("row", "cuda", "failing"),
    [
        (EQUAL, False, []),
        ({**EQUAL, "first_equal": 0.97}, False, ["first tokens equal to transformers'"]),
        ({**EQUAL, "next_equal": 0.1}, False, ["next tokens equal to transformers'"]),
        ({"seconds": 1.0}, False, ["first tokens equal to transformers'", "next tokens equal to transformers'"]),
        (CAPTURED, True, []),
        ({**CAPTURED, "uncaptured_equal": 0.5}, True, ["next tokens equal to those of uncaptured steps"]),
        (EQUAL, True, ["steps captured", "next tokens equal to those of uncaptured steps"]),
    ],
)
def test_our_decoder_is_held_against_transformers(row, cuda, failing):
    checks = whole.answering_checks({"static, batch 64": row}, "7b", cuda)
    assert [check.name.removeprefix("static, batch 64: ") for check in checks if not check.holds] == failing


@pytest.mark.parametrize(
    ("row", "failing"),
    [
        ({}, []),
        ({"breaks": None}, []),  # another variant has compiled all there is
        ({"ran_compiled": False, "compile_failed": True}, ["compilation failed", "layers ran compiled"]),
        ({"breaks": 1}, ["graph breaks"]),
        ({"uncompiled_first_equal": 0.2}, ["first tokens equal to uncompiled ones"]),
        ({"uncompiled_equal": 0.2}, ["next tokens equal to uncompiled ones"]),
        ({"captured_more": 0}, ["steps captured"]),
    ],
)
def test_compiled_answers_are_held_against_uncompiled_ones(row, failing):
    good = {"ran_compiled": True, "compile_failed": False, "uncompiled_equal": 0.85, "uncompiled_first_equal": 0.9}
    name = answering_levers.compiled_name(64)
    checks = whole.answering_checks({name: {**good, "captured_more": 3, "breaks": 0, **row}}, "7b", cuda=True)
    assert [check.name.removeprefix(f"{name}: ") for check in checks if not check.holds] == failing


def test_tokens_are_compared_up_to_the_first_difference():
    wanted = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    tokens = np.array([[1, 2, 3, 4], [1, 2, 9, 4], [9, 2, 3, 4]])
    assert next_equal(tokens, wanted) == 4 / 5
    assert next_equal(tokens[2:], wanted[2:]) == 0


def test_what_was_not_measured_does_not_hold():
    measured = [{"variant": "as is", "skipped": "0 s left"}, {"variant": "TF32", "skipped": "0 s left"}]
    measured += [{"variant": "TF32, compiled", "error": "TimeLimit"}, {"variant": "reference"}]
    assert [str(check) for check in whole.missing_checks(measured, {"as is", "reference"})] == [
        "FAIL as is: not measured (0 s left): 1 (at most 0)",
        "FAIL TF32, compiled: not measured (TimeLimit): 1 (at most 0)",
    ]


def test_a_decoder_whose_steps_are_wrong_is_found_out(tmp_path, monkeypatch):
    step = Greedy._step

    def wrong(self, rows, seen, head):
        step(self, rows, seen, head)
        self._ids[:rows] = 5

    kit = gpu.build("toy", "cpu", tmp_path)
    _, batch, _ = answering_levers.BATCHES["toy"]
    of = {v.name: v for v in answering_levers.variants("toy")}
    decoding, holds = answering_levers.Decoding(kit, "toy"), []
    of[f"transformers, batch {batch}"].work(decoding, {})
    for patched in (step, wrong):
        monkeypatch.setattr(Greedy, "_step", patched)
        name, row = f"static, batch {batch}", {}
        of[name].work(decoding, row)
        holds.append([check.holds for check in whole.answering_checks({name: row}, "toy", cuda=False)])
    assert holds == [[True, True], [True, False]]


def test_a_part_that_fails_or_finds_no_time_ends_nothing_but_itself(capsys):
    report = whole.Report(None, "toy", "cpu")
    report.attempt("update", lambda: {}["lost"], 60)
    report.attempt("start", lambda: ({"bytes": 1}, []), 40, 60)
    assert [str(check) for check in report.checks] == [
        "FAIL update: not measured (KeyError: 'lost'): 1 (at most 0)",
        "FAIL start: not measured (40 s left, 60 s needed): 1 (at most 0)",
    ]
    page = whole.tables(report.content)
    assert "Not measured: KeyError: 'lost'." in page
    assert "Not measured: 40 s left, 60 s needed." in page


def test_a_part_ends_at_its_limit():
    report = whole.Report(None, "toy", "cpu")
    report.attempt("start", lambda: time.sleep(60), 1)
    assert [check.name for check in report.checks] == ["start: not measured (TimeLimit: 1 s are over)"]


def test_a_check_says_its_bound():
    assert str(whole.Check("gap", 0.25, 0.1)) == "FAIL gap: 0.25 (at most 0.1)"
    assert str(whole.Check("equal", 1, 0.98, at_least=True)) == "ok   equal: 1 (at least 0.98)"


def test_a_model_of_the_published_layout_starts_from_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "llava_7b", narrow)
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    small = tmp_path / "small"
    small.mkdir()
    kit = gpu.build("7b", "cpu", small)
    noted, found = hashes._noted, []
    monkeypatch.setattr(hashes, "LARGE", 1)  # noted on disk, as the files of a large model are
    monkeypatch.setattr(hashes, "_noted", lambda *file: found.append(noted(*file)) or found[-1])
    row, checks = whole.start(kit, Path(kit[3].backbone.model), tmp_path / "whole")
    assert row["bytes"] > 0
    assert row["load_seconds"] > 0
    assert [check.holds for check in checks] == [True]
    assert len(found) % 2 == 0
    assert not any(found[: len(found) // 2])
    assert all(found[len(found) // 2 :])  # and not remembered by the process that has just read them


def test_without_a_gpu_the_sentence_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(whole.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        whole.main(["--device", "cuda"])
    assert "finds no CUDA GPU; install a CUDA build of torch" in capsys.readouterr().err


def test_every_variant_that_is_measured_exists():
    assert set(whole.TRAINING) <= {variant.name for variant in whole.training_levers.variants("7b")}
    for size, batches in answering_levers.BATCHES.items():
        names = {variant.name for variant in answering_levers.variants(size)}
        assert {answering_levers.static_name(batch) for batch in batches} <= names
        assert answering_levers.compiled_name(batches[0]) in names
