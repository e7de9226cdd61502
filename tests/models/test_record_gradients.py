"""Gradients by record: those of one record at a time, for every kind of trained tensor; their clipped sum."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fcit import config as configuration
from fcit import registry
from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.data.collate import images_of
from fcit.data.records import Record, Turn
from fcit.methods.base import Session
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import KEYS, PROMPTS, is_projector
from fcit.models.ranks import cut
from fcit.models.record_gradients import ClippedSum, RecordGradients
from tests.helpers.runs import BACKBONE

#: float32 sums in another order: of the largest gradient of a tensor.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for n in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    return folder


def records(backbone):
    """One image, two images and a conversation, none, one image with a long answer."""
    made = [
        Record(("0.png",), (Turn("What is this?", "red cup", 1),)),
        Record(("1.png", "2.png"), (Turn("Same?", "no", 2), Turn("Why? " * 5, "one is blue", 0))),
        Record((), (Turn("Say a colour.", "green", 0),)),
        Record(("3.png",), (Turn("What is this? " * 3, "red cup " * 6, 1),)),
    ]
    return [backbone.encoder.encode(record) for record in made]


class Trained:
    """A method on the real model, amid a training."""

    def __init__(self, name: str, root, projector: str = "shared", frozen: tuple[str, ...] = (), rank: int = 8) -> None:
        self.method = registry.resolve("method", name)(configuration.parse({"method": name}))
        self.backbone = Backbone(Config(**BACKBONE, feature_cache="off"))
        self.adapters = Adapters(self.backbone, Adapter(projector=projector, dropout=0.0), self.method.layout)
        self.examples, self.root = records(self.backbone), root
        rng = np.random.default_rng(1)
        noise = {n: rng.normal(0, 0.05, p.shape).astype(np.float32) for n, p in self.adapters.trainable.items()}
        own = {n: t for n, t in noise.items() if not is_projector(n)}
        self.adapters.load({n: cut(n, t, rank) for n, t in own.items()} | self.adapters.base_projector())
        self.frozen = [n for n in noise if any(part in n for part in frozen)]
        constants = {"teacher-0": noise} if name == "lwf" else {}
        self.session = Session(
            backbone=self.backbone,
            adapters=self.adapters,
            client=0,
            shard="s",
            stage=1,
            round=0,
            subspace="0",
            constants=constants,
            examples=self.examples,
            identity=rng.normal(size=(4, self.adapters.trainable[KEYS].shape[1])).astype(np.float32)
            if KEYS in self.adapters.trainable
            else None,
        )

    def loss_of(self, chosen: list[int]):
        self.session.batch = chosen
        batch = [self.examples[i] for i in chosen]
        return self.method.loss(self.session, batch, self.backbone.vision_features(self.root, images_of(batch)))

    def alone(self, record: int, parameters) -> tuple[float, list[torch.Tensor]]:
        """The reference: torch's own backward pass of one record."""
        loss = self.loss_of([record])
        loss.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        return float(loss.detach()), gradients


def compared(case: Trained, together: bool, parts: list[list[int]]) -> RecordGradients:
    with case.adapters.training(case.frozen) as parameters:
        case.method.prepare(case.session)
        gradients = RecordGradients(case.backbone, parameters, together)
        for part in parts:
            learnt = [case.examples[i].learnt for i in part]
            loss, each = gradients.of(case.loss_of, part, learnt)
            losses, references = zip(*(case.alone(i, parameters) for i in part), strict=True)
            assert loss == pytest.approx(np.average(losses, weights=learnt), rel=1e-5)
            assert all(p.grad is None for p in parameters)
            for column, stacked in enumerate(each):
                for row in range(len(part)):
                    reference = references[row][column]
                    scale = reference.abs().max().clamp(min=1e-12)
                    assert stacked[row].shape == reference.shape
                    torch.testing.assert_close(stacked[row] / scale, reference / scale, rtol=0, atol=TOLERANCE)
    return gradients


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("finetune", {}),
        ("finetune", {"projector": "frozen"}),
        ("finetune", {"projector": "per_subspace", "frozen": ("lora_A",)}),
        ("lwf", {}),
        ("lwf", {"rank": 3}),  # of a client with a smaller rank, beside a teacher of the whole one
    ],
)
def test_linear_layers_give_all_records_gradients_in_one_pass(name, settings, root):
    gradients = compared(Trained(name, root, **settings), True, [[0, 1, 2, 3], [2, 0], [2], [2, 2]])
    assert gradients.together


@pytest.mark.parametrize("name", ["moelora", "l2p"])
def test_gates_and_prompts_are_trained_one_record_at_a_time(name, root):
    case = Trained(name, root)
    gradients = compared(case, True, [[0], [1], [2]])
    assert not gradients.together
    assert any("lora_gate" in n or n == PROMPTS for n in case.adapters.trainable)


def test_with_checkpointing_one_record_at_a_time(root):
    case = Trained("finetune", root)
    with case.backbone.checkpointing():
        assert not compared(case, False, [[1]]).together


def test_hooks_are_gone_afterwards(root):
    case = Trained("finetune", root)
    layers = [m for m in case.backbone.model.modules() if type(m) is nn.Linear]
    before = [len(m._forward_hooks) for m in layers]
    compared(case, True, [[0, 1]])
    assert [len(m._forward_hooks) for m in layers] == before


# ------------------------------------------------------------------ the clipped sum


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1, 2))]


def test_one_norm_over_all_tensors():
    """Norms 5 sqrt 2 and 1/2; C = 1: the first is shortened, the second stays."""
    summed = ClippedSum(parameters(), 1.0)
    summed.add([torch.tensor([[3.0, 4.0], [0.5, 0.0]]), torch.tensor([[[0.0, 5.0]], [[0.0, 0.0]]])])
    assert summed.sums[0].tolist() == pytest.approx([3 / 50**0.5 + 0.5, 4 / 50**0.5])
    assert summed.sums[1].tolist() == [pytest.approx([0.0, 5 / 50**0.5])]
    assert summed.sums[0].dtype == torch.float64


def test_a_parameter_without_dimensions_is_clipped_with_the_others():
    """Norms 5 and 0.3 of two records; C = 1."""
    summed = ClippedSum([nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(1))], 1.0)
    summed.add([torch.tensor([3.0, 0.3]), torch.tensor([[4.0], [0.0]])])
    assert summed.sums[0].item() == pytest.approx(0.6 + 0.3)
    assert summed.sums[1].tolist() == [pytest.approx(0.8)]


def test_one_record_more_moves_the_sum_by_at_most_the_norm():
    rng = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1.0, 1e6):
        each = [scale * torch.randn(9, *p.shape, generator=rng) for p in parameters()]
        whole, without = ClippedSum(parameters(), 0.7), ClippedSum(parameters(), 0.7)
        whole.add(each)
        without.add([g[1:] for g in each])
        moved = torch.cat([(a - b).flatten() for a, b in zip(whole.sums, without.sums, strict=True)]).norm()
        assert moved <= 0.7 * (1 + 1e-12)


def test_parts_add_up_and_no_gradient_is_no_fault():
    summed = ClippedSum(parameters(), 1.0)
    for _ in range(2):
        summed.add([torch.zeros(1, 2), torch.tensor([[[0.25, 0.0]]])])
    assert summed.sums[1].tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_counts_as_none(bad):
    summed = ClippedSum(parameters(), 1.0)
    summed.add([torch.tensor([[bad, 0.0], [0.5, 0.0]]), torch.zeros(2, 1, 2)])
    assert summed.sums[0].tolist() == [0.5, 0.0]
