"""Families that cut an image on a canvas of its aspect ratio (LLaVA-NeXT): words, bounds and what is refused."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.contracts.families import SIZES, FamilyCase
from fcit.errors import ConfigError
from fcit.models.adapters import Adapters
from fcit.models.shapes import shape_of

#: Beside the usual ones: strips that leave no word of a canvas, and rounding at the padding's edge.
ODD = [(300, 3), (2, 250), (333, 250), (97, 65), (64, 63), (65, 32), (1, 1)]


@pytest.fixture(scope="module", params=["llava_next"])
def case(request, tmp_path_factory) -> FamilyCase:
    return FamilyCase(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("size", [*SIZES, *ODD])
def test_words_are_those_of_get_image_features(case, size):
    """Whole image, tiles without padding, newlines."""
    image = Image.effect_noise(size, 90).convert("RGB")
    given = case.small.inputs(case.backbone, [image])
    with torch.no_grad():
        [wanted] = case.whole.model.get_image_features(**given).pooler_output
    family = case.backbone.family
    grid = family.grid(*size)
    assert len(wanted) == family.count(grid)
    torch.testing.assert_close(family.join(family.rows(family.pixels(image), grid), [grid]), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["llava_next"], indirect=True)
def test_prompts_are_those_of_the_whole_processor(case):
    processor = AutoProcessor.from_pretrained(case.folder)
    for question in case.questions:
        parts = [*[{"type": "image"}] * len(question.images), {"type": "text", "text": "Name it."}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        opened = [Image.open(case.root / image) for image in question.images] or None
        assert list(question.tokens) == processor(text=text, images=opened, add_special_tokens=False).input_ids[0]


def test_the_newline_stays_frozen(case):
    backbone = case.fresh()
    adapters = Adapters(backbone, case.adapter)
    with adapters.training() as parameters:
        assert not any(parameter is backbone.family.base.model.image_newline for parameter in parameters)
        assert not backbone.family.base.model.image_newline.requires_grad


@pytest.mark.parametrize("case", ["llava_next"], indirect=True)
def test_canvases_of_llava_next(case):
    family = case.backbone.family
    assert [family.grid(*size) for size in SIZES] == [
        (1, 2, 4, 8),
        (2, 1, 8, 4),
        (2, 2, 4, 8),
        (3, 1, 12, 2),
        (2, 2, 8, 8),
    ]
    assert case.fresh(max_pixels=2 * 32 * 32).family.grid(40, 40) == (1, 2, 4, 4)
    assert case.fresh(min_pixels=4 * 32 * 32).family.grid(57, 30) == (2, 2, 4, 8)


def test_canvases_that_fit_nothing_are_refused(case):
    with pytest.raises(ConfigError, match="they have 2,048 to 4,096 pixels; set the bounds accordingly"):
        case.fresh(max_pixels=2000)


def test_another_models_image_processor_is_refused(case):
    family = case.backbone.family
    size = {"height": 16, "width": 16}
    other = type(family.processor)(size=size, crop_size=size, image_grid_pinpoints=[[16, 16]])
    with pytest.raises(ConfigError, match="makes tiles of 16 pixels on 1 canvases"):
        type(family)(family.base, other, family.settings)


def test_states_that_are_no_square_of_patches_are_refused(case):
    backbone = case.fresh()
    config = backbone.family.base.config
    turned = {"default": "full", "full": "default"}[config.vision_feature_select_strategy]
    config.vision_feature_select_strategy = turned
    with pytest.raises(ConfigError, match=f"vision_feature_select_strategy '{turned}' in .* of a tile of 16 patches"):
        backbone.vision_features(case.root, ["0.png"])


def test_adapters_of_llava_next_7b():
    shape = shape_of(
        Config(model="llava-hf/llava-v1.6-mistral-7b-hf", identity="openai/clip-vit-large-patch14-336"),
        Adapter().targets,
    )
    assert len(shape.adapted) == 32 * 3
    assert round((shape.language + shape.projector + shape.vision.parameters) / 1e7) == 757  # 7.57 B, as the hub says
    assert shape.image_tokens == 576 + 36 * (48 + 1)
    assert shape.image_words == 5 * 576
