"""Every registered family keeps its contract, the contract can fail, and what is particular to single families."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import Idefics3Processor, InternVLProcessor

from fcit import registry
from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.contracts import families as contract
from fcit.contracts.families import SIZES, FamilyCase, logits, moved
from fcit.errors import ConfigError
from fcit.models.adapters import Adapters
from fcit.models.families.base import AnySize, Family
from fcit.models.record_gradients import RecordGradients
from fcit.models.shapes import shape_of

KINDS = {name: registry.resolve("model", name) for name in sorted(registry.MODELS)}


#: Of which `make test` has the contract: images of one size and of their own.
ALWAYS = ("llava", "qwen2_5_vl")


@pytest.fixture(
    scope="module",
    params=[n if n in ALWAYS else pytest.param(n, marks=pytest.mark.thorough) for n in KINDS],
)
def case(request, tmp_path_factory) -> FamilyCase:
    return FamilyCase(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(case, check):
    assert contract.failure(check, case) is None


def wordless(family, features):
    """The same words for every image."""
    return torch.ones(len(features), 16, 48)


def by_batch(family, mask, pictured):
    """Positions that depend on how many conversations are in the batch."""
    return mask.cumsum(-1) * len(mask)


def from_the_end(family, mask, pictured):
    """Positions that are right if padding comes first."""
    length = mask.shape[1]
    return (torch.arange(length) - (length - mask.sum(-1, keepdim=True))).clamp(min=0)


#: Name of a check, and what is wrong with a family that breaks it.
BROKEN = {
    "is_described": {"summary": ""},
    "tokens_follow_from_the_size": {"project": lambda family, features: torch.ones(len(features), 15, 48)},
    "pixels_are_those_of_the_processor": {"pixels": lambda family, image: torch.zeros(1, 3, 32, 32)},
    "sizes_are_known_before_loading": {"shape": (16, 31)},
    "loss_is_transformers_own": {"project": wordless},
    "texts_are_transformers_own": {"project": wordless},
    "compiled_records_are_the_same": {"positions": from_the_end},
    "compiled_answers_are_the_same": {"layers": ()},
    "prompts_move_images_along": {"positions": by_batch},
    "trained_and_loaded_by_peft": {"project": wordless},
    "projector_learns": {"project": lambda family, features: 2 * family.base.model.multi_modal_projector(features)},
    "batches_are_sums": {"positions": by_batch},
    "subspaces_are_mixed_by_sample": {"positions": by_batch},
    "quantised_in_the_language_model": {"language_name": "vision_tower"},
}


@pytest.mark.parametrize("case", ["llava"], indirect=True)
@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_the_contract_can_fail(case, check, monkeypatch):
    for member, value in BROKEN[check.__name__].items():
        monkeypatch.setattr(KINDS["llava"], member, value)
    assert contract.failure(check, case) is not None


def test_a_family_without_a_small_model_says_what_is_missing(monkeypatch):
    monkeypatch.delattr(KINDS["llava"], "small")
    with pytest.raises(ConfigError, match=r"Llava names no small model to be checked on; define small\(\)"):
        next(contract.check("llava"))


@pytest.mark.parametrize("case", [name for name, kind in KINDS.items() if issubclass(kind, AnySize)], indirect=True)
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


# ---------------------------------------------------------------------- particular families


def published(name: str, targets: str = Adapter().targets):
    return shape_of(Config(model=name, identity="openai/clip-vit-large-patch14-336"), targets)


def refused(case: FamilyCase, **options) -> str:
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
    shape = published("HuggingFaceTB/SmolVLM-256M-Instruct", KINDS["idefics3"].small().targets)
    assert len(shape.adapted) == 30 * 3
    assert shape.language + shape.projector + shape.vision.parameters == 256_484_928
    assert shape.image_tokens == 13 * 64


def test_adapters_of_idefics3_8b():
    shape = published("HuggingFaceM4/Idefics3-8B-Llama3", KINDS["idefics3"].small().targets)
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


@pytest.mark.parametrize("case", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
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


def test_adapters_of_gemma3_4b():
    shape = published("google/gemma-3-4b-it")
    assert len(shape.adapted) == 34 * 3
    assert shape.language + shape.projector + shape.vision.parameters == 4_300_079_472  # as the hub says
    assert shape.image_tokens == 256


@pytest.mark.parametrize("case", ["gemma3"], indirect=True)
def test_words_of_an_image_attend_to_each_other(case):
    """Without the masks the logits are others, those of a conversation without an image the same."""
    wanted, learnt = logits(case.backbone, case.examples, case.features), [e.learnt for e in case.examples]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KINDS["gemma3"], "beside", Family.beside)
        found = logits(case.backbone, case.examples, case.features)
    for n, (one, other) in enumerate(zip(found.split(learnt), wanted.split(learnt), strict=True)):
        assert torch.allclose(one, other, atol=1e-5) == (not case.examples[n].images)


@pytest.mark.parametrize("case", ["gemma3"], indirect=True)
def test_prompts_of_gemma3_are_those_of_the_whole_processor(case):
    for question in case.questions:
        parts = [*[{"type": "image"}] * len(question.images), {"type": "text", "text": "Name it."}]
        processor = case.backbone.family.processor
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        opened = case.opened(*question.images) or None
        assert list(question.tokens) == processor(text=text, images=opened, add_special_tokens=False).input_ids[0]


@pytest.mark.parametrize("case", ["gemma3"], indirect=True)
def test_what_gemma3_does_not_do_is_refused(case):
    family = case.backbone.family
    family.image_processor.do_pan_and_scan = True
    with pytest.raises(ConfigError, match=r"cuts further squares out of long images \(do_pan_and_scan\)"):
        type(family)(family.base, family.processor, family.settings)
    family.image_processor.do_pan_and_scan = False
    with case.backbone.answering.by("transformers"), pytest.raises(ConfigError, match="takes no embeddings"):
        case.backbone.generate(case.questions, case.features, 2)
