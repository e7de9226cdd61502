"""What `make gpu` concludes from its rows; `.ci/run` runs the whole of it at toy size."""

from pathlib import Path

import pytest

from tests.perf import gpu, whole
from tests.perf.test_gpu_toy import narrow


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


def test_our_decoder_is_held_against_transformers():
    measured = {"static, batch 64": {"first_equal": 0.97}, "static, batch 1": {"first_equal": 1.0}}
    assert [check.holds for check in whole.answering_checks(measured, "7b")] == [False, True]


def test_a_check_says_its_bound():
    assert str(whole.Check("gap", 0.25, 0.1)) == "FAIL gap: 0.25 (at most 0.1)"
    assert str(whole.Check("equal", 1, 0.98, at_least=True)) == "ok   equal: 1 (at least 0.98)"


def test_a_model_of_the_published_layout_starts_from_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "llava_7b", narrow)
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    small = tmp_path / "small"
    small.mkdir()
    kit = gpu.build("7b", "cpu", small)
    row, checks = whole.start(kit, Path(kit[3].backbone.model), tmp_path / "whole")
    assert row["bytes"] > 0
    assert row["load_seconds"] > 0
    assert [check.holds for check in checks] == [True]


def test_without_a_gpu_the_sentence_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(whole.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        whole.main(["--device", "cuda"])
    assert "finds no CUDA GPU; install a CUDA build of torch" in capsys.readouterr().err


def test_every_variant_that_is_measured_exists():
    assert set(whole.TRAINING) <= {variant.name for variant in whole.training_levers.variants("7b")}
