"""Every family with images of any size: what transformers' own forward and generate return for the same images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, Idefics3Processor, InternVLProcessor
from transformers.quantizers.quantizers_utils import should_convert_module

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.errors import ConfigError
from fcit.models.adapters import Adapters
from fcit.models.layout import is_projector
from fcit.models.loading import four_bits
from fcit.models.record_gradients import RecordGradients
from fcit.models.saving import save_peft
from fcit.models.shapes import shape_of
from tests.helpers.families import SMALL, save
from tests.helpers.family_cases import SIZES, Case, draw, logits


@pytest.fixture(scope="module", params=SMALL)
def case(request, tmp_path_factory) -> Case:
    root = draw(tmp_path_factory.mktemp("images"))
    return Case(request.param, save(tmp_path_factory.mktemp("model"), request.param, SMALL[request.param]), root)


def moved(adapters: Adapters, seed: int) -> dict[str, np.ndarray]:
    """Random values of everything that is trained."""
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, 0.1, p.shape).astype(np.float32) for n, p in adapters.trainable.items()}


# ---------------------------------------------------------------------- images and prompts


def test_tokens_follow_from_the_size_alone(case):
    """As many as the processor makes pixels for, over many sizes."""
    family, rng = case.backbone.family, np.random.default_rng(5)
    for width, height in [*SIZES, *rng.integers(8, 300, (40, 2)).tolist()]:
        grid = family.grid(width, height)
        rows = family.rows(family.pixels(Image.new("RGB", (width, height), (200, 30, 90))), grid)
        assert len(rows) == family.kept(grid)
        assert family.join(rows, [grid]).shape == (family.count(grid), 48)


def test_pixels_are_those_of_the_processor(case):
    """Several images in one call, one after the other."""
    opened = [Image.open(case.root / f"{n}.png").convert("RGB") for n in range(len(SIZES))]
    wanted = case.small.inputs(case.backbone, opened)["pixel_values"]
    found = torch.cat([case.backbone.family.pixels(image) for image in opened])
    assert torch.equal(found, wanted.reshape(found.shape))


def test_sizes_are_known_before_loading(case):
    shape = shape_of(case.settings(), case.small.targets)
    family = case.backbone.family
    grid = family.grid(*family.typical)
    assert shape.image_tokens == family.count(grid) == family.tokens
    assert shape.vision.together == 1
    assert shape.image_tokens * shape.feature_width == family.kept(grid) * int(np.prod(family.shape))
    assert len(shape.adapted) == case.layers * 3


# ---------------------------------------------------------------------- transformers' own forward


def test_conversations_are_transformers_own_forward(case):
    """Loss positions of a padded batch."""
    found = logits(case.backbone, case.examples, case.features)
    torch.testing.assert_close(found, case.expected(case.whole), rtol=0, atol=1e-4)


def test_answers_are_those_of_transformers_own_generate(case):
    """In one batch by our decoder and by transformers', and one by one from pixels."""
    wanted = [case.generated(n) for n in range(4)]
    for decoder in ("auto", "transformers"):
        with case.backbone.answering.by(decoder):
            assert case.backbone.generate(case.questions, case.features, 8) == wanted
    assert case.backbone.answering.greedy is not None


def test_soft_prompts_move_the_images_along(case):
    words = case.backbone.word_embeddings
    prefix = torch.from_numpy(words[:8].reshape(4, 2, -1).copy())
    alone = [logits(case.backbone, *case.own(n), prefix[n : n + 1]) for n in range(4)]
    found = logits(case.backbone, case.examples, case.features, prefix)
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("policy", ["shared", "per_subspace"])
def test_trained_saved_and_loaded_again_by_peft_alone(case, tmp_path, policy):
    backbone = case.fresh()
    adapter = case.adapter.model_copy(update={"projector": policy})
    adapters = Adapters(backbone, adapter)
    lora = [n for n in adapters.trainable if ".lora_A." in n]
    assert len(lora) == case.layers * 3
    assert all(f".{backbone.family.projector}." in n for n in adapters.trainable if is_projector(n))
    adapters.load({**moved(adapters, 1), **adapters.base_projector()})
    with adapters.training() as parameters:
        optimizer = torch.optim.SGD(parameters, lr=0.5)
        backbone.loss(case.examples, case.features).backward()
        assert all(float(p.grad.abs().sum()) > 0 for p in parameters)
        optimizer.step()
    trained = adapters.read()
    adapters.load_mixture([trained], {n: t for n, t in trained.items() if is_projector(n)})
    with adapters.mixed(np.ones((4, 1), np.float32)):
        found = logits(backbone, case.examples, case.features)
    save_peft(tmp_path, trained, adapter, case.folder)
    again = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(case.folder), tmp_path)
    torch.testing.assert_close(found, case.expected(again), rtol=0, atol=1e-4)


