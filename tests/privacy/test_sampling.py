"""Participants drawn in secret."""

import numpy as np

from fcit import config as configuration
from fcit.methods.finetune import Finetune
from fcit.privacy.noise import Noise
from fcit.privacy.sampling import poisson
from server.participants import shard_id, slots_of_round

KEY = bytes(range(32))


def test_uniform_numbers_are_a_function_of_secret_and_owner():
    drawn = Noise(KEY).uniform((10_000,), "a", 1)
    assert drawn.tolist() == Noise(KEY).uniform((10_000,), "a", 1).tolist()
    assert drawn.tolist() != Noise(KEY).uniform((10_000,), "a", 2).tolist()
    assert 0 < drawn.min() < drawn.max() <= 1
    assert abs(drawn.mean() - 0.5) < 0.02


def test_every_client_by_itself():
    sizes = [len(poisson(KEY, 0, round_, 50, 0.1)) for round_ in range(400)]
    assert abs(np.mean(sizes) - 5) < 0.5
    assert abs(np.var(sizes) - 4.5) < 1.2  # of a binomial distribution; a fixed number would have none
    assert min(sizes) == 0
    assert poisson(KEY, 0, 0, 50, 1.0) == list(range(50))


def test_rounds_and_secrets_differ():
    assert poisson(KEY, 0, 0, 50, 0.5) == poisson(KEY, 0, 0, 50, 0.5)
    assert poisson(KEY, 0, 0, 50, 0.5) != poisson(KEY, 0, 1, 50, 0.5)
    assert poisson(KEY, 0, 0, 50, 0.5) != poisson(bytes(32), 0, 0, 50, 0.5)


class Stream:
    def slots(self, stage):
        return [(stage,)] * 2


def test_any_number_of_clients_trains_the_task_of_the_stage():
    config = configuration.parse({"method": "finetune", "federation": {"clients": 9, "clients_per_round": 2}})
    slots = slots_of_round(config, Stream(), Finetune, 1, 0, [3, 5, 8])
    assert [(slot.client, slot.tasks) for slot in slots] == [(3, (1,)), (5, (1,)), (8, (1,))]
    assert [slot.shard for slot in slots] == [shard_id(0, client, 1) for client in (3, 5, 8)]
    assert slots_of_round(config, Stream(), Finetune, 1, 0, []) == []
