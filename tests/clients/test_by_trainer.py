"""A Hugging Face Trainer as a client's local training: the steps of the loop, or a sentence."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clients.worker.by_trainer import train_by
from clients.worker.micro_batches import MicroBatches
from clients.worker.training import train
from fcit import config as configuration
from fcit import registry
from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.errors import ConfigError, FCITError
from fcit.federation.messages import TrainOrder
from fcit.methods.base import Session
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import is_projector
from tests.helpers.runs import BACKBONE, ROOT

EXAMPLE = f"{ROOT / 'examples' / 'hf_trainer.py'}:make"
ORDER = TrainOrder(config="", stage=0, round=0, client=0, shard="s", tasks=[0], subspace="0", tensors={})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Backbone, adapters, where they start, records with and without images, and the images' folder."""
    root = tmp_path_factory.mktemp("images")
    backbone = Backbone(Config(**BACKBONE, feature_cache="off"))
    adapters = Adapters(backbone, Adapter(dropout=0.0))
    rng = np.random.default_rng(0)
    examples = []
    for n in range(7):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(root / f"{n}.png")
        image = f"{n}.png" if n != 3 else None
        examples.append(backbone.encode("What is this? " * (n % 3 + 1), "red cup " * (n + 1), image))
    noise = {n: rng.normal(0, 0.05, p.shape).astype(np.float32) for n, p in adapters.trainable.items()}
    start = {n: t for n, t in noise.items() if not is_projector(n)} | adapters.base_projector()
    return backbone, adapters, start, examples, root


def trained(world, trainer: str | None, frozen=(), **settings):
    """The outcome of a local training and the tensors after it, less where they started."""
    backbone, adapters, start, examples, root = world
    raw = {"method": "finetune", "training": {"lr": 0.001, "batch_size": 3, "epochs": 2, **settings}}
    config = configuration.parse(raw)
    parts = [registry.resolve(kind, name)(config) for kind, name in (("method", "finetune"), ("fedopt", "fedavg"))]
    adapters.load(start)
    common = {"client": 0, "shard": "s", "stage": 0, "round": 0, "subspace": "0", "image_root": root}
    sessions = tuple(Session(backbone=backbone, adapters=adapters, examples=examples, **common) for _ in parts)
    order = replace(ORDER, frozen=list(frozen))
    if trainer is None:
        outcome = train(config, *parts, order, sessions, MicroBatches(None))
    else:
        outcome = train_by(trainer, config, *parts, order, sessions)
    after = adapters.read()
    return outcome, {name: after[name] - start[name] for name in after}


@pytest.mark.parametrize("settings", [{}, {"schedule": "trainer", "max_grad_norm": None, "weight_decay": 0.1}])
def test_the_plain_trainer_makes_the_steps_of_the_loop(world, settings):
    ours, by_loop = trained(world, None, **settings)
    theirs, by_trainer = trained(world, "hf", **settings)
    assert (theirs.steps, theirs.examples) == (ours.steps, ours.examples) == (5, 7)
    assert theirs.loss == pytest.approx(ours.loss, rel=1e-4)
    for name, moved in by_loop.items():
        assert np.abs(moved).max() > 1e-4, name
        # AdamW's step is its rate where a gradient is nearly 0, whichever sign rounding gives it.
        assert np.mean(np.abs(by_trainer[name] - moved) > 1e-4) < 0.01, name


def test_what_is_frozen_stays_and_a_training_can_be_repeated(world):
    frozen = [name for name in world[2] if ".lora_A." in name]
    _, first = trained(world, "hf", frozen)
    _, again = trained(world, "hf", frozen)
    assert all(not first[name].any() for name in frozen)
    assert all((first[name] == again[name]).all() for name in first)
    assert not any(parameter.requires_grad for parameter in world[1].trainable.values())


def test_the_example_trains(world):
    outcome, moved = trained(world, EXAMPLE)
    assert np.isfinite(outcome.loss)
    assert all(difference.any() for difference in moved.values())


def test_a_trainer_that_does_something_else_is_refused(world, monkeypatch):
    done = SimpleNamespace(global_step=4, training_loss=1.0)
    monkeypatch.setitem(registry.TRAINERS, "short", "tests.clients.test_by_trainer:short")
    monkeypatch.setattr("tests.clients.test_by_trainer.short", lambda task: SimpleNamespace(train=lambda: done))
    with pytest.raises(FCITError, match="made 4 steps and 5 were ordered; give its arguments max_steps"):
        trained(world, "short")
    done.global_step, done.training_loss = 5, float("nan")
    with pytest.raises(FCITError, match="the training loss is nan"):
        trained(world, "short")
    monkeypatch.setattr("tests.clients.test_by_trainer.short", lambda task: None)
    with pytest.raises(FCITError, match=r"returned NoneType, which has no train\(\)"):
        trained(world, "short")


def short(task):
    """Replaced by the test above."""


def test_other_families_have_other_inputs(world, monkeypatch):
    monkeypatch.setattr(world[0].family.base.config, "model_type", "qwen2_5_vl")
    with pytest.raises(FCITError, match="trains models of the family llava, and this is 'qwen2_5_vl'"):
        trained(world, "hf")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "ewc"}, r"and method: 'ewc' has penalty\(\).* within them; choose another method"),
        ({"fedopt": "scaffold"}, r"and fedopt: 'scaffold' has on_step\(\) within.* choose another fedopt"),
        ({"training": {"trainer": "hf", "micro_batch": 4}}, "training.micro_batch: 4 is of fcit's own loop"),
        ({"training": {"trainer": "hff"}}, "training.trainer: unknown name 'hff'; did you mean 'hf'"),
        ({"privacy": {"record_dp": "on", "record_epsilon": 3.0}}, "gives no gradients of single records"),
    ],
)
def test_what_a_trainer_cannot_do_is_refused_with_the_configuration(settings, said):
    with pytest.raises(ConfigError, match=said):
        configuration.parse({"method": "finetune", "training": {"trainer": "hf"}, **settings})


@pytest.mark.parametrize("method", ["finetune", "disco", "hide", "opcm"])
def test_methods_without_hooks_within_the_steps_go_along(method):
    assert configuration.parse({"method": method, "training": {"trainer": "hf"}}).training.trainer == "hf"
