"""Other models by configuration only: trained in a federation, asked, saved, and loaded again by others' means."""

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText

import fcit
from fcit.config import Backbone as Config
from fcit.data.benchmark import open_benchmark
from fcit.models.backbone import TINY, Backbone
from tests.helpers.llava import small_llava
from tests.helpers.qwen import small_qwen
from tests.helpers.runs import SMALL

CLIP = str(TINY / "clip")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> dict[str, object]:
    return {"model": small_qwen(tmp_path_factory.mktemp("qwen")), "identity": CLIP, "image_size": 56}


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> dict[str, object]:
    model, identity = small_llava(tmp_path_factory.mktemp("llava"))
    return {"model": model, "identity": identity, "conversation": "vicuna_v1", "pad_to_square": True}


def answer(backbone: Backbone, model, question: str, image: Image.Image) -> str:
    """Greedy, from pixels, with nothing of ours but the prompt's tokens."""
    ids = list(backbone.encode(question, None, "").prompt)
    extra = {}
    pixels = backbone.image_processor(backbone.family.prepared([image]), return_tensors="pt")
    for _ in range(4):
        tokens = torch.tensor([ids])
        if "image_grid_thw" in pixels:
            extra = {"mm_token_type_ids": (tokens == model.config.image_token_id).int()}
        with torch.no_grad():
            ids.append(int(model(input_ids=tokens, **pixels, **extra).logits[0, -1].argmax()))
        if ids[-1] == backbone.tokenizer.eos_token_id:
            break
    asked = len(backbone.encode(question, None, "").prompt)
    return backbone.tokenizer.decode(ids[asked:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["qwen", "llava"])
def test_a_model_named_in_the_configuration_learns_answers_and_is_saved(kind, request, tmp_path):
    backbone = {**request.getfixturevalue(kind), "threads": 1}
    run = fcit.simulate(
        {
            **SMALL,
            "name": kind,
            "method": "finetune",
            "output": str(tmp_path),
            "backbone": backbone,
            "federation": {"rounds": 1, "clients": 50, "clients_per_round": 1},
            "evaluation": {"samples": 2, "max_new_tokens": 4},
            "training": {"lr": 1e-2},
        }
    )
    assert len(run.of("round")) == 2
    fresh = Backbone(Config(**backbone, feature_cache="off"))
    plain = AutoModelForImageTextToText.from_pretrained(backbone["model"])
    (saved,) = run.path.glob("adapters/*/adapter_model.safetensors")
    model = PeftModel.from_pretrained(plain, saved.parent)
    images = open_benchmark(run.config).image_root
    said = run.predictions(run.matrix.datasets[0])
    assert len(said) == 2
    for prediction in said:
        image = Image.open(images / prediction.image).convert("RGB")
        assert answer(fresh, model, prediction.prompt, image) == prediction.text
