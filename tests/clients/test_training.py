"""Micro-batches and checkpointing save memory; they change no result beyond rounding."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from clients.worker.micro_batches import backward
from fcit import config as configuration
from fcit import registry
from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.methods.base import Session, objective
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import is_factor, is_projector
from fcit.models.ranks import cut, padded, rank_of
from tests.helpers.llava import small_llava
from tests.helpers.runs import BACKBONE

RECORDS = 7
#: float32 sums in another order: of the largest gradient, and absolutely.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}
METHODS = ["finetune", "disco", "ewc", "lwf", "olora", "moelora", "mlora", "smolora", "proglora"]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(Config(**BACKBONE, feature_cache="off"))


@pytest.fixture(scope="module")
def shard(backbone, tmp_path_factory):
    """Records whose questions and answers differ in length, and their features."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    examples = []
    for n in range(RECORDS):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(root / f"{n}.png")
        examples.append(backbone.encode("What is this? " * (n % 3 + 1), "red cup " * (n + 1), f"{n}.png"))
    return examples, backbone.vision_features(root, [e.images[0] for e in examples])


def adapters_of(method, projector: str = "shared", dropout: float = 0.0) -> Adapters:
    backbone = Backbone(Config(**BACKBONE, feature_cache="off"))
    adapters = Adapters(backbone, Adapter(projector=projector, dropout=dropout), method.layout)
    rng = np.random.default_rng(1)
    noise = {n: rng.normal(0, 0.05, p.shape).astype(np.float32) for n, p in adapters.trainable.items()}
    adapters.load({n: t for n, t in noise.items() if not is_projector(n)} | adapters.base_projector())
    return adapters


def constants_of(name: str, adapters: Adapters) -> dict[str, dict[str, np.ndarray]]:
    """A second stage: an anchor with its Fisher information, a teacher, a frozen subspace."""
    rng = np.random.default_rng(2)
    old = {n: rng.normal(0, 0.05, p.shape).astype(np.float32) for n, p in adapters.trainable.items()}
    fisher = {f"fisher/{n}": np.abs(t) for n, t in old.items()}
    lora = {n: t for n, t in old.items() if not is_projector(n)}
    return {
        "ewc": {"ewc-0": {f"anchor/{n}": t for n, t in old.items()} | fisher},
        "lwf": {"teacher-0": old},
        "sacuir": {"teacher-0": old},
        **{kind: {"frozen-0": lora} for kind in ("olora", "proglora", "sefe")},
    }.get(name, {})


class Case:
    """A method amid a training on the real model."""

    def __init__(self, name: str, shard, **adapter) -> None:
        self.method = registry.resolve("method", name)(configuration.parse({"method": name}))
        self.adapters = adapters_of(self.method, **adapter)
        self.examples, self.features = shard
        self.session = Session(
            backbone=self.adapters.backbone,
            adapters=self.adapters,
            client=0,
            shard="s",
            stage=1,
            round=0,
            subspace="1",
            constants=constants_of(name, self.adapters),
            examples=self.examples,
            identity=np.eye(RECORDS, self.adapters.backbone.identity.width(), dtype=np.float32),
            received={"suffixes": np.eye(2, self.adapters.backbone.identity.width(), dtype=np.float32)},
        )
        self.seen: list[int] = []

    def loss_of(self, chosen: list[int]):
        assert self.session.batch == chosen
        self.seen.append(len(chosen))
        return objective(self.method, self.session, [self.examples[i] for i in chosen], self.features[chosen])

    def gradients(self, micro: int | None) -> tuple[float, dict[str, torch.Tensor]]:
        self.seen = []
        with self.adapters.training():
            self.method.prepare(self.session)
            loss = backward((self.session, self.session), list(range(RECORDS)), self.loss_of, micro)
            return loss, {n: p.grad.clone() for n, p in self.adapters.trainable.items() if p.grad is not None}


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_give_the_batchs_loss_and_gradients(name, shard):
    case = Case(name, shard)
    loss, whole = case.gradients(None)
    assert case.seen == [RECORDS]
    assert whole
    assert all(g.abs().max() > 0 for g in whole.values())
    for micro, sizes in ((1, [1] * 7), (3, [3, 3, 1]), (5, [5, 2])):
        other, parts = case.gradients(micro)
        assert case.seen == sizes
        assert case.session.batch == list(range(RECORDS))
        assert other == pytest.approx(loss, rel=1e-5)
        for tensor, gradient in whole.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(parts[tensor] / scale, gradient / scale, **TOLERANCE, msg=f"{tensor} {micro}")


@pytest.mark.parametrize("name", ["finetune", "lwf", "olora", "proglora", "sacuir", "sefe"])
def test_a_smaller_rank_has_the_gradients_of_factors_filled_with_zeros(name, shard):
    """Of a second stage, with a teacher or frozen subspaces of the whole rank."""
    case = Case(name, shard)
    slot = case.adapters.read()
    small = {n: cut(n, t, 3) for n, t in slot.items()}
    found = []
    for tensors in ({n: padded(n, t, rank_of(slot)) if is_factor(n) else t for n, t in small.items()}, small):
        case.adapters.load(tensors)
        found.append(case.gradients(None))
    (wanted, whole), (loss, gradients) = found
    assert loss == pytest.approx(wanted, rel=1e-5)
    for tensor, gradient in whole.items():
        leading = torch.from_numpy(cut(tensor, gradient.numpy(), 3))
        scale = leading.abs().max().item() or 1.0
        torch.testing.assert_close(gradients[tensor] / scale, leading / scale, **TOLERANCE, msg=tensor)


