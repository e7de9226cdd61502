"""The measurement for a GPU runs at toy size, and what it writes makes sense; the figures themselves say nothing."""

import json

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from tests.perf import gpu


def narrow() -> LlavaConfig:
    """The published image and vocabulary with one thin layer."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=32064, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    return LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-2)


@pytest.fixture(params=["toy", "7b"])
def found(request, tmp_path, monkeypatch):
    if request.param == "7b":
        monkeypatch.setattr(gpu, "llava_7b", narrow)
        monkeypatch.setitem(gpu.SIZES, "7b", gpu.Size((2,), 2, 110, 4, 2, 1))
    file = tmp_path / "out" / "gpu.json"
    assert gpu.main(["--size", request.param, "--device", "cpu", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_every_figure_is_there_and_possible(found):
    whole = found["size"] == "7b"
    assert found["device"].startswith("CPU")
    assert found["dtype"] == ("torch.bfloat16" if whole else "torch.float32")
    kinds = ("numbers", "training", "answering", "client switch")
    rows = {what: [r for r in found["rows"] if r["what"] == what] for what in kinds}
    (numbers,) = rows["numbers"]
    assert numbers["loss"] > 0
    assert numbers["gradient_norm"] > 0
    assert [r["checkpointing"] for r in rows["training"]] == [True, False]
    for row in rows["training"]:
        assert "error" not in row
        assert row["estimated_bytes"] > 0
        assert row["tokens"] / row["seconds"] == pytest.approx(row["tokens_per_second"])
        assert 0 < row["mfu"] == pytest.approx(row["model_tflops"] / found["peak_tflops"])
        if whole:  # 576 of an image, and what the size says of the rest
            assert row["tokens"] == row["micro_batch"] * (576 + 110 + 4)
    many, one = rows["answering"]
    assert len(many["answers"]) == len(one["answers"]) == 16
    assert many["subspaces"] == 8
    assert many["batch"] > one["batch"] == 1
    assert one["times_batch_1"] == 1
    assert many["times_batch_1"] == pytest.approx(many["questions_per_second"] / one["questions_per_second"])
    (switch,) = rows["client switch"]
    assert not switch["model_reloaded"]
    assert switch["bytes"] > 0
    assert 0 < switch["load_seconds"] < 1


def test_the_same_code_computes_the_same_numbers(tmp_path, capsys):
    first, again = (str(tmp_path / name) for name in ("first.json", "again.json"))
    assert gpu.main(["--device", "cpu", "--json", first]) == 0
    assert gpu.main(["--device", "cpu", "--json", again, "--against", first]) == 0
    assert capsys.readouterr().out.endswith("the same numbers\n")


def test_a_gpu_that_is_named_is_the_current_one(tmp_path, monkeypatch):
    """Else what waits for the GPU would wait for the first."""

    def chosen(device: str) -> None:
        raise KeyError(device)

    monkeypatch.setattr(gpu.torch.cuda, "set_device", chosen)
    with pytest.raises(KeyError, match="cuda:1"):
        gpu.build("toy", "cuda:1", tmp_path)
