"""A family registered by one file and one line: trained, saved, loaded by plain peft, its sizes known to doctor."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from PIL import Image
from transformers import AutoModelForImageTextToText

from fcit import registry
from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.errors import ConfigError, RunError
from fcit.export import format
from fcit.export.format import projector_policy
from fcit.models import adapters, checking
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import is_projector
from fcit.models.saving import save_subspace
from fcit.models.shapes import shape_of
from tests.models.made_up import MadeUp, small_made_up


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.MODELS, "made_up", "tests.models.made_up:MadeUp")
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Config:
    model, identity = small_made_up(tmp_path_factory.mktemp("made-up"))
    return Config(model=model, identity=identity, feature_cache="off")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(root / "0.png")
    return root


@pytest.mark.parametrize("policy", ["shared", "per_subspace", "frozen"])
def test_one_step_of_training_saved_and_loaded_by_plain_peft(settings, picture, tmp_path, policy):
    backbone = Backbone(settings)
    assert isinstance(backbone.family, MadeUp)
    slot = Adapters(backbone, Adapter(dropout=0, projector=policy))
    projector = [n for n in slot.trainable if is_projector(n)]
    assert bool(projector) == (policy != "frozen")
    assert all(".bridge." in n for n in projector)
    with torch.no_grad():
        for parameter in slot.trainable.values():
            parameter.add_(0.01)  # with B = 0 there is no gradient for A
    before, example = slot.read(), backbone.encode("How many?", "3", "0.png")
    features = backbone.vision_features(picture, ["0.png"])
    with slot.training() as parameters:
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        backbone.loss([example], features).backward()
        optimizer.step()
    trained = slot.read()
    assert all((trained[n] != before[n]).any() for n in trained)
    assert projector_policy([trained], {}, policy) == ("frozen" if policy == "frozen" else "per_subspace")

    save_subspace(tmp_path, trained, slot.adapter, settings)
    plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(settings.model), str(tmp_path))
    loaded = get_peft_model_state_dict(plain, save_embedding_layers=False)
    assert set(loaded) == set(trained)
    assert all(np.array_equal(loaded[n].numpy(), trained[n]) for n in trained)


class Counting(torch.nn.Module):
    """A projector that drops numbers out and counts how often it was used, beside another."""

    def __init__(self, inner: torch.nn.Module, persistent: bool) -> None:
        super().__init__()
        self.inner, self.out = inner, torch.nn.Dropout(0.5)
        self.register_buffer("steps", torch.zeros(()), persistent=persistent)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
        return self.out(self.inner(features))


def with_counting(settings, persistent: bool) -> Backbone:
    """A model with such a projector, and dropout in its tower."""
    backbone = Backbone(settings)
    backbone.family.base.model.bridge = Counting(backbone.family.base.model.bridge, persistent)
    backbone.family.base.model.eye.embeddings.register_forward_hook(
        lambda module, inputs, output: torch.nn.functional.dropout(output, 0.5, module.training)
    )
    backbone.family.base.eval()
    return backbone


def test_what_is_frozen_of_vision_does_not_train(settings, picture):
    """Its features are those outside of training, and it counts nothing."""
    backbone = with_counting(settings, persistent=True)
    slot = Adapters(backbone, Adapter(dropout=0, projector="frozen"))
    example, features = backbone.encode("How many?", "3", "0.png"), backbone.vision_features(picture, ["0.png"])
    quiet = backbone.loss([example], features).item()
    with slot.training():
        assert torch.equal(backbone.vision_features(picture, ["0.png"]), features)
        assert backbone.loss([example], features).item() == pytest.approx(quiet, abs=1e-6)
        with slot.resting():
            pass
        assert torch.equal(backbone.vision_features(picture, ["0.png"]), features)
    assert not backbone.family.base.model.bridge.steps


def test_a_projector_that_is_trained_is_in_training_mode_alone(settings, picture):
    backbone = with_counting(settings, persistent=False)
    slot = Adapters(backbone, Adapter(dropout=0, projector="shared"))
    example, features = backbone.encode("How many?", "3", "0.png"), backbone.vision_features(picture, ["0.png"])
    with slot.training():
        assert torch.equal(backbone.vision_features(picture, ["0.png"]), features)
        losses = {backbone.loss([example], features).item() for _ in range(5)}
        wrapper = next(module for module in backbone.model.modules() if hasattr(module, "original_module"))
        assert not wrapper.original_module.training
    assert len(losses) > 1
    assert wrapper.modules_to_save["slot"].steps == 5


def test_a_trained_projector_that_counts_is_refused(settings):
    backbone = with_counting(settings, persistent=True)
    with pytest.raises(ConfigError, match=r"adapter\.projector: 'shared', but the projector of MadeUp has 'steps'"):
        Adapters(backbone, Adapter(projector="shared"))


def test_doctor_knows_its_sizes(settings):
    backbone, adapter = Backbone(settings), Adapter(dropout=0)
    shape = shape_of(settings, adapter.targets)
    slot = Adapters(backbone, adapter)
    assert (shape.image_tokens, shape.feature_width) == backbone.family.shape
    assert shape.projector == sum(p.numel() for n, p in slot.trainable.items() if is_projector(n))
    assert shape.adapter(adapter.rank) == sum(p.numel() for n, p in slot.trainable.items() if not is_projector(n))
    parameters = [p for n, p in backbone.model.named_parameters() if ".eye." in n]
    assert shape.vision.parameters == sum(p.numel() for p in parameters)


@pytest.mark.parametrize("module", ["projector", "vision"])
def test_a_family_that_names_a_module_the_model_does_not_have(settings, monkeypatch, module):
    monkeypatch.setattr(MadeUp, module, "nothing_like_it")
    with pytest.raises(ConfigError, match="has 0 modules called 'nothing_like_it' instead of one"):
        Backbone(settings)
    with pytest.raises(ConfigError, match="has 0 modules called 'nothing_like_it' instead of one"):
        shape_of(settings, Adapter().targets)


def test_targets_that_reach_the_projector(settings):
    with pytest.raises(ConfigError, match=r"adapter\.targets: .* reaches the projector"):
        Adapters(Backbone(settings), Adapter(targets=r".*(gate_proj|bridge.linear_1)", projector="frozen"))


def test_a_projector_that_is_not_told_from_adapters_is_no_frozen_one(settings, monkeypatch):
    """What is configured as shared cannot be saved as frozen, whatever hides the projector's tensors."""
    tensors = {"base_model.model.model.bridge.linear_1.weight": np.zeros((2, 2), np.float32)}
    for home in (adapters, checking, format):
        monkeypatch.setattr(home, "is_projector", lambda name: False)
    with pytest.raises(ConfigError, match=r"adapter\.projector: 'shared'"):
        Adapters(Backbone(settings), Adapter())
    with pytest.raises(RunError, match="'shared', but the tensors of the run say 'frozen'"):
        projector_policy([{}], tensors, "shared")


def test_a_projector_of_no_registered_family_is_not_saved(settings, tmp_path, monkeypatch):
    monkeypatch.delitem(registry.MODELS, "made_up")
    tensors = {"base_model.model.model.bridge.linear_1.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(ValueError, match="projector of no registered family"):
        save_subspace(tmp_path, tensors, Adapter(), settings)


def test_a_family_of_ones_own_saves_its_projector_under_the_name_it_has(settings, tmp_path, monkeypatch):
    monkeypatch.delitem(registry.MODELS, "made_up")
    file = tmp_path / "mine.py"
    file.write_text("from tests.models.made_up import MadeUp as Mine\n")
    own = settings.model_copy(update={"family": f"{file}:Mine"})
    tensors = {"base_model.model.model.bridge.linear_1.weight": np.zeros((2, 2), np.float32)}
    save_subspace(tmp_path / "saved", tensors, Adapter(), own)
    assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["modules_to_save"] == ["bridge"]
    other = {"base_model.model.model.another.linear_1.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(ValueError, match="in the projector of another family than"):
        save_subspace(tmp_path / "other", other, Adapter(), own)
