import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPTextModel

from fcit.config import RunConfig
from fcit.data.records import Record, TestRecord, Turn
from fcit.errors import ConfigError, DataError
from fcit.methods.base import Method
from fcit.methods.knowledge_cache import cosine
from fcit.models.backbone import TINY
from fcit.models.identity import IdentityEncoder, joined

CLIP = str(TINY / "clip")
COLOURS = ["red", "blue", "green", "white", "black"]


@pytest.fixture
def records(tmp_path) -> list[Record]:
    for colour in COLOURS:
        Image.new("RGB", (80, 60), colour).save(tmp_path / f"{colour}.png")
    return [Record.single(f"{c}.png", f"Is it {c}?", "yes") for n, c in enumerate(COLOURS)]


@pytest.fixture
def identity(tmp_path, monkeypatch) -> IdentityEncoder:
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    return IdentityEncoder(CLIP, torch.device("cpu"), cache=True)


def test_joined_by_hand():
    found = joined(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [5.0, 0.0]]))
    assert found == pytest.approx(np.array([[0.6, 0.8, 0, 1], [0, 0, 1, 0]]) / np.sqrt(2))
    assert found.dtype == np.float32


def test_the_cosine_of_both_is_the_mean_of_the_cosines(identity, records, tmp_path):
    text, image, both = (identity.features(kind, records, tmp_path) for kind in ("text", "image", "both"))
    assert cosine(both, both) == pytest.approx((cosine(text, text) + cosine(image, image)) / 2, abs=1e-6)
    for kind, rows in (("text", text), ("image", image), ("both", both)):
        assert rows.shape == (5, identity.width(kind))
        assert rows.dtype == np.float32


def test_a_suffix_is_the_last_line_of_an_instruction(identity, tmp_path):
    """Two questions with one last line, the line by itself, and a conversation of two lines."""
    lines = ["Is it red?\nAnswer with yes or no.", "How many?\n\nAnswer with yes or no. \n", "Answer with yes or no."]
    asked = [TestRecord(str(n), (), text, "") for n, text in enumerate(lines)]
    talk = Record((), (Turn("A?\nSay it.", "x", 0), Turn("Say why.", "y", 0)))
    rows = identity.features("suffix", [*asked, talk], tmp_path)
    assert rows[0] == pytest.approx(identity.text([lines[2]])[0], abs=1e-5)
    assert rows[1:3].tolist() == [rows[0].tolist()] * 2
    assert rows[3] == pytest.approx(identity.text(["Say it.", "Say why."]).mean(axis=0), abs=1e-5)
    assert rows.shape[1] == identity.width("suffix")


def test_images_are_the_pooled_state_of_the_whole_clip(identity, records, tmp_path):
    processor = AutoImageProcessor.from_pretrained(CLIP, backend="pil")
    pixels = processor([Image.open(tmp_path / r.images[0]) for r in records], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(CLIP).eval().vision_model(pixel_values=pixels).pooler_output
    assert identity.features("image", records, tmp_path) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_row_does_not_depend_on_the_others(identity, records, tmp_path):
    whole = IdentityEncoder(CLIP, torch.device("cpu"), cache=False).features("image", records, tmp_path)
    alone = [identity.features("image", [r], tmp_path)[0] for r in reversed(records)]
    assert np.array_equal(np.stack(alone[::-1]), whole)


def test_an_image_is_computed_once_and_kept(identity, records, tmp_path, monkeypatch):
    asked = []
    pooled = IdentityEncoder._pooled
    monkeypatch.setattr(
        IdentityEncoder, "_pooled", lambda self, root, images: asked.extend(images) or pooled(self, root, images)
    )
    first = identity.features("image", [*records, *records], tmp_path)
    other = IdentityEncoder(CLIP, torch.device("cpu"), cache=True).features("both", records, tmp_path)
    assert asked == [r.images[0] for r in records]
    assert other[:, identity.width() :] * np.sqrt(2) == pytest.approx(
        first[:5] / np.linalg.norm(first[:5], axis=1, keepdims=True), abs=1e-6
    )


def test_the_vision_tower_is_loaded_when_images_are_asked_for(identity, records, tmp_path):
    identity.features("text", records, tmp_path)
    assert identity.width()
    assert "_vision" not in vars(identity)
    identity.width("image")
    tower = vars(identity)["_vision"][0]
    assert not tower.training
    assert not any(p.requires_grad for p in tower.parameters())


def test_a_missing_image(identity, tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        identity.features("image", [Record.single("gone.png", "What?", "x")], tmp_path)


def test_a_text_encoder_without_a_vision_tower(tmp_path):
    CLIPTextModel.from_pretrained(CLIP).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(CLIP).save_pretrained(tmp_path)
    identity = IdentityEncoder(str(tmp_path), torch.device("cpu"), cache=False)
    with pytest.raises(ConfigError, match=r"backbone\.identity: .* vision tower .* name a whole CLIP"):
        identity.width("image")


def test_a_conversation_is_the_mean_of_its_instructions_and_of_its_images(identity, records, tmp_path):
    """Our definition; a record counts once however many turns it has, and no image is zeros."""
    turns = (Turn("Is it red?", "yes", 1), Turn("Is it blue?", "no"), Turn("Is it green?", "no", 1))
    talk, text = Record(("red.png", "blue.png"), turns), Record((), (Turn("Is it white?", "no"),))
    asked = TestRecord("0", ("red.png", "blue.png"), "Is it white?", "")
    words = identity.features("text", records, tmp_path)
    looks = identity.features("image", records, tmp_path)
    found = identity.features("text", [records[3], talk, text, asked], tmp_path)
    assert found == pytest.approx(np.stack([words[3], words[:3].mean(axis=0), words[3], words[3]]), abs=1e-6)
    found = identity.features("image", [text, talk, records[4], asked], tmp_path)
    pair = looks[:2].mean(axis=0)
    assert found == pytest.approx(np.stack([np.zeros_like(pair), pair, looks[4], pair]), abs=1e-6)
    assert identity.features("image", [text], tmp_path).shape == (1, identity.width("image"))
    both = identity.features("both", [talk, text], tmp_path)
    expected = joined(np.stack([words[:3].mean(axis=0), words[3]]), np.stack([pair, np.zeros_like(pair)]))
    assert both == pytest.approx(expected, abs=1e-6)
    stats = Method(RunConfig()).describe(identity.features("text", [talk, text], tmp_path))
    assert stats.count == 2
    assert stats.total == pytest.approx(words[:3].mean(axis=0) + words[3], abs=1e-4)


def test_single_questions_have_the_bits_they_always_had(identity, records, tmp_path):
    """A mean over one row would be the same number; none is taken."""
    assert np.array_equal(
        identity.features("text", records, tmp_path), identity.text([r.turns[0].question for r in records])
    )
