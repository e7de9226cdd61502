"""Qwen2.5-VL by configuration only: the same answers as transformers' own forward, trained, saved and loaded again."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText

from fcit.config import Adapter, Training
from fcit.config import Backbone as Config
from fcit.errors import ConfigError
from fcit.models.adapters import Adapters
from fcit.models.backbone import TINY, Backbone
from fcit.models.compiling import CompiledLayers
from fcit.models.families.base import AnySize
from fcit.models.layout import is_projector
from fcit.models.saving import save_peft
from fcit.models.steps import computed
from tests.helpers.qwen import small_qwen

SIDE = 84  # 6 x 6 patches, 3 x 3 words
ASKED = [("How many?", "3"), ("What is the title on this cover?", "ABC"), ("Name it.", "red cup")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return small_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for n, (width, height) in enumerate([(57, 30), (24, 61), (120, 120)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{n}.png")
    return root


def settings(folder, **options) -> Config:
    return Config(model=folder, identity=str(TINY / "clip"), **{"feature_cache": "off", "image_size": SIDE, **options})


@pytest.fixture(scope="module")
def backbone(folder) -> Backbone:
    return Backbone(settings(folder))


@pytest.fixture(scope="module")
def batch(backbone, images):
    examples = [backbone.encode(q, a, f"{n}.png") for n, (q, a) in enumerate(ASKED)]
    return examples, backbone.vision_features(images, [e.images[0] for e in examples])


def inputs(backbone, images, ids: list[int], image: str) -> dict[str, torch.Tensor]:
    """What transformers' own forward takes, from the picture scaled to the square."""
    opened = Image.open(images / image).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    tokens = torch.tensor([ids])
    pictured = (tokens == backbone.model.config.image_token_id).int()
    return {"input_ids": tokens, "mm_token_type_ids": pictured, **backbone.image_processor(opened, return_tensors="pt")}


@torch.no_grad()
def logits(backbone, batch, prefix=None):
    return backbone.answer_logits(*batch, prefix)[0]


def test_the_chat_template_takes_the_answer_as_it_is(backbone):
    example = backbone.encode("How many?", "3", "")
    names = backbone.tokenizer.convert_ids_to_tokens(example.prompt)
    assert names.count("<|image_pad|>") == 9
    assert names[-1] == "Ċ"
    assert backbone.tokenizer.convert_ids_to_tokens(example.targets) == ["3", "<|im_end|>"]


def test_a_padded_batch_is_transformers_own_forward(folder, backbone, batch, images):
    """Windows, merger and three-dimensional positions included."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    wanted = []
    with torch.no_grad():
        for example in batch[0]:
            out = model(**inputs(backbone, images, [*example.prompt, *example.targets], example.images[0]))
            wanted.append(out.logits[0, len(example.prompt) - 1 : -1])
    torch.testing.assert_close(logits(backbone, batch), torch.cat(wanted), rtol=0, atol=1e-4)


def test_positions_are_those_of_the_model(backbone, batch, images):
    ids, mask = (torch.zeros(2, 60, dtype=torch.long) for _ in range(2))
    for row, example in enumerate(batch[0][:2]):
        tokens = torch.tensor([*example.prompt, *example.targets])
        ids[row, -len(tokens) :], mask[row, -len(tokens) :] = tokens, 1
    pictured = ids == backbone.model.config.image_token_id
    grid = torch.tensor([[1, 6, 6]] * 2)
    wanted, _ = backbone.model.model.get_rope_index(ids, pictured.int(), image_grid_thw=grid, attention_mask=mask)
    found = backbone.family.positions(mask, pictured)
    assert torch.equal(found * mask, wanted * mask)


def test_greedy_answers_are_those_of_the_whole_model(folder, backbone, batch, images):
    """Token by token from pixels, without cache and without the penalty the checkpoint asks for."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    questions = [backbone.encode(q, None, f"{n}.png") for n, (q, _) in enumerate(ASKED)]
    wanted = []
    for example in questions:
        ids = list(example.prompt)
        with torch.no_grad():
            while len(ids) < len(example.prompt) + 8 and ids[-1] != backbone.tokenizer.eos_token_id:
                ids.append(int(model(**inputs(backbone, images, ids, example.images[0])).logits[0, -1].argmax()))
        wanted.append(backbone.tokenizer.decode(ids[len(example.prompt) :], skip_special_tokens=True).strip())
    assert backbone.generate(questions, batch[1], 8) == wanted


def test_soft_prompts_move_the_image_along(backbone, batch):
    prefix = torch.from_numpy(backbone.word_embeddings[:6].reshape(3, 2, -1).copy())
    alone = [logits(backbone, ([e], batch[1][n : n + 1]), prefix[n : n + 1]) for n, e in enumerate(batch[0])]
    torch.testing.assert_close(logits(backbone, batch, prefix), torch.cat(alone), rtol=0, atol=1e-4)


