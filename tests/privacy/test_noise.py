"""Noise from a secret: its distribution, its owner, and that the secret matters."""

import math

import numpy as np

from fcit.privacy import noise
from fcit.privacy.noise import SECRET, Noise, fresh, published


def test_standard_normal():
    drawn = Noise(bytes(SECRET)).normal((200_000,), "test")
    error = 1 / math.sqrt(len(drawn))
    assert abs(drawn.mean()) < 4 * error
    assert abs(drawn.std() - 1) < 4 * error
    # shares beyond 1, 2 and 3 deviations
    for bound, share in ((1, 0.317311), (2, 0.045500), (3, 0.002700)):
        assert abs((np.abs(drawn) > bound).mean() - share) < 4 * math.sqrt(share) * error


def test_numbers_are_not_related():
    drawn = Noise(bytes(SECRET)).normal((100_000,), "test")
    for step in (1, 2, 50_000):  # the two halves come from the same pairs
        assert abs(np.corrcoef(drawn[:-step], drawn[step:])[0, 1]) < 0.02


def test_every_owner_has_its_own():
    owned = Noise(bytes(SECRET))
    assert owned.normal((3,), 0, 1, "a").tolist() == owned.normal((3,), 0, 1, "a").tolist()
    assert owned.normal((3,), 0, 1, "a").tolist() != owned.normal((3,), 0, 1, "b").tolist()


def test_large_arrays_are_made_in_pieces(monkeypatch):
    monkeypatch.setattr(noise, "PIECE", 1000)
    drawn = Noise(bytes(SECRET)).normal((9, 1001), "test")
    assert abs(drawn.std() - 1) < 0.04
    assert len(np.unique(drawn)) == drawn.size


def test_shapes():
    assert Noise(bytes(SECRET)).normal((3, 5), "a").shape == (3, 5)
    assert Noise(bytes(SECRET)).normal((0, 4), "a").shape == (0, 4)


def test_another_secret_is_other_noise():
    assert Noise(fresh()).normal((3,), "a").tolist() != Noise(fresh()).normal((3,), "a").tolist()


def test_the_published_secret_is_a_function_of_the_seed():
    assert published(3) == published(3)
    assert published(3) != published(4)
    assert len(published(3)) == SECRET
