"""What `fcit doctor` says of images that keep their own size rests on the data's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from fcit import config as configuration
from fcit.cli import main
from fcit.doctor import command
from fcit.doctor.command import Data
from fcit.doctor.images import Looked, look
from fcit.models import estimate
from fcit.models.backbone import TINY, Backbone
from fcit.models.estimate import Lengths
from fcit.models.families.llava_onevision import LlavaOnevision
from fcit.models.families.qwen3 import Qwen3
from fcit.models.families.small import save
from fcit.models.features import features_size
from fcit.models.shapes import shape_of
from tests.helpers.own_data import make_own, opened, rows

SMALL = Qwen3.small()
IDENTITY = f"backbone.identity={TINY / 'clip'}"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("model") / "qwen3_vl", SMALL)


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """Twelve training records and four questions; images of 2 x 2 words but two: 4 x 2 and 4 x 6."""
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    file = make_own(tmp_path)
    for image in (tmp_path / "data" / "datasets").iterdir():
        Image.new("RGB", (32, 32)).save(image)
    Image.new("RGB", (64, 32)).save(tmp_path / "data" / "datasets" / "3.png")
    Image.new("RGB", (96, 64)).save(tmp_path / "data" / "datasets" / "q2.png")
    return file


def overrides(model: str) -> list[str]:
    options = {**SMALL.options, "model": model, "identity": TINY / "clip", "max_length": 120}
    return [f"backbone.{key}={value}" for key, value in options.items()]


def test_all_images_are_looked_at_and_their_features_take_what_was_said(own, model):
    benchmark = opened(own, *overrides(model), "backbone.feature_cache=disk")
    found = look(benchmark, benchmark.config)
    assert found is not None
    assert found.whole
    assert (found.images, found.least, found.most, found.record) == (16, 4, 24, 24)
    assert found.mean == (14 * 4 + 8 + 24) / 16
    backbone = Backbone(benchmark.config.backbone)
    names = [*(f"{n}.png" for n in range(12)), *(f"q{n}.png" for n in range(4))]
    backbone.vision_features(benchmark.image_root, names)
    shape = shape_of(benchmark.config.backbone, SMALL.targets)
    assert features_size()[1] == found.all * estimate.feature_bytes(benchmark.config, shape, found.numbers)


def test_images_among_others_are_seen_as_such(own, tmp_path):
    """Alone an image has 36 tokens of this model or more, beside another one 17."""

    def change(content: list) -> None:
        content[0] |= {"images": ["0.png", "3.png"], "image": None}
        content[0]["conversations"][0]["value"] = "Which colors are these?"

    rows(own, change)
    benchmark = opened(own, f"backbone.model={save(tmp_path / 'model', LlavaOnevision.small())}", IDENTITY)
    found = look(benchmark, benchmark.config)
    assert found is not None
    assert (found.images, found.least) == (17, 17)


def test_of_many_records_a_sample_of_every_data_set_is_looked_at(own, model):
    """The first, the last and those between: of the training records 0, 5 and 11, of the questions 0, 1 and 3."""
    benchmark = opened(own, *overrides(model))
    found = look(benchmark, benchmark.config, most=6)
    assert found is not None
    assert not found.whole
    assert (found.images, found.all, found.most) == (6, 16, 4)


def test_an_image_that_cannot_be_read_is_left_to_who_reports_it(own, model):
    benchmark = opened(own, *overrides(model))
    (benchmark.image_root / "5.png").write_bytes(b"no image")
    found = look(benchmark, benchmark.config)
    assert found is not None
    assert found.images == 15


def test_images_of_one_size_are_not_looked_at(own, model):
    benchmark = opened(own, *overrides(model), "backbone.image_size=64", "backbone.min_pixels=", "backbone.max_pixels=")
    assert look(benchmark, benchmark.config) is None


LARGE = {"model": "Qwen/Qwen3-VL-4B-Instruct", "identity": "openai/clip-vit-large-patch14-336", "dtype": "bfloat16"}


def test_memory_follows_from_the_largest_image():
    config = configuration.parse({"backbone": LARGE})
    typical = shape_of(config.backbone, config.adapter.targets)
    seen = Looked(images=9, all=9, least=50, mean=80.0, most=600, record=1200, numbers=1.0)
    shape, lengths = command._largest(typical, Data(longest=(1300, 20), images=seen), 2048)
    assert (lengths.images, lengths.text, lengths.record(shape)) == (1200, 80, 1300)
    assert shape.vision.tokens == 2 * typical.vision.tokens
    small, large = (
        estimate.memory(config, *sizes) for sizes in ((typical, 1, 1, Lengths(80, 20)), (shape, 1, 1, lengths))
    )
    assert sum(large.looking.values()) == 2 * sum(small.looking.values())
    rows = [m.training["projector and last norm"] for m in (small, large)]
    per_image = rows[1] / rows[0]
    assert 3 < per_image <= 4  # 1,200 rows of features for 300
    assert large.answering["keys and values"] > 3 * small.answering["keys and values"]


def test_what_was_not_tokenised_is_as_long_as_a_run_would_take():
    config = configuration.parse({"backbone": LARGE})
    typical = shape_of(config.backbone, config.adapter.targets)
    lengths = [command._largest(typical, Data(), most)[1].record(typical) for most in (2048, 400)]
    assert lengths == [300 + estimate.TEXT + estimate.ANSWER, 400]


def test_records_that_do_not_fit_are_told_beside_the_images(own, model, capsys):
    options = [*overrides(model), "backbone.max_length=40", "backbone.feature_cache=disk", "--no-probe"]
    assert main(["doctor", "--config", str(own), *options]) == 0
    out = capsys.readouterr().out
    assert re.search(r"data: .* a question of 44 tokens, image included, does not fit into backbone.max_length", out)
    assert "assumed 1 tokens of text and 15 of an answer beside 24 of its images, 40 together" in out
    assert "images: all 16 looked at" in out
    assert "(all 16:" in out


def test_without_a_model_here_an_image_that_never_fits_is_told(own, capsys):
    changes = [f"backbone.{key}={value}" for key, value in LARGE.items()]
    code = main(["doctor", "--config", str(own), *changes, "backbone.max_length=200", "--gpu-gb=80", "--no-probe"])
    assert code == 2
    assert "backbone.max_length: 200 tokens, and an image has 300 (of 640 x 480 pixels" in capsys.readouterr().err


@pytest.mark.parametrize("here", [True, False])
def test_which_images_were_looked_at_is_said(own, model, here, capsys):
    changes = overrides(model) if here else [f"backbone.{key}={value}" for key, value in LARGE.items()]
    device = [] if here else ["--gpu-gb=80"]
    code = main(["doctor", "--config", str(own), *changes, "backbone.feature_cache=disk", "--no-probe", *device])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    if not here:
        assert "images: their sizes are not known here; assumed 640 x 480 pixels each, 300 tokens" in captured.out
        return
    assert "images: all 16 looked at: 4 to 24 tokens each in a prompt, 6 on average, 24 in one record" in captured.out
    assert re.search(r"beside 24 of its images, \d+ together \(backbone.max_length: 120\)", captured.out)
    assert "(all 16:" in captured.out