def test_gradients_of_the_projector_are_those_of_the_whole_model(case):
    for n in range(4):
        found, wanted = case.projector_gradients(n)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert bool(gradient.any()) == bool(case.examples[n].images), name
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_gradients_of_a_batch_are_the_sums_of_its_records(case):
    backbone = case.fresh()
    adapters = Adapters(backbone, case.adapter)
    adapters.load(moved(adapters, 4))
    learnt = [e.learnt for e in case.examples]
    with adapters.training() as parameters:
        backbone.loss(case.examples, case.features).backward()
        together = [p.grad.clone() for p in parameters]
        apart = [torch.zeros_like(p) for p in parameters]
        for n in range(4):
            loss = backbone.loss(*case.own(n)) * learnt[n] / sum(learnt)
            for total, g in zip(apart, torch.autograd.grad(loss, parameters), strict=True):
                total += g
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, apart, strict=True))


def test_checkpointing_changes_no_gradient(case):
    backbone = case.fresh()
    adapters = Adapters(backbone, case.adapter)
    adapters.load(moved(adapters, 6))
    with adapters.training() as parameters:
        wanted = torch.autograd.grad(backbone.loss(case.examples, case.features), parameters)
        with backbone.checkpointing():
            found = torch.autograd.grad(backbone.loss(case.examples, case.features), parameters)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(wanted, found, strict=True))


def test_projectors_are_mixed_sample_by_sample(case):
    backbone = case.fresh()
    adapters = Adapters(backbone, case.adapter.model_copy(update={"projector": "per_subspace"}))
    adapters.load_mixture([moved(adapters, seed) for seed in (2, 3)], adapters.base_projector())
    weights = np.array([[0.3, 0.7], [0.5, 0.5], [0.0, 0.0], [1.0, 0.0]], np.float32)
    with adapters.mixed(weights):
        mixed = logits(backbone, case.examples, case.features)
    alone = []
    for n in range(4):
        with adapters.mixed(weights[n : n + 1]):
            alone.append(logits(backbone, *case.own(n)))
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=0, atol=1e-4)


def test_features_are_kept(case, tmp_path, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path))
    names = ["2.png", "0.png", "3.png"]
    wanted = case.backbone.vision_features(case.root, names)
    case.fresh(feature_cache="disk").images(case.root, names)
    again = case.fresh(feature_cache="disk")
    monkeypatch.setattr(again.family, "rows", None)
    kept = again.images(case.root, names).batch([2, 0])
    assert kept.grids == (wanted.grids[2], wanted.grids[0])
    assert torch.equal(kept.rows, wanted[[2, 0]].rows)


def test_nothing_of_vision_and_projector_is_quantised(case):
    skipped = four_bits("bfloat16", type(case.backbone.family)).llm_int8_skip_modules
    linear = [n for n, m in case.whole.named_modules() if isinstance(m, torch.nn.Linear)]
    converted = [n for n in linear if should_convert_module(n, skipped)]
    assert all(f".{case.backbone.family.language_name}." in n for n in converted)
    assert len(converted) == case.layers * 7


# ---------------------------------------------------------------------- particular families


def published(name: str, targets: str = Adapter().targets):
    return shape_of(Config(model=name, identity="openai/clip-vit-large-patch14-336"), targets)