def test_a_regulariser_counts_once(shard):
    """Seven parts that each added the whole penalty would be seven penalties."""
    case = Case("ewc", shard)
    loss, _ = case.gradients(1)
    case.method.options = case.method.options.model_copy(update={"strength": 0.0})
    bare, _ = case.gradients(1)
    case.method.options = case.method.options.model_copy(update={"strength": 800.0})
    twice, _ = case.gradients(1)
    assert loss - bare > 0.1
    assert twice - bare == pytest.approx(2 * (loss - bare), rel=1e-3)
    values = dict(case.adapters.trainable)
    held = case.session.constants["ewc-0"]
    penalty = sum(
        (held[f"fisher/{n}"] * np.square(p.detach().numpy() - held[f"anchor/{n}"])).sum() for n, p in values.items()
    )
    assert loss - bare == pytest.approx(400 / 2 * penalty, rel=1e-3)


@pytest.mark.parametrize("micro", [None, RECORDS, RECORDS + 5])
def test_a_batch_that_fits_is_done_as_ever(micro, shard):
    case = Case("finetune", shard)
    with case.adapters.training():
        loss = case.method.loss(case.session, case.examples, case.features)
        loss.backward()
        expected = {n: p.grad.clone() for n, p in case.adapters.trainable.items()}
    other, gradients = case.gradients(micro)
    assert case.seen == [RECORDS]
    assert other == float(loss.detach())
    assert all(torch.equal(gradients[n], g) for n, g in expected.items())


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("finetune", {}),
        ("finetune", {"projector": "frozen"}),
        ("finetune", {"dropout": 0.5}),
        ("lwf", {}),
        ("olora", {}),
        ("moelora", {}),
        ("smolora", {"dropout": 0.5}),
        ("proglora", {"dropout": 0.5}),
    ],
)
def test_checkpointing_gives_the_same_gradients(name, adapter, shard):
    case = Case(name, shard, **adapter)
    layer = next(m for n, m in case.adapters.backbone.model.named_modules() if n.endswith("lora_B.slot"))
    passes = []
    layer.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))

    def seeded() -> tuple[float, dict[str, torch.Tensor], int]:
        passes.clear()
        torch.manual_seed(5)
        loss, gradients = case.gradients(None)
        return loss, gradients, len(passes)

    loss, plain, once = seeded()
    with warnings.catch_warnings(), case.adapters.backbone.checkpointing():
        warnings.simplefilter("error")
        again, checked, twice = seeded()
    assert twice > once  # layers were really computed again
    assert again == loss
    assert set(checked) == set(plain)
    for tensor, gradient in plain.items():
        torch.testing.assert_close(checked[tensor], gradient, rtol=1e-6, atol=1e-9)
    assert seeded()[2] == once  # and are not any more


def test_checkpointing_and_micro_batches_go_together(shard):
    case = Case("ewc", shard)
    loss, plain = case.gradients(None)
    with case.adapters.backbone.checkpointing():
        other, parts = case.gradients(2)
    assert other == pytest.approx(loss, rel=1e-5)
    for tensor, gradient in plain.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(parts[tensor] / scale, gradient / scale, **TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_on_a_llava_with_random_weights(tmp_path, checkpointing):
    model, identity = small_llava(tmp_path)
    settings = Config(model=model, identity=identity, conversation="vicuna_v1", feature_cache="off", threads=1)
    backbone = Backbone(settings)
    adapters = Adapters(backbone, Adapter(dropout=0.0))
    rng = np.random.default_rng(1)
    lora = {n: rng.normal(0, 0.05, p.shape).astype(np.float32) for n, p in adapters.trainable.items() if ".lora_" in n}
    adapters.load(lora)
    examples = [backbone.encode("What is this? " * (n % 3 + 1), "red cup " * (n + 1), "") for n in range(RECORDS)]
    features = torch.from_numpy(rng.normal(size=(RECORDS, *backbone.family.shape)).astype(np.float32))
    session = Session(
        backbone=backbone, adapters=adapters, client=0, shard="s", stage=0, round=0, subspace="0", examples=examples
    )

    def gradients(micro: int | None) -> tuple[float, dict[str, torch.Tensor]]:
        with adapters.training(), backbone.checkpointing() if checkpointing else nullcontext():
            loss = backward(
                (session, session),
                list(range(RECORDS)),
                lambda rows: backbone.loss([examples[i] for i in rows], features[rows]),
                micro,
            )
            return loss, {n: p.grad.clone() for n, p in adapters.trainable.items()}

    loss, whole = gradients(None)
    assert any(is_projector(n) and g.abs().max() > 0 for n, g in whole.items())
    for micro in (1, 3):
        other, parts = gradients(micro)
        assert other == pytest.approx(loss, rel=1e-5)
        for tensor, gradient in whole.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(parts[tensor] / scale, gradient / scale, **TOLERANCE, msg=f"{tensor} {micro}")
