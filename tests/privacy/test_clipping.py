"""Clipping to a norm, and the norm that follows a quantile, against their formulas."""

import math

import numpy as np
import pytest

from fcit.privacy import clipping
from tests.helpers.toy import f32


def distance(tensors, old):
    return math.sqrt(sum(((tensors[n].astype(np.float64) - old[n]) ** 2).sum() for n in tensors))


def test_one_norm_over_all_tensors():
    old = {"a": f32(1, 1), "b": f32(2)}
    new, norm = clipping.clipped({"a": f32(4, 1), "b": f32(6)}, old, 2.5)  # moved by (3, 0) and 4: norm 5
    assert norm == 5.0
    assert new["a"].tolist() == [2.5, 1.0]
    assert new["b"].tolist() == [4.0]


def test_a_short_update_is_unchanged():
    sent = {"a": f32(0.3)}
    new, norm = clipping.clipped(sent, {"a": f32(0)}, 1.0)
    assert new is sent
    assert norm == pytest.approx(0.3)


def test_no_update_is_longer_than_the_clipping_norm():
    # float32 would round a small step away from large tensors to one that is longer
    rng = np.random.default_rng(0)
    old = {"a": rng.normal(0, 100, 1000).astype(np.float32)}
    new, _ = clipping.clipped({"a": old["a"] + rng.normal(0, 1, 1000).astype(np.float32)}, old, 1e-3)
    assert distance(new, old) <= 1e-3 * (1 + 1e-9)


def test_noise_of_updates_and_count_together_is_the_noise_asked_for():
    # two Gaussian mechanisms of z1 and z2 are one of (z1^-2 + z2^-2)^(-1/2); the count's z2 is 2 sigma_b
    for multiplier, sigma in ((1.0, 1.0), (0.5, 0.4), (3.0, 20.0)):
        on_updates = clipping.on_updates(multiplier, sigma)
        assert (on_updates**-2 + (2 * sigma) ** -2) ** -0.5 == pytest.approx(multiplier)


def test_too_little_noise_on_the_count():
    with pytest.raises(ValueError, match=r"quantile_noise 0\.5 is not more than half of the noise multiplier 1"):
        clipping.on_updates(1.0, 0.5)


def test_noise_on_the_count_by_default():
    assert clipping.count_noise(1.0, clients=100) == 5.0  # Andrew et al.: a twentieth
    assert clipping.count_noise(1.0, clients=5) == 1.0
    assert clipping.count_noise(1.0, clients=5, asked=0.7) == 0.7


def test_the_norm_follows_the_quantile():
    assert clipping.followed(2.0, share=0.5, quantile=0.5, rate=0.2) == 2.0
    # all updates are shorter: C exp(-0.2 x 0.5)
    assert clipping.followed(2.0, share=1.0, quantile=0.5, rate=0.2) == pytest.approx(2.0 * math.exp(-0.1))


def test_it_ends_at_the_median_norm():
    norms, clip = np.linspace(0.1, 10.1, 101), 0.01
    for _ in range(300):
        clip = clipping.followed(clip, float((norms <= clip).mean()), 0.5, 0.2)
    assert clip == pytest.approx(float(np.median(norms)), rel=0.05)