def refused(case: Case, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        case.fresh(**options)
    return str(caught.value)


def test_adapters_of_internvl3_1b():
    shape = published("OpenGVLab/InternVL3-1B-hf")
    assert len(shape.adapted) == 24 * 3
    assert round((shape.language + shape.projector + shape.vision.parameters) / 1e6) == 938  # as the hub says
    assert shape.image_tokens == 13 * 256


def test_adapters_of_internvl3_2b():
    shape = published("OpenGVLab/InternVL3-2B-hf")
    assert len(shape.adapted) == 28 * 3
    assert round((shape.language + shape.projector + shape.vision.parameters) / 1e7) == 209  # 2.09 B, as the hub says


def test_adapters_of_smolvlm_256m():
    shape = published("HuggingFaceTB/SmolVLM-256M-Instruct", SMALL["idefics3"].targets)
    assert len(shape.adapted) == 30 * 3
    assert shape.language + shape.projector + shape.vision.parameters == 256_484_928
    assert shape.image_tokens == 13 * 64


def test_adapters_of_idefics3_8b():
    shape = published("HuggingFaceM4/Idefics3-8B-Llama3", SMALL["idefics3"].targets)
    assert len(shape.adapted) == 32 * 3
    assert shape.image_tokens == 13 * 169


@pytest.mark.parametrize("case", ["idefics3", "smolvlm"], indirect=True)
def test_prompts_of_tiles_are_those_of_the_whole_processor(case):
    """Rows, columns and the whole image, each between its marks."""
    template = case.small.template.replace("IMAGE", "<image>")
    processor = Idefics3Processor(case.backbone.image_processor, case.backbone.tokenizer, 4, template)
    for question in case.questions:
        parts = [*[{"type": "image"}] * len(question.images), {"type": "text", "text": "Name it."}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        opened = [Image.open(case.root / image) for image in question.images] or None
        ids = processor(text=text, images=opened, size={"longest_edge": 96}, add_special_tokens=False).input_ids
        assert list(question.tokens) == ids[0]


@pytest.mark.parametrize("case", ["idefics3"], indirect=True)
def test_targets_elsewhere_are_told_where_the_language_model_is(case):
    with pytest.raises(ConfigError, match="the language model of this family is called 'text_model'"):
        Adapters(case.fresh(), Adapter())
    with pytest.raises(ConfigError, match="the language model of this family is called 'text_model'"):
        shape_of(case.settings(), Adapter().targets)


@pytest.mark.parametrize("case", ["idefics3"], indirect=True)
def test_gradients_of_all_records_in_one_pass(case):
    """Its connector has a linear layer only, whose rows are the tiles of images."""
    backbone = case.fresh()
    adapters = Adapters(backbone, case.adapter)
    adapters.load(moved(adapters, 7))
    learnt = [e.learnt for e in case.examples]
    with adapters.training() as parameters:
        gradients = RecordGradients(backbone, parameters, together=True)
        assert gradients.together
        _, together = gradients.of(lambda _: backbone.loss(case.examples, case.features), list(range(4)), learnt)
        for n in range(4):
            _, alone = gradients.of(lambda chosen: backbone.loss(*case.own(chosen[0])), [n], learnt[n : n + 1])
            assert all(torch.allclose(a[n], b[0], atol=1e-5) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("case", ["idefics3", "smolvlm"], indirect=True)
def test_tiles_of_idefics3(case):
    family = case.backbone.family
    assert [family.grid(*size) for size in SIZES] == [(2, 3), (3, 2), (2, 3), (3, 1), (3, 3)]
    assert case.fresh(max_pixels=8 * 32 * 32).family.grid(40, 40) == (2, 2)
    assert case.fresh(max_pixels=32 * 32).family.grid(500, 20) == (0, 0)
    assert case.fresh(max_pixels=None).family.grid(500, 20) == (1, 4)
    assert "backbone.min_pixels: 9, but this model scales every image" in refused(case, min_pixels=9)


@pytest.mark.parametrize("case", ["internvl"], indirect=True)
def test_tiles_of_internvl(case):
    family = case.backbone.family
    assert [family.grid(*size) for size in SIZES] == [(3,), (4,), (7,), (7,), (1,)]
    assert case.fresh(max_pixels=32 * 32).family.grid(500, 20) == (1,)
    assert case.fresh(min_pixels=4 * 32 * 32).family.grid(40, 40) == (5,)
    source = SimpleNamespace(
        start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>", image_seq_length=4
    )
    wanted = InternVLProcessor.replace_image_token(source, {"num_patches": [7]}, 0)
    assert family.placeholders((7,), "<IMG_CONTEXT>") == wanted


@pytest.mark.parametrize("case", ["internvl"], indirect=True)
def test_bounds_of_tiles_that_fit_nothing_are_refused(case):
    assert "backbone.max_pixels: 1,000 is less than one tile of this model, 1,024" in refused(case, max_pixels=1000)
    assert "backbone.min_pixels: 4 tiles of 32 x 32 pixels are more" in refused(case, min_pixels=4000, max_pixels=3000)


def test_adapters_of_qwen3_vl_4b():
    shape = published("Qwen/Qwen3-VL-4B-Instruct")
    assert len(shape.adapted) == 36 * 3
    assert round((shape.language + shape.projector + shape.vision.parameters) / 1e7) == 444  # 4.44 B, as the hub says
    assert shape.image_tokens == 20 * 15
    assert shape.feature_width == 4 * 1024 + 3 * 2560


@pytest.mark.parametrize("case", ["qwen3_vl"], indirect=True)
def test_positions_are_those_of_the_model(case):
    ids, mask = (torch.zeros(4, 100, dtype=torch.long) for _ in range(2))
    for row, example in enumerate(case.examples):
        ids[row, -len(example.tokens) :], mask[row, -len(example.tokens) :] = torch.tensor(example.tokens), 1
    pictured = ids == case.whole.config.image_token_id
    grids = case.features.grids
    grid = torch.tensor([[1, 2 * h, 2 * w] for h, w in grids])
    wanted, _ = case.whole.model.get_rope_index(ids, pictured.int(), image_grid_thw=grid, attention_mask=mask)
    assert torch.equal(case.backbone.family.positions(mask, pictured, grids) * mask, wanted * mask)


@pytest.mark.parametrize("case", ["qwen3_vl"], indirect=True)
def test_every_depth_counts(case):
    """Without the features beside the words the logits are others; in squares they are kept as well."""
    backbone = case.fresh(image_size=64)
    examples = [backbone.encode("How many?", "3", "0.png")]
    features = backbone.vision_features(case.root, ["0.png"])
    assert features.shape == (1, 16, 4 * 32 + 2 * 48)
    found = logits(backbone, examples, features)
    for depth in range(2):
        less = features.clone()
        less[..., 4 * 32 + 48 * depth : 4 * 32 + 48 * (depth + 1)] = 0
        assert not torch.allclose(found, logits(backbone, examples, less), atol=1e-3)


@pytest.mark.parametrize("case", ["internvl", "idefics3", "smolvlm"], indirect=True)
def test_squares_of_tiled_images_are_refused(case):
    assert "backbone.image_size: 448, but a model of this family cuts images" in refused(case, image_size=448)
