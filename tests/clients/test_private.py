"""DP-SGD of a client: batches, noise and what is left out of both, on a model of one layer."""

import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from clients.worker.memory import ClientMemory
from clients.worker.private import Private
from fcit import config as configuration
from fcit.data.collate import Encoded
from fcit.errors import RunError
from fcit.federation.messages import TrainOrder
from fcit.privacy.noise import Noise
from fcit.privacy.record_accountant import Steps

WIDTH = 100
SECRET = bytes(32)


def order(value: float = 0.0, **changes) -> TrainOrder:
    plain = {"config": "", "stage": 0, "round": 0, "client": 1, "shard": "s", "tasks": [0], "subspace": "0"}
    return TrainOrder(**{**plain, **changes}, tensors={"w": np.full(2, value, np.float32)})


def private(records: int, secret: bytes = SECRET, given: TrainOrder | None = None, **privacy) -> Private:
    keys = {"record_dp": "on", "record_noise_multiplier": 2.0, "record_clip": 0.5, **privacy}
    config = configuration.parse({"method": "finetune", "training": {"batch_size": 4}, "privacy": keys})
    return Private(config, given or order(), secret, records)


class Toy:
    """A layer without bias, trained on records whose gradient is a vector of ones times their number."""

    def __init__(self, records: int) -> None:
        self.layer = nn.Linear(WIDTH, WIDTH, bias=False)
        self.examples = [Encoded((0, 1), ((1, 2),)) for _ in range(records)]
        self.session = SimpleNamespace(
            backbone=SimpleNamespace(model=self.layer, owners=None), examples=self.examples, batch=[]
        )
        self.seen: list[list[int]] = []

    def loss_of(self, chosen: list[int]):
        assert self.session.batch == chosen
        self.seen.append(chosen)
        states = torch.tensor(chosen, dtype=torch.float32)[:, None, None].expand(-1, 1, WIDTH)
        return self.layer(states).sum() / len(chosen)

    def step(self, steps: Private, batch: list[int], micro: int | None = None) -> tuple[float, np.ndarray]:
        self.seen = []
        loss = steps.backward(self.layer.parameters(), (self.session, self.session), batch, self.loss_of, micro)
        assert self.session.batch == batch
        gradient = self.layer.weight.grad
        assert gradient.dtype == torch.float32
        return loss, gradient.numpy().copy()


def test_steps_of_a_shard():
    assert private(10).steps == Steps(2.0, 0.4, 3)
    assert private(3).steps == Steps(2.0, 1.0, 1)
    assert private(3).batches() == [[0, 1, 2]]


def test_the_noisy_mean_of_clipped_gradients():
    """Record i's gradient has norm 100 i, so all but record 0 are clipped to 1/2; L = 4, z C = 1."""
    toy, steps = Toy(10), private(10)
    _, gradient = toy.step(steps, [0, 2, 5])
    noise = 4 * gradient - 2 * 0.5 / WIDTH  # two ones, each of norm 1/2 over 100 x 100 equal numbers
    assert noise.mean() == pytest.approx(0, abs=4 / WIDTH)
    assert noise.std() == pytest.approx(1.0, abs=0.03)


def test_an_empty_batch_is_noise_alone():
    toy = Toy(10)
    loss, gradient = toy.step(private(10), [])
    assert loss == 0.0
    assert toy.seen == []
    assert (4 * gradient).std() == pytest.approx(1.0, abs=0.03)


def test_the_divisor_is_the_expected_size_not_that_of_the_batch():
    gradients = [Toy(10).step(private(10, record_noise_multiplier=0.01), batch)[1] for batch in ([5], [5, 6, 7])]
    assert gradients[0].mean() == pytest.approx(0.5 / WIDTH / 4, rel=0.05)
    assert gradients[1].mean() == pytest.approx(3 * 0.5 / WIDTH / 4, rel=0.05)


@pytest.mark.parametrize(("micro", "sizes"), [(None, [3]), (2, [2, 1]), (1, [1, 1, 1])])
def test_micro_batches(micro, sizes):
    toy = Toy(10)
    loss, gradient = toy.step(private(10), [1, 2, 3], micro)
    assert [len(part) for part in toy.seen] == sizes
    weights = toy.layer.weight.detach().sum().item()
    assert loss == pytest.approx(2 * weights, rel=1e-3)
    assert gradient == pytest.approx(Toy(10).step(private(10), [1, 2, 3])[1], abs=2)


def test_the_same_order_has_the_same_batches_and_noise():
    one, other = (private(50) for _ in range(2))
    assert one.batches() == other.batches()
    assert one.seed == other.seed
    toy = Toy(50)
    assert np.array_equal(toy.step(one, [1, 2])[1], toy.step(other, [1, 2])[1])


@pytest.mark.parametrize(
    ("secret", "changes"), [(bytes([1]) * 32, {}), (SECRET, {"value": 1.0}), (SECRET, {"config": "seed: 1"})]
)
def test_another_order_or_secret_has_others(secret, changes):
    one, other = private(50), private(50, secret, order(**changes))
    assert one.batches() != other.batches()
    assert one.seed != other.seed
    assert not np.array_equal(Toy(50).step(one, [])[1], Toy(50).step(other, [])[1])


def test_public_noise_does_not_depend_on_where_a_run_is_done():
    one, other = (
        private(50, given=order(config=text, run=text), reproducible_noise=True)
        for text in ("engine: inline", "engine: ray")
    )
    assert one.batches() == other.batches()


def test_every_step_and_every_sum_has_noise_of_its_own():
    toy, steps = Toy(10), private(10)
    first, second = (toy.step(steps, [])[1] for _ in range(2))
    other = toy.step(private(10), [1])[1]
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.05


def test_a_penalty_is_neither_clipped_nor_noised():
    toy, steps = Toy(10), private(10)
    _, before = toy.step(steps, [])
    Private.add(1000.0 * toy.layer.weight.sum())
    assert toy.layer.weight.grad.numpy() - before == pytest.approx(1000.0, abs=1e-3)
    Private.add(0.0)  # a method without


def test_a_record_is_in_a_batch_by_its_own_chance():
    """400 steps of 50 records at 0.2: the share and its spread over records, and pairs as often as by chance."""
    noise, rate = Noise(SECRET), 0.2
    drawn = np.zeros((400, 50))
    for step, row in enumerate(drawn):
        row[noise.chosen(50, rate, "step", step)] = 1
    assert drawn.mean() == pytest.approx(rate, abs=0.01)  # 3.5 standard deviations
    assert drawn.mean(axis=0).std() == pytest.approx((rate * (1 - rate) / 400) ** 0.5, rel=0.35)
    assert drawn.sum(axis=1).var() == pytest.approx(50 * rate * (1 - rate), rel=0.25)  # binomial, not constant
    pairs = (drawn.T @ drawn)[np.triu_indices(50, 1)] / 400
    assert pairs.mean() == pytest.approx(rate**2, abs=0.004)
    assert noise.chosen(50, 1.0, "all") == list(range(50))
    assert noise.chosen(0, 0.5, "none") == []


def test_the_secret_is_the_clients_own(tmp_path):
    memory = ClientMemory(tmp_path)
    memory.save(3, "0-0", {})
    secret = memory.secret(3)
    (file,) = tmp_path.glob("3/**/noise.key")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    memory.load(3, "")  # which tidies up
    assert memory.secret(3) == secret
    assert memory.secret(4) != secret
    file.write_bytes(b"short")
    with pytest.raises(RunError, match="has 5 bytes, expected 32"):
        memory.secret(3)
