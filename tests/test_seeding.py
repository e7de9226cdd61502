import random

import numpy as np
import pytest
import torch

from fcit import seeding


def draw(*owner) -> list[float]:
    return seeding.generator(*owner).random(3).tolist()


def test_same_owner_same_draw():
    assert draw(0, "sampling", 1, 2) == draw(0, "sampling", 1, 2)


@pytest.mark.parametrize(
    "other", [(1, "sampling", 1, 2), (0, "batches", 1, 2), (0, "sampling", 2, 1), (0, "sampling", 12)]
)
def test_other_owner_other_draw(other):
    assert draw(0, "sampling", 1, 2) != draw(*other)


def global_draws() -> tuple:
    return random.random(), float(np.random.random()), float(torch.rand(1))


def seed_all() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def test_body_is_reproducible_and_surroundings_are_untouched():
    seed_all()
    expected = [global_draws(), global_draws()]
    seed_all()
    first = global_draws()
    with seeding.torch_seeded(5, "training", 0):
        inside = global_draws()
    assert [first, global_draws()] == expected
    with seeding.torch_seeded(5, "training", 0):
        assert global_draws() == inside
    with seeding.torch_seeded(5, "training", 1):
        assert global_draws() != inside


def test_restores_when_the_body_raises():
    seed_all()
    expected = global_draws()
    seed_all()
    with pytest.raises(KeyError), seeding.torch_seeded(5, "training"):
        global_draws()
        raise KeyError
    assert global_draws() == expected


@pytest.mark.parametrize(("used", "asked"), [(False, []), (True, [0, 1, 0, 1])])
def test_gpus_are_left_alone_by_a_process_that_does_not_use_them(used, asked, monkeypatch, recwarn):
    """Asking one for its generator's state would initialise them all, and warn of it where there are several."""
    seen = []
    for name, value in (
        ("is_initialized", lambda: used),
        ("device_count", lambda: 2),
        ("get_rng_state", seen.append),
        ("set_rng_state", lambda state, device: seen.append(device)),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    with seeding.untouched():
        global_draws()
    assert seen == asked
    assert not recwarn.list