@pytest.mark.parametrize("policy", ["shared", "per_subspace"])
def test_trained_saved_and_loaded_again_by_peft_alone(folder, batch, images, tmp_path, policy):
    """LoRA in the language model, the merger as projector, both moved by training from kept features."""
    backbone = Backbone(settings(folder))
    adapters = Adapters(backbone, Adapter(dropout=0, projector=policy))
    lora = [n for n in adapters.trainable if ".lora_A." in n]
    assert len(lora) == 2 * 3
    assert all(".language_model." in n for n in lora)
    assert all(".visual.merger." in n for n in adapters.trainable if is_projector(n))
    rng = np.random.default_rng(1)
    start = {n: rng.normal(0, 0.1, p.shape).astype(np.float32) for n, p in adapters.trainable.items()}
    adapters.load({**start, **adapters.base_projector()})
    with adapters.training() as parameters:
        optimizer = torch.optim.SGD(parameters, lr=0.5)
        backbone.loss(*batch).backward()
        assert all(float(p.grad.abs().sum()) > 0 for p in parameters)
        optimizer.step()
    trained = adapters.read()
    adapters.load_mixture([trained], {n: t for n, t in trained.items() if is_projector(n)})
    with adapters.mixed(np.ones((3, 1), np.float32)):
        found, texts = logits(backbone, batch), backbone.generate(batch[0], batch[1], 4)
    save_peft(tmp_path, trained, Adapter(), backbone.config)
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(folder), tmp_path)
    with torch.no_grad():
        again = [
            model(**inputs(backbone, images, [*e.prompt, *e.targets], e.images[0])).logits[0, len(e.prompt) - 1 : -1]
            for e in batch[0]
        ]
    torch.testing.assert_close(found, torch.cat(again), rtol=0, atol=1e-4)
    assert len(texts) == 3


def test_checkpointing_changes_no_gradient(folder, batch):
    backbone = Backbone(settings(folder))
    adapters = Adapters(backbone, Adapter(dropout=0))
    found = []
    for again in (False, True):
        with adapters.training() as parameters, backbone.checkpointing() if again else nullcontext():
            backbone.loss(*batch).backward()
            found.append([p.grad.clone() for p in parameters])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.thorough
def test_one_compilation_serves_all_layers(folder, batch):
    backbone = Backbone(settings(folder))
    adapters = Adapters(backbone, Adapter(dropout=0))
    graphs, found = [], []
    backbone.layers = CompiledLayers(backbone.family.layers, lambda graph, _: graphs.append(graph) or graph.forward)
    assert len(backbone.layers.layers) > 1
    for switch in ("off", "on"):
        with computed(backbone, Training(compile=switch)), adapters.training() as parameters, backbone.layers.running():
            backbone.loss(*batch).backward()
            found.append([p.grad.clone() for p in parameters])
    assert len(graphs) == 1
    assert all((a - b).norm() <= 1e-4 * a.norm() for a, b in zip(*found, strict=True))  # padding sums in another order


def test_mergers_are_mixed_sample_by_sample(folder, batch):
    backbone = Backbone(settings(folder))
    adapters = Adapters(backbone, Adapter(projector="per_subspace"))
    rng = np.random.default_rng(2)
    two = [{n: rng.normal(0, 0.2, p.shape).astype(np.float32) for n, p in adapters.trainable.items()} for _ in "ab"]
    adapters.load_mixture(two, adapters.base_projector())
    weights = np.array([[0.3, 0.7], [0.0, 0.0], [1.0, 0.0]], np.float32)
    with adapters.mixed(weights):
        together = logits(backbone, batch)
    alone = []
    for n, example in enumerate(batch[0]):
        with adapters.mixed(weights[n : n + 1]):
            alone.append(logits(backbone, ([example], batch[1][n : n + 1])))
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)


def test_pictures_of_a_cache_are_those_of_the_tower(folder, images, tmp_path, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path))
    kept = Backbone(settings(folder, feature_cache="disk"))
    pictures = kept.images(images, ["0.png", "1.png", "2.png"])
    monkeypatch.setattr(kept.family, "features", None)
    fresh = Backbone(settings(folder)).vision_features(images, ["2.png", "0.png"])
    torch.testing.assert_close(pictures.batch([2, 0]), fresh, rtol=0, atol=1e-5)
    assert kept.vision.mark != Backbone(settings(folder, feature_cache="disk", image_size=56)).vision.mark


# ---------------------------------------------------------------------- at their own size


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_pixels": 9000, "max_pixels": 8000}, r"backbone\.min_pixels: 9,000 is more than .* 8,000"),
        ({"max_pixels": 700, "min_pixels": 1}, r"backbone\.max_pixels: 700 is less than one word of this model, 784"),
    ],
)
def test_bounds_that_fit_nothing_are_refused(folder, options, said):
    with pytest.raises(ConfigError, match=said):
        Backbone(settings(folder, image_size="native", **options))


@pytest.mark.parametrize("member", [AnySize.features, AnySize.project])
def test_a_family_without_squares_says_so(backbone, member):
    with pytest.raises(ConfigError, match=r"image_size: 84: Qwen sees images at their own size only; set .* native"):
        member(backbone.family, torch.zeros(1))


def test_a_size_the_model_cannot_see_is_refused(folder):
    with pytest.raises(ConfigError, match=r"backbone\.image_size: 100 is no multiple .* 28 pixels; choose e\.g\. 112"):
        Backbone(settings(folder, image_size=100))
