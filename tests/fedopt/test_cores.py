import numpy as np
import pytest

from fcit.fedopt.cores import Cores

RNG = np.random.default_rng(0)


def pair(out: int, rank: int, into: int) -> tuple[np.ndarray, np.ndarray]:
    return RNG.normal(size=(out, rank)).astype(np.float32), RNG.normal(size=(rank, into)).astype(np.float32)


@pytest.mark.parametrize(("out", "into"), [(7, 9), (3, 9), (9, 2)])  # also layers narrower than the stacks
def test_products_in_common_bases(out, into):
    pairs = [pair(out, 2, into), pair(out, 2, into)]
    cores = Cores(pairs)
    dense = [b.astype(np.float64) @ a for b, a in pairs]
    inner = float((cores.products[0] * cores.products[1]).sum())
    assert inner == pytest.approx((dense[0] * dense[1]).sum())
    a, b, missed = cores.factored(cores.products[1], pairs[0][1])
    assert b @ a == pytest.approx(dense[1], abs=1e-5)
    assert missed == pytest.approx(0, abs=1e-9)


def test_a_sum_is_truncated_to_the_best_of_the_rank():
    pairs = [pair(7, 2, 9), pair(7, 2, 9)]
    cores = Cores(pairs)
    a, b, missed = cores.factored(cores.products[0] + cores.products[1], pairs[0][1])
    dense = sum(b.astype(np.float64) @ a for b, a in pairs)
    s = np.linalg.svd(dense, compute_uv=False)
    assert missed == pytest.approx((s[2:] ** 2).sum())
    assert ((dense - b @ a) ** 2).sum() == pytest.approx(missed, rel=1e-4)
    assert np.linalg.norm(a, axis=1) == pytest.approx(np.linalg.norm(pairs[0][1], axis=1).mean())
