import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPTextModel

from fcit.data.records import Record
from fcit.errors import ConfigError, DataError
from fcit.methods.knowledge_cache import cosine
from fcit.models.backbone import TINY
from fcit.models.identity import Identity, joined

CLIP = str(TINY / "clip")
COLOURS = ["red", "blue", "green", "white", "black"]


@pytest.fixture
def records(tmp_path) -> list[Record]:
    for colour in COLOURS:
        Image.new("RGB", (80, 60), colour).save(tmp_path / f"{colour}.png")
    return [Record.single(f"{c}.png", f"Is it {c}?", "yes") for n, c in enumerate(COLOURS)]


@pytest.fixture
def identity(tmp_path, monkeypatch) -> Identity:
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    return Identity(CLIP, torch.device("cpu"), cache=True)


def test_joined_by_hand():
    found = joined(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [5.0, 0.0]]))
    assert found == pytest.approx(np.array([[0.6, 0.8, 0, 1], [0, 0, 1, 0]]) / np.sqrt(2))
    assert found.dtype == np.float32


def test_the_cosine_of_both_is_the_mean_of_the_cosines(identity, records, tmp_path):
    text, image, both = (identity.features(kind, records, tmp_path) for kind in ("text", "image", "both"))
    assert cosine(both, both) == pytest.approx((cosine(text, text) + cosine(image, image)) / 2, abs=1e-6)
    for kind, rows in (("text", text), ("image", image), ("both", both)):
        assert rows.shape == (5, identity.width(kind)) and rows.dtype == np.float32


def test_images_are_the_pooled_state_of_the_whole_clip(identity, records, tmp_path):
    processor = AutoImageProcessor.from_pretrained(CLIP, backend="pil")
    pixels = processor([Image.open(tmp_path / r.images[0]) for r in records], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(CLIP).eval().vision_model(pixel_values=pixels).pooler_output
    assert identity.features("image", records, tmp_path) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_row_does_not_depend_on_the_others(identity, records, tmp_path):
    whole = Identity(CLIP, torch.device("cpu"), cache=False).features("image", records, tmp_path)
    alone = [identity.features("image", [r], tmp_path)[0] for r in reversed(records)]
    assert np.array_equal(np.stack(alone[::-1]), whole)


def test_an_image_is_computed_once_and_kept(identity, records, tmp_path, monkeypatch):
    asked = []
    pooled = Identity._pooled
    monkeypatch.setattr(
        Identity, "_pooled", lambda self, root, images: asked.extend(images) or pooled(self, root, images)
    )
    first = identity.features("image", [*records, *records], tmp_path)
    other = Identity(CLIP, torch.device("cpu"), cache=True).features("both", records, tmp_path)
    assert asked == [r.images[0] for r in records]
    assert other[:, identity.width() :] * np.sqrt(2) == pytest.approx(
        first[:5] / np.linalg.norm(first[:5], axis=1, keepdims=True), abs=1e-6
    )


def test_the_vision_tower_is_loaded_when_images_are_asked_for(identity, records, tmp_path):
    identity.features("text", records, tmp_path)
    assert identity.width() and "_vision" not in vars(identity)
    identity.width("image")
    tower = vars(identity)["_vision"][0]
    assert not tower.training and not any(p.requires_grad for p in tower.parameters())


def test_a_missing_image(identity, tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        identity.features("image", [Record.single("gone.png", "What?", "x")], tmp_path)


def test_a_text_encoder_without_a_vision_tower(tmp_path):
    CLIPTextModel.from_pretrained(CLIP).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(CLIP).save_pretrained(tmp_path)
    identity = Identity(str(tmp_path), torch.device("cpu"), cache=False)
    with pytest.raises(ConfigError, match=r"backbone\.identity: .* vision tower .* name a whole CLIP"):
        identity.width("image")
