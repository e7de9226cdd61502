"""How a training step is computed changes its gradients by rounding only, and ends with the training."""

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from fcit import config as configuration
from fcit import registry, seeding
from fcit.config import Adapter, Training
from fcit.config import Backbone as Config
from fcit.methods.base import Session
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import is_projector
from fcit.models.steps import computed

METHODS = ["finetune", "moelora", "olora", "lwf", "l2p"]


class Case:
    """A method's loss of four records on the built-in model."""

    def __init__(self, name: str, dtype: str, dropout: float = 0.0) -> None:
        self.method = registry.resolve("method", name)(configuration.parse({"method": name}))
        self.backbone = Backbone(Config(feature_cache="off", threads=1, dtype=dtype))
        self.adapters = Adapters(self.backbone, Adapter(dropout=dropout), self.method.layout)
        rng = np.random.default_rng(0)
        shapes = {n: tuple(p.shape) for n, p in self.adapters.trainable.items() if not is_projector(n)}
        old, new = ({n: rng.normal(0, 0.05, s).astype(np.float32) for n, s in shapes.items()} for _ in range(2))
        self.adapters.load(new)
        words = [("What is this? " * n, "red cup " * n) for n in (1, 2, 3, 4)]
        examples = [self.backbone.encode(question, answer, "") for question, answer in words]
        shape = (len(examples), *self.backbone.family.shape)
        self.features = torch.from_numpy(rng.normal(size=shape).astype(np.float32)).to(self.backbone.dtype)
        constants = {"lwf": {"teacher-0": old}, "olora": {"frozen-0": old}}.get(name, {})
        self.session = Session(
            backbone=self.backbone,
            adapters=self.adapters,
            client=0,
            shard="s",
            stage=1,
            round=0,
            subspace="1",
            constants=constants,
            examples=examples,
            identity=rng.normal(size=(len(examples), self.backbone.identity.width())).astype(np.float32),
            batch=list(range(len(examples))),
        )

    def gradients(self, **training) -> tuple[float, dict[str, torch.Tensor]]:
        with (
            seeding.torch_seeded(0, "test"),
            computed(self.backbone, Training(**training)),
            self.adapters.training(),
        ):
            self.method.prepare(self.session)
            loss = self.method.loss(self.session, self.session.examples, self.features)
            loss.backward()
            named = {n: p.grad.clone() for n, p in self.adapters.trainable.items() if p.grad is not None}
            return float(loss.detach()), named


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Relative, over all tensors together."""
    assert one.keys() == other.keys()
    gap = sum(float((one[n] - other[n]).square().sum()) for n in one)
    return (gap / sum(float(g.square().sum()) for g in one.values())) ** 0.5


@pytest.mark.parametrize("name", METHODS)
def test_products_in_sixteen_bits_give_nearly_the_same_gradients(name):
    case = Case(name, "bfloat16")
    loss, single = case.gradients(adapter_products="float32")
    other, half = case.gradients(adapter_products="backbone")
    assert other == pytest.approx(loss, rel=0.01)
    assert 0 < distance(single, half) < 0.05
    assert {g.dtype for g in half.values()} == {torch.float32}


def test_factors_are_multiplied_in_the_format_that_is_configured():
    case = Case("finetune", "bfloat16")
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    layer = next(m for n, m in case.backbone.model.named_modules() if n.endswith("lora_A.slot"))
    layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    case.gradients(adapter_products="backbone")
    case.gradients(adapter_products="float32")
    half, single = torch.bfloat16, torch.float32
    assert seen == [(half, half), (single, single)]


def test_checkpointing_computes_again_in_the_same_format():
    case = Case("finetune", "bfloat16", dropout=0.5)
    loss, plain = case.gradients()
    again, checked = case.gradients(checkpointing=True)
    assert again == loss
    assert distance(plain, checked) < 1e-6


def test_a_training_leaves_the_model_as_it_was():
    case = Case("finetune", "bfloat16")
    case.gradients()
    layers = [m for m in case.backbone.model.modules() if isinstance(m, BaseTunerLayer)]
    assert all(layer.cast_input_dtype_enabled for layer in layers)
    assert case.backbone.products is None


def test_in_float32_there_is_nothing_to_cast():
    case = Case("finetune", "float32")
    loss, single = case.gradients(adapter_products="float32")
    seen: list[bool] = []
    case.backbone.model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    other, same = case.gradients()
    assert seen == [False]
    assert other == loss
    assert all(torch.equal(same[n], g) for n, g in single.items())
