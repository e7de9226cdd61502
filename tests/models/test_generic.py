"""Models without a family of their own: those that fit keep the contract of families, the others are refused."""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig

from fcit import config as configuration
from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.contracts import families as contract
from fcit.contracts.families import FamilyCase
from fcit.errors import ConfigError
from fcit.models.adapters import Adapters
from fcit.models.backbone import TINY, Backbone
from fcit.models.families.gemma3 import Gemma3
from fcit.models.families.generic import Generic
from fcit.models.families.llava import Llava
from fcit.models.families.small import save
from fcit.models.shapes import shape_of
from tests.helpers.generic_models import FITTING, UNFIT


@pytest.fixture(scope="module")
def aya(tmp_path_factory) -> FamilyCase:
    return FamilyCase("generic", tmp_path_factory.mktemp("aya"))


def refused(model: str, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        Backbone(Config(model=model, identity=str(TINY / "clip"), family="generic", feature_cache="off", **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


#: What of the contract depends on the model; the rest is the same code for all of them.
TOLD = ("sizes_are_known_before_loading", "loss_is_transformers_own", "texts_are_transformers_own")


@pytest.mark.thorough
@pytest.mark.parametrize("kind", FITTING)
def test_what_fits_keeps_the_contract(kind, tmp_path):
    case = FamilyCase("generic", tmp_path, FITTING[kind])
    checks = {check.__name__: check for check in contract.CHECKS}
    wrong = {name: contract.failure(checks[name], case) for name in TOLD}
    assert set(wrong.values()) == {None}, wrong


@pytest.mark.parametrize("kind", UNFIT)
def test_what_does_not_fit_is_refused_at_the_start(kind, tmp_path):
    small, why = UNFIT[kind]
    said = refused(save(tmp_path / kind, small))
    assert said.startswith("backbone.family: generic, but ")
    assert why in said
    assert said.endswith("; it needs a family of its own (docs/own-family.md)")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_in_both_directions_is_noticed(tmp_path, dtype):
    """Gemma 3 has a family; as a generic model its words would not see those that follow."""
    said = refused(save(tmp_path / "gemma3", Gemma3.small()), dtype=dtype)
    assert "its own forward gives logits that differ by" in said


@pytest.mark.parametrize("kind", ["aria", "vipllava"])
def test_what_fits_does_so_in_sixteen_bits(kind, tmp_path):
    """The processor's pixels have 32."""
    model = save(tmp_path / kind, FITTING[kind])
    backbone = Backbone(Config(model=model, identity=str(TINY / "clip"), family="generic", dtype="bfloat16"))
    assert backbone.family.base.dtype == torch.bfloat16


def test_a_model_of_texts_is_none_of_images():
    with pytest.raises(ConfigError, match="llama is no model of images and text"):
        Generic.of(LlamaConfig())


def test_an_unknown_model_is_told_of_generic(tmp_path):
    folder = save(tmp_path / "vipllava", FITTING["vipllava"])
    settings = Config(model=folder, identity=str(TINY / "clip"))
    for load in (Backbone, lambda settings: shape_of(settings, Adapter().targets)):
        with pytest.raises(ConfigError, match=r"is a vipllava; .* set backbone.family: generic, which is tried"):
            load(settings)


def test_its_projector_is_frozen(aya):
    with pytest.raises(ConfigError, match=r"adapter.projector: 'shared', .* set adapter.projector: frozen"):
        Adapters(aya.fresh(), Adapter())
    backbone = {"family": "generic", "model": "somewhere", "identity": "elsewhere"}
    with pytest.raises(ConfigError, match=r"adapter.projector: 'shared', but with backbone.family: generic"):
        configuration.parse({"backbone": backbone})
    configuration.parse({"backbone": backbone, "adapter": {"projector": "frozen"}})


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("llava", "backbone.family: 'llava' is none of auto, generic and ./mine.py:MyFamily; for a model that has"),
        ("./absent.py:Mine", "backbone.family: model: no such file"),
        ("fcit.models.places:TINY", "backbone.family: model: fcit.models.places:TINY is not a subclass of"),
    ],
)
def test_families_that_are_none(family, said):
    with pytest.raises(ConfigError) as caught:
        configuration.parse({"backbone": {"family": family}})
    assert said in str(caught.value)


def test_a_family_of_ones_own_is_named_by_its_file(tmp_path):
    """For a model that has one already, too; the path is that of the configuration's folder."""
    (tmp_path / "mine.py").write_text("from fcit.models.families.llava import Llava\n\nclass Mine(Llava):\n    pass\n")
    raw = configuration.anchored({"backbone": {"family": "./mine.py:Mine"}}, tmp_path)["backbone"]
    model = save(tmp_path / "llava", Llava.small())
    assert type(Backbone(Config(model=model, identity=str(TINY / "clip"), **raw)).family).__name__ == "Mine"


@pytest.mark.parametrize(("key", "value"), [("min_pixels", 9), ("max_pixels", 9999), ("image_size", 64)])
def test_the_size_of_images_is_the_processors(aya, key, value):
    assert f"backbone.{key}: " in refused(aya.folder, **{key: value})


def test_another_number_of_words_is_refused(aya, monkeypatch):
    backbone = aya.fresh()
    monkeypatch.setattr(backbone.family, "count", lambda grid: 3)
    with pytest.raises(ConfigError, match="returns 12 words of an image of 57 x 30 pixels, and its processor writes 3"):
        backbone.vision_features(aya.root, ["0.png"])


def test_a_forward_without_places_of_logits_is_refused(aya, monkeypatch):
    backbone = aya.fresh()
    forward = type(backbone.model).forward
    monkeypatch.setattr(type(backbone.model), "forward", lambda self, logits_to_keep=0, **given: forward(self, **given))
    with pytest.raises(ConfigError, match="its forward does not take logits_to_keep"):
        backbone.family.verify()


def test_nothing_of_the_tower_is_left_out_of_the_cache_mark(aya):
    """The projector as well: what is kept is behind it."""
    backbone = aya.fresh()
    before = backbone.vision.mark
    with torch.no_grad():
        next(backbone.model.model.multi_modal_projector.parameters()).add_(1)
    del backbone.vision
    assert backbone.vision.mark != before


def test_a_small_model_can_be_made_otherwise(tmp_path):
    """Options of a small model reach the backbone."""
    small = dataclasses.replace(FITTING["deepseek_vl"], options={"pad_to_square": True})
    case = FamilyCase("generic", tmp_path, small)
    assert case.backbone.family.view == "squaregeneric"
    assert contract.failure(contract.loss_is_transformers_own, case) is not None  # transformers pads nothing
