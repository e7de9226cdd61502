"""Numbers as integers: how far the mean of what is summed is from the mean of what was trained."""

import numpy as np
import pytest

from fcit.privacy.clipping import clipped
from fcit.privacy.secagg.vector import HEAD, Coding, Contribution

SHAPES = {"b": (2, 3), "a": (4,)}


def coding(**changes) -> Coding:
    plain = {"bits": 16, "range": 0.5, "most": 1000, "members": 5, "shapes": SHAPES}
    return Coding(**{**plain, **changes})


def contributions(count=5, scale=0.4, weights=(1, 7, 20, 300, 1000)):
    rng = np.random.default_rng(3)
    return [
        Contribution(weights[k], 0.5 * k, {n: rng.uniform(-scale, scale, s) for n, s in SHAPES.items()}, k % 2 == 0)
        for k in range(count)
    ]


def total(code, ones):
    """The sum of vectors as it would be without masks."""
    return sum((code.encoded(one) for one in ones), np.zeros(code.size, code.kind))


def means(ones):
    weights = [one.weight for one in ones]
    return {n: np.average([one.differences[n] for one in ones], axis=0, weights=weights) for n in SHAPES}


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_the_mean_is_off_by_half_a_step_at_most(bits):
    code, ones = coding(bits=bits), contributions()
    result = code.decoded(total(code, ones), 5)
    assert result.weight == 1328
    for name, mean in means(ones).items():
        assert np.abs(result.means[name] - mean).max() <= code.step / 2 * (1 + 1e-9)
    loss = np.average([one.loss for one in ones], weights=[one.weight for one in ones])
    assert result.loss == pytest.approx(loss, abs=64 / code.top)
    assert (result.unclipped, result.cut) == (3, 0)


def test_rounded_towards_zero_no_update_becomes_longer():
    code = coding(most=1, inward=True, range=0.1, bits=8)
    for one in contributions(scale=1.0, weights=(1,) * 5):
        short, _ = clipped(one.differences, {n: np.zeros(s) for n, s in SHAPES.items()}, 0.1)
        result = code.decoded(code.encoded(Contribution(1, 0.0, short)), 1)
        norm = np.sqrt(sum(np.square(mean).sum() for mean in result.means.values()))
        assert 0.08 < norm <= 0.1
        assert result.cut == 0
        for name, mean in short.items():
            assert np.abs(result.means[name] - mean).max() <= code.step


def test_what_is_beyond_the_range_is_cut_and_counted():
    code = coding()
    ones = [Contribution(2, 1e9, {"a": np.array([9.0, 0, 0, 0]), "b": np.zeros((2, 3))}), *contributions(1)]
    result = code.decoded(total(code, ones[:1]), 1)
    assert result.means["a"].tolist() == pytest.approx([0.5, 0, 0, 0])
    assert result.loss == 64
    assert code.decoded(total(code, ones), 2).cut == 1


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, np.uint32),  # 5 clients, 1000 records, 16 bits
        ({"bits": 24, "most": 1}, np.uint32),
        ({"bits": 24}, np.uint64),
        ({"bits": 32, "most": 2**20, "members": 1000}, np.uint64),
    ],
)
def test_the_ring_has_room_for_the_largest_sum(changes, kind):
    code = coding(**changes)
    assert code.kind == kind
    assert code.members * code.most * code.top < 2 ** (8 * code.kind.itemsize - 1)


def test_a_sum_that_fits_into_no_ring():
    with pytest.raises(ValueError, match=r"does not fit into 64 bits; lower privacy.quantise_bits"):
        _ = coding(bits=32, most=10**7, members=1000).kind


@pytest.mark.parametrize("weight", [0, 1001])
def test_a_weight_without_room_is_not_encoded(weight):
    with pytest.raises(ValueError, match="has room for 1000"):
        coding().encoded(Contribution(weight, 0.0, contributions(1)[0].differences))


@pytest.mark.parametrize("tensors", [{"a": np.zeros(4)}, {"a": np.zeros(3), "b": np.zeros((2, 3))}])
def test_other_tensors_are_not_encoded(tensors):
    with pytest.raises(ValueError, match="not those of the group"):
        coding().encoded(Contribution(1, 0.0, tensors))


def test_what_is_not_finite_is_not_encoded():
    with pytest.raises(ValueError, match="a holds numbers that are not finite"):
        coding().encoded(Contribution(1, 0.0, {"a": np.full(4, np.nan), "b": np.zeros((2, 3))}))


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, 0, "the sum is of 0 records"),
        (0, 5001, "the sum is of 5001 records"),
        (1, 6, "counts 6 and 0 of 5 members"),
        (2, 2**32 - 1, "counts 3 and -1 of 5 members"),
        (HEAD, 2**31 - 1, "larger than all members together"),
        (HEAD, 2**31, "larger than all members together"),
    ],
)
def test_a_sum_that_cannot_be_is_refused(place, value, reason):
    code = coding()
    vector = total(code, contributions())
    vector[place] = value
    with pytest.raises(ValueError, match=reason):
        code.decoded(vector, 5)
