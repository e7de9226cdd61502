"""The optimiser's steps of a local epoch: their rates, their clipping, and the optimiser they belong to."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from clients.worker.micro_batches import MicroBatches, parts
from clients.worker.training import _following, learning_rates, train
from fcit import config as configuration
from fcit import registry
from fcit.config import Training
from fcit.contracts.toy import Toy
from fcit.data.collate import Encoded
from fcit.federation.messages import TrainOrder
from fcit.methods.base import Session
from fcit.models.features import Pictures

#: The official trainer's, to three decimals.
TRAINER = {1: [0], 2: [0, 1], 6: [0, 1, 0.905, 0.655, 0.345, 0.095]}


class Client(Toy):
    """Backbone and adapters in one: two numbers whose loss is |theta|^2, so that the gradient is 2 theta."""

    device, dtype = torch.device("cpu"), torch.float32

    def images(self, root, names):
        return Pictures(lambda rows: torch.zeros(len(rows), 1, 1), len(names))

    @contextmanager
    def training(self, frozen):
        yield list(self.trainable.values())


def trained(records: int, values=(3.0, 4.0), fedopt: str = "fedavg", batch: int = 1, **training):
    """A local epoch from ``values``: the outcome, where they ended, and the rates of the steps."""
    raw = {"method": "finetune", "fedopt": fedopt, "training": {"lr": 0.1, "batch_size": batch, **training}}
    config = configuration.parse(raw)
    method = registry.resolve("method", "finetune")(config)
    other = registry.resolve("fedopt", fedopt)(config)
    toy = Client({"a": torch.nn.Parameter(torch.tensor(values))})
    examples = [Encoded((1,), (2,), "") for _ in range(records)]
    sent = {"a": np.zeros(2, np.float32)}
    sessions = tuple(
        Session(
            backbone=toy,
            adapters=toy,
            client=0,
            shard="s",
            stage=0,
            round=0,
            subspace="0",
            received=received,
            examples=examples,
        )
        for received in ({}, sent)
    )
    rates = []
    other.on_gradients = lambda view: rates.append(view.lr)
    outcome = train(
        config,
        method,
        other,
        TrainOrder(config="", stage=0, round=0, client=0, shard="s", tasks=[0], subspace="0", tensors={}),
        sessions,
        MicroBatches(None),
    )
    return outcome, toy.read()["a"], rates


@pytest.mark.parametrize("steps", TRAINER)
def test_the_trainers_rates(steps):
    published = Training(lr=1.0, warmup_ratio=0.03, schedule="trainer")
    assert [round(rate, 3) for rate in learning_rates(published, steps)] == TRAINER[steps]
    assert list(learning_rates(Training(lr=2e-4, schedule="trainer"), 2)) == [0, 2e-4]


def test_the_trainers_warm_up_of_several_steps():
    """40 steps, 3 %: two of warm-up, rounded up."""
    rates = list(learning_rates(Training(lr=1.0, schedule="trainer"), 40))
    assert rates[:3] == [0, 0.5, 1]
    assert rates[-1] > 0
    assert sorted(rates[2:], reverse=True) == rates[2:]
    assert list(learning_rates(Training(lr=1.0, schedule="trainer", warmup_ratio=0), 1)) == [1]


def test_our_own_rates_are_as_ever():
    assert [round(r, 3) for r in learning_rates(Training(lr=1.0), 6)] == [1, 1, 0.905, 0.655, 0.345, 0.095]
    assert list(learning_rates(Training(lr=1.0), 1)) == [1]
    assert list(learning_rates(Training(lr=1.0, schedule="constant"), 3)) == [1, 1, 1]


def test_an_epoch_of_one_step_learns_nothing_with_the_trainers_rates():
    outcome, after, rates = trained(5, batch=8, schedule="trainer")
    assert after.tolist() == [3, 4]
    assert rates == [0]
    assert (outcome.steps, outcome.loss) == (1, 25)
    assert trained(5, batch=8)[1] == pytest.approx([2.9, 3.9])  # ours moves: AdamW's first step is the rate


@pytest.mark.parametrize("fedopt", ["fedavg", "fedprox", "scaffold"])
def test_every_optimiser_survives_a_rate_of_zero(fedopt):
    outcome, after, _ = trained(5, fedopt=fedopt, batch=8, schedule="trainer")
    assert after.tolist() == [3, 4]
    assert all(np.isfinite(t).all() for t in outcome.fedopt.values())
    outcome, after, _ = trained(2, fedopt=fedopt, schedule="trainer")
    assert after == pytest.approx([2.9, 3.9], abs=1e-5)
    assert all(np.isfinite(t).all() for t in outcome.fedopt.values())


@pytest.mark.parametrize(("longest", "length"), [(1.0, 1.0), (20.0, 10.0), (None, 10.0)])
def test_gradients_are_clipped_where_a_length_is_given(longest, length, monkeypatch):
    """2 theta = (6, 8) is ten long."""
    seen = []
    step = torch.optim.AdamW.step

    def watched(self, *args):
        seen.append(float(self.param_groups[0]["params"][0].grad.norm()))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    trained(1, max_grad_norm=longest)
    assert seen == [pytest.approx(length, rel=1e-5)]


def test_the_optimiser_is_the_trainers_adamw(monkeypatch):
    """One group, so that nothing decays apart; betas and eps are the trainer's defaults."""
    made, adamw = [], torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **k: made.append(adamw(*a, **k)) or made[-1])
    trained(3)
    trained(3)
    first, second = made
    assert first is not second  # afresh in every local epoch run
    (group,) = first.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"], group["amsgrad"]) == ((0.9, 0.999), 1e-8, 0, False)


def test_the_last_batch_may_be_smaller_and_every_record_is_seen_once():
    outcome, _, rates = trained(5, batch=2)
    assert (outcome.steps, outcome.examples, len(rates)) == (3, 5, 3)


def test_what_comes_next_is_known_across_batches():
    examples = [Encoded((1,) * (n + 1), ((n, n + 1),)) for n in range(8)]  # the longer the higher their number
    batches = [[3, 0, 2, 1], [4, 5, 6], [7]]
    seen = []
    for number in range(3):
        left = batches[number:]
        for part in parts(examples, batches[number], 2):
            seen.append((part, _following(examples, left, part, 2)))
    assert seen == [
        ([3, 2], [1, 0]),
        ([1, 0], [6, 5]),
        ([6, 5], [4]),
        ([4], [7]),
        ([7], []),
    ]
    assert _following(examples, batches, batches[0], None) == batches[1]
    assert _following(examples, batches, [1, 2], 2) == []  # of a size that is not used any more
