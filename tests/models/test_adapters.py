import json
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from PIL import Image

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.data.mini.questions import MAKERS
from fcit.errors import ConfigError, DataError
from fcit.io.trees import Tensors
from fcit.models.adapters import MIX, Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import is_projector
from fcit.models.saving import save_peft

CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(Config())


@pytest.fixture(scope="module")
def base(backbone) -> dict[str, torch.Tensor]:
    """The model's tensors before adapters were attached."""
    return {name: p.detach().clone() for name, p in backbone.model.named_parameters()}


@pytest.fixture(scope="module")
def adapters(backbone, base) -> Adapters:
    return Adapters(backbone, Adapter())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for n, name in enumerate(["iconqa", "ocr-vqa", "dvqa", "flickr30k"]):
        Image.fromarray(MAKERS[name](rng).scene.decorate(rng).image()).save(root / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def batch(backbone, images):
    """Four examples whose texts have different lengths, with their features."""
    texts = [
        ("How many?", "3"),
        ("What is the title on this cover?", "ABC"),
        ("Name it.", "red cup"),
        ("Tell what is happening in the image.", "red cup is above blue fish"),
    ]
    examples = [backbone.encode(q, a, f"{n}.png") for n, (q, a) in enumerate(texts)]
    return examples, backbone.vision_features(images, [e.images[0] for e in examples])


def subspace(adapters: Adapters, seed: int) -> Tensors:
    """Random, and large enough to change every answer."""
    rng = np.random.default_rng(seed)
    names = [n for n in adapters.trainable if not is_projector(n)]
    return {n: rng.normal(0, 0.1, adapters.trainable[n].shape).astype(np.float32) for n in names}


@pytest.fixture(scope="module")
def three(adapters) -> list[Tensors]:
    return [subspace(adapters, seed) for seed in (1, 2, 3)]


@torch.no_grad()
def logits(backbone: Backbone, examples, features) -> torch.Tensor:
    return backbone.answer_logits(examples, features)[0]


@torch.no_grad()
def untouched(backbone: Backbone, examples, features) -> torch.Tensor:
    with backbone.model.disable_adapter():
        return backbone.answer_logits(examples, features)[0]


def slot_logits(adapters: Adapters, tensors: Tensors, batch) -> torch.Tensor:
    adapters.load({**adapters.base_projector(), **tensors})
    with adapters.training():
        adapters.backbone.model.eval()  # no dropout
        return logits(adapters.backbone, *batch)


# ---------------------------------------------------------------------- backbone


def test_cached_features_answer_as_pixels_do(backbone, adapters, images, batch):
    for example, features in zip(*batch, strict=True):
        ids = torch.tensor([[*example.prompt, *example.targets]])
        pixels = backbone.image_processor(Image.open(images / example.images[0]), return_tensors="pt")["pixel_values"]
        with torch.no_grad(), backbone.model.disable_adapter():
            whole = backbone.model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
        expected = whole[0, len(example.prompt) - 1 : -1]
        torch.testing.assert_close(untouched(backbone, [example], features[None]), expected, **CLOSE)


def test_features_do_not_depend_on_the_cache(backbone, images, batch, tmp_path):
    again = backbone.vision.computed(images, ["2.png"])
    assert np.array_equal(again[0], batch[1][2].numpy())


def test_padding_changes_nothing(backbone, adapters, batch):
    examples, features = batch
    together = untouched(backbone, examples, features)
    alone = [untouched(backbone, [e], features[n : n + 1]) for n, e in enumerate(examples)]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


def test_loss_is_the_mean_over_answer_tokens(backbone, adapters, batch):
    rows, targets = backbone.answer_logits(*batch)
    assert targets.tolist() == [token for e in batch[0] for token in e.targets]
    expected = -rows.log_softmax(-1)[torch.arange(len(targets)), targets].mean()
    assert float(backbone.loss(*batch).detach()) == pytest.approx(float(expected.detach()), abs=1e-5)


def test_identity_features(backbone):
    texts = ["How many icons?", "What is the title?"] * 40
    rows = backbone.identity.text(texts)
    assert rows.shape == (80, backbone.identity.width())
    assert rows.dtype == np.float32
    assert rows[78] == pytest.approx(rows[0], abs=1e-5)
    assert not np.allclose(rows[0], rows[1], atol=1e-2)


def test_image_tag_in_the_text(backbone, adapters, batch):
    example = backbone.encode("What does <image> mean?", "x", "0.png")
    with pytest.raises(DataError, match="image tag"):
        backbone.loss([example], batch[1][:1])


def test_unknown_model_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"backbone\.identity"):
        Backbone(Config(model=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"backbone\.model: cannot load"):
        Backbone(Config(model=str(tmp_path), identity=str(tmp_path)))


# ---------------------------------------------------------------------- slot


def test_slot_round_trip(adapters, three):
    before = adapters.read()
    adapters.load(three[0])
    after = adapters.read()
    assert list(after) == list(before)
    for name, value in after.items():
        assert value.dtype == np.float32
        assert np.array_equal(value, three[0].get(name, before[name]))
    after[next(iter(three[0]))][:] = 9  # a copy, not a view
    assert np.array_equal(adapters.read()[next(iter(three[0]))], three[0][next(iter(three[0]))])


def test_slot_refuses_strange_names(adapters):
    with pytest.raises(KeyError):
        adapters.load({"base_model.model.nothing.lora_A.weight": np.zeros((1, 1), np.float32)})


def test_slot_refuses_other_shapes(adapters):
    name = next(n for n in adapters.trainable if "lora_A" in n)
    with pytest.raises(ValueError, match=r"is \(8, 7\), expected \(8, \d+\) or a smaller rank"):
        adapters.load({name: np.zeros((8, 7), np.float32)})


def test_names_and_targets(adapters):
    names = [n for n in adapters.trainable if not is_projector(n)]
    assert all(n.startswith("base_model.model.") and n.endswith((".lora_A.weight", ".lora_B.weight")) for n in names)
    assert all("language_model" in n and n.split(".")[-3] in ("gate_proj", "up_proj", "down_proj") for n in names)
    assert all(adapters.trainable[n].shape[0 if ".lora_A." in n else 1] == 8 for n in names)
    assert set(adapters.base_projector()) == {n for n in adapters.trainable if is_projector(n)} != set()


def test_targets_that_match_nothing():
    with pytest.raises(ConfigError, match=r"adapter\.targets"):
        Adapters(Backbone(Config()), Adapter(targets="nothing_like_it"))


def test_training_touches_the_slot_only(backbone, adapters, base, batch, three):
    adapters.load_mixture(three[:2], adapters.base_projector())  # a second adapter is there, as after an evaluation
    adapters.load({**three[0], **adapters.base_projector()})
    before = {n: p.detach().clone() for n, p in backbone.model.named_parameters()}
    with adapters.training() as parameters:
        assert len(parameters) == len(adapters.trainable)
        trained = {n for n, p in backbone.model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        backbone.loss(*batch).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
        optimizer.step()
    changed = {n for n, p in backbone.model.named_parameters() if not torch.equal(p, before[n])}
    own = {n for n, p in backbone.model.named_parameters() if any(p is q for q in parameters)}
    assert changed == own == trained
    assert len(own) == len(parameters)
    assert not any(p.requires_grad or p.grad is not None for p in backbone.model.parameters())
    assert not backbone.model.training


def test_the_backbone_is_as_it_came(backbone, adapters, base, batch):
    now = dict(backbone.model.named_parameters())
    for name, tensor in base.items():
        found = [
            p
            for n, p in now.items()
            if n.replace(".base_layer.", ".").replace(".original_module.", ".").endswith("base_model.model." + name)
        ]
        assert any(torch.equal(p, tensor) for p in found), name


def test_training_and_evaluation_alternate(backbone, adapters, batch, three):
    expected = slot_logits(adapters, three[1], batch)
    adapters.load_mixture(three, adapters.base_projector())
    with adapters.mixed(np.full((4, 3), 1 / 3)):
        logits(backbone, *batch)
    torch.testing.assert_close(slot_logits(adapters, three[1], batch), expected, **CLOSE)


# ---------------------------------------------------------------------- mixture


def test_a_batch_mixes_every_sample_by_its_own_weights(backbone, adapters, batch, three):
    examples, features = batch
    weights = np.array([[0.2, 0.3, 0.5], [1, 0, 0], [0, 0.9, 0.1], [0.4, 0.4, 0.2]], np.float32)
    adapters.load_mixture(three, adapters.base_projector())
    with adapters.mixed(weights):
        together = logits(backbone, examples, features)
    alone = []
    for n, example in enumerate(examples):
        with adapters.mixed(weights[n : n + 1]):
            alone.append(logits(backbone, [example], features[n : n + 1]))
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)
    with adapters.mixed(weights[::-1].copy()):
        assert (logits(backbone, examples, features) - together).abs().max() > 0.01


@pytest.mark.parametrize("which", [0, 1, 2])
def test_weight_one_is_that_subspace_alone(backbone, adapters, batch, three, which):
    expected = slot_logits(adapters, three[which], batch)
    adapters.load_mixture(three, adapters.base_projector())
    with adapters.mixed(np.eye(3)[[which] * 4]):
        torch.testing.assert_close(logits(backbone, *batch), expected, **CLOSE)


def test_mixture_is_the_weighted_sum_of_updates(backbone, adapters, batch, three):
    """Sum of w_i B_i A_i equals one subspace of which B was scaled, for a single module's worth of A."""
    same = [{n: (three[0][n] if ".lora_A." in n else t[n]) for n in t} for t in three]
    blended = {n: three[0][n] if ".lora_A." in n else 0.25 * same[0][n] + 0.75 * same[2][n] for n in three[0]}
    expected = slot_logits(adapters, blended, batch)
    adapters.load_mixture(same, adapters.base_projector())
    with adapters.mixed(np.array([[0.25, 0, 0.75]] * 4)):
        torch.testing.assert_close(logits(backbone, *batch), expected, **CLOSE)


def test_no_weight_is_the_base_model(backbone, adapters, batch, three):
    expected = untouched(backbone, *batch)
    adapters.load_mixture(three, adapters.base_projector())
    with adapters.mixed(np.zeros((4, 3))):
        torch.testing.assert_close(logits(backbone, *batch), expected, **CLOSE)
    adapters.load_mixture([], adapters.base_projector())
    with adapters.mixed(None):
        torch.testing.assert_close(logits(backbone, *batch), expected, **CLOSE)


def test_the_mixture_grows_and_shrinks(backbone, adapters, batch, three):
    for count in (1, 3, 2):
        adapters.load_mixture(three[:count], adapters.base_projector())
        with adapters.mixed(np.eye(count)[[0] * 4]):
            torch.testing.assert_close(logits(backbone, *batch), slot_logits_kept(adapters, three[0], batch), **CLOSE)


def slot_logits_kept(adapters: Adapters, tensors: Tensors, batch) -> torch.Tensor:
    """As :func:`slot_logits`, and back to the mixture."""
    weights = adapters.backbone.answering.rows.pop(MIX)
    found = slot_logits(adapters, tensors, batch)
    adapters.backbone.answering.rows[MIX] = weights
    adapters.backbone.model.set_adapter("mix", inference_mode=True)
    return found


def test_weights_are_forgotten_after_an_error(adapters):
    with pytest.raises(KeyError), adapters.mixed(np.ones((1, 1))):
        raise KeyError
    assert adapters.backbone.answering.rows == {}


def test_generation_follows_the_sample_not_the_batch(backbone, adapters, batch, three):
    questions = ["How many?", "What is it? Say it.", "Name."]
    examples = [backbone.encode(q, None, e.images[0]) for q, e in zip(questions, batch[0][:3], strict=True)]
    weights = np.eye(3, dtype=np.float32)
    adapters.load_mixture(three, adapters.base_projector())
    with adapters.mixed(weights):
        together = backbone.generate(examples, batch[1][:3], 6)
    alone = []
    for n, example in enumerate(examples):
        with adapters.mixed(weights[n : n + 1]):
            alone += backbone.generate([example], batch[1][n : n + 1], 6)
    assert together == alone


# ---------------------------------------------------------------------- saved adapters


@pytest.mark.parametrize("projector", [True, False], ids=["with projector", "alone"])
def test_saved_adapter_loads_into_plain_peft(backbone, adapters, batch, three, tmp_path, projector):
    tensors = dict(three[1])
    if projector:
        tensors |= {n: t + np.float32(0.01) for n, t in adapters.base_projector().items()}
    expected = slot_logits(adapters, tensors, batch)
    save_peft(tmp_path, tensors, Adapter(), Config())
    other = Backbone(Config())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        other.project(lambda model: PeftModel.from_pretrained(model, str(tmp_path)).eval())
    loaded = get_peft_model_state_dict(other.model, save_embedding_layers=False)
    assert set(loaded) == set(tensors)
    assert all(np.array_equal(loaded[n].numpy(), t) for n, t in tensors.items())
    torch.testing.assert_close(logits(other, *batch), expected, **CLOSE)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 16


def test_a_frozen_projector_is_no_part_of_the_slot():
    frozen = Adapters(Backbone(Config()), Adapter(projector="frozen"))
    assert not any(is_projector(n) for n in frozen.trainable)
    assert frozen.base_projector() == {}
