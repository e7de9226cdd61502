"""LLaVA-NeXT and LLaVA-OneVision, which cut an image on a canvas of its aspect ratio: words, bounds, refusals."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaOnevisionProcessor

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.contracts.families import SIZES, FamilyCase
from fcit.data.collate import Encoded, as_shown, images_of
from fcit.data.records import Record, Turn
from fcit.errors import ConfigError, DataError
from fcit.models.adapters import Adapters
from fcit.models.shapes import Shape, shape_of

#: Beside the usual ones: strips that leave no word of a canvas, and rounding at the padding's edge.
ODD = [(300, 3), (2, 250), (333, 250), (97, 65), (64, 63), (65, 32), (1, 1)]


@pytest.fixture(scope="module", params=["llava_next", "llava_onevision"])
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


def test_several_images_are_those_of_the_model(case):
    """Of one conversation: pixels and words."""
    images = [Image.effect_noise(size, 90).convert("RGB") for size in ((57, 30), (24, 61))]
    given, family = case.small.inputs(case.backbone, images), case.backbone.family.among
    assert torch.equal(torch.cat([family.pixels(image) for image in images]), given["pixel_values"])
    with torch.no_grad():
        wanted = case.whole.model.get_image_features(**given).pooler_output
    grids = [family.grid(*image.size) for image in images]
    assert [len(words) for words in wanted] == [family.count(grid) for grid in grids]
    rows = torch.cat([family.rows(family.pixels(image), grid) for image, grid in zip(images, grids, strict=True)])
    torch.testing.assert_close(family.join(rows, grids), torch.cat(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["llava_next"], indirect=True)
def test_prompts_are_those_of_the_whole_processor(case):
    processor = AutoProcessor.from_pretrained(case.folder)
    for question in case.questions:
        parts = [*[{"type": "image"}] * len(question.images), {"type": "text", "text": "Name it."}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        opened = [Image.open(case.root / image) for image in question.images] or None
        assert list(question.tokens) == processor(text=text, images=opened, add_special_tokens=False).input_ids[0]


@pytest.mark.parametrize("case", ["llava_onevision"], indirect=True)
@pytest.mark.parametrize("images", [[0], [3], [3, 0]])
def test_placeholders_are_those_of_the_whole_processor(case, images):
    """Which needs torchvision for videos, so that only what it says of images is asked."""
    opened = case.opened(*(f"{n}.png" for n in images))
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.image_processor, processor.image_token = case.backbone.image_processor, "<image>"
    processor.num_image_tokens, processor.vision_feature_select_strategy = 16, "full"
    processor.vision_aspect_ratio = case.whole.config.vision_aspect_ratio
    given = processor.image_processor([opened], do_pad=False)
    placeholders = case.backbone.encoder_below(case.root).placeholders
    for number, name in enumerate(as_shown([f"{n}.png" for n in images])):
        assert placeholders.text(name, "<image>") == processor.replace_image_token(given, number)


def test_the_newline_stays_frozen(case):
    backbone = case.fresh()
    adapters = Adapters(backbone, case.adapter)
    with adapters.training() as parameters:
        assert not any(parameter is backbone.family.base.model.image_newline for parameter in parameters)
        assert not backbone.family.base.model.image_newline.requires_grad
    assert backbone.family.part("model.image_newline") == "newline between rows of an image"
    assert backbone.family.part("model.vision_tower.embeddings.weight") == "vision tower"


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


@pytest.mark.parametrize("case", ["llava_onevision"], indirect=True)
def test_canvases_of_llava_onevision(case):
    """The last of these has more words than four tiles and is scaled down."""
    family = case.backbone.family
    grids = [family.grid(*size) for size in [(34, 34), (60, 30), (500, 20), (102, 97)]]
    assert grids == [(1, 1, 4, 4), (1, 2, 4, 8), (1, 3, 0, 12), (3, 3, 12, 12)]
    assert [family.spread(grid) for grid in grids] == [(4, 4), (4, 8), (0, 12), (8, 8)]
    assert family.count(grids[-1]) == 16 + 8 * (8 + 1)
    assert family.kept(grids[-1]) == 10
    assert [family.among.grid(*size) for size in SIZES] == [(0, 0, 0, 0)] * len(SIZES)


@pytest.mark.parametrize("case", ["llava_onevision"], indirect=True)
def test_an_image_is_kept_alone_and_among_others(case, tmp_path, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path))
    names = images_of([Encoded((), images=("0.png",)), Encoded((), images=("0.png", "1.png"))])
    backbone = case.fresh(feature_cache="disk")
    kept = backbone.images(case.root, names).batch([0, 1, 2])
    again = case.fresh(feature_cache="disk")
    monkeypatch.setattr(again.family, "rows", None)
    again = again.images(case.root, names).batch([1, 0])
    assert kept.counts == (3, 1, 1)
    assert again.counts == (1, 3)
    assert torch.equal(again.rows, kept[[1, 0]].rows)
    assert backbone.vision.blank(names).counts[1:] == (1, 1)


@pytest.mark.parametrize("case", ["llava_onevision"], indirect=True)
def test_one_image_left_of_several_is_refused(case):
    """Its words would be those of an image among others, and it would be seen as one alone."""
    record = Record(("0.png", "1.png"), (Turn("How many?", "3", 1), Turn("Name it.", "red cup", 1)))
    encoder = case.backbone.encoder_below(case.root)
    whole = encoder.encode(record)
    encoder.max_length = len(whole.tokens) - 1
    with pytest.raises(DataError, match="of 2 images the first alone fits into"):
        encoder.encode(record)


@pytest.mark.parametrize("case", ["llava_onevision"], indirect=True)
def test_videos_are_refused(case):
    with pytest.raises(DataError, match="a text holds '<video>', which stands for a video, and only images are shown"):
        case.backbone.encode("What happens in <video>?", "nothing", None)


@pytest.mark.parametrize("case", ["llava_onevision"], indirect=True)
def test_other_ways_of_scaling_down_are_refused(case):
    family = case.fresh().family
    family.base.config.vision_aspect_ratio = "pad"
    with pytest.raises(ConfigError, match="vision_aspect_ratio 'pad' in config"):
        type(family)(family.base, family.processor, family.settings)


def test_canvases_that_fit_nothing_are_refused(case):
    with pytest.raises(ConfigError, match="pixels; set the bounds accordingly"):
        case.fresh(max_pixels=900)


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
    with pytest.raises(ConfigError, match=f"'{turned}' in config.json of .* states of a tile of 16 patches"):
        backbone.vision_features(case.root, ["0.png"])


def published(name: str) -> Shape:
    return shape_of(Config(model=name, identity="openai/clip-vit-large-patch14-336"), Adapter().targets)


@pytest.mark.parametrize(
    ("size", "layers", "width", "qwen2"), [("0.5b", 24, 896, 494_032_768), ("7b", 28, 3584, 7_615_616_512 + 64 * 3584)]
)
def test_adapters_of_llava_onevision(size, layers, width, qwen2):
    """Qwen2 with 64 more words (7B: in and out) and a newline."""
    shape = published(f"llava-hf/llava-onevision-qwen2-{size}-ov-hf")
    assert len(shape.adapted) == layers * 3
    assert shape.language == qwen2 + 64 * width + width
    assert shape.image_tokens == 729 + 40 * (54 + 1)
    assert shape.image_words == 5 * 729


def test_adapters_of_llava_next_7b():
    """Mistral-7B with 64 more words in and out and a newline; CLIP ViT-L/14 at 336 pixels."""
    shape = published("llava-hf/llava-v1.6-mistral-7b-hf")
    assert len(shape.adapted) == 32 * 3
    assert shape.language == 7_241_732_096 + 2 * 64 * 4096 + 4096
    assert shape.vision.parameters == 303_507_456
    assert shape.image_tokens == 576 + 36 * (48 + 1)
    assert shape.image_words == 5 * 576
