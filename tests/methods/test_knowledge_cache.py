import numpy as np
import pytest

from fcit.methods.knowledge_cache import KnowledgeCache, average_linkage, cosine


def at(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_cosine_by_hand():
    table = cosine(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[4.0, 3.0], [-3.0, -4.0], [8.0, -6.0]]))
    assert table == pytest.approx(np.array([[0.96, -1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_linkage_joins_what_is_alike():
    assert average_linkage(at(0, 90, 5, 92), [1, 1, 1, 1], 0.9) == [[0, 2], [1, 3]]


def test_linkage_of_one_and_of_none():
    assert average_linkage(at(0), [3], 0.9) == [[0]]
    assert average_linkage(np.zeros((0, 2)), [], 0.9) == []


def test_linkage_is_an_average_not_a_chain():
    # 0 and 20 degrees join first; then 50 degrees has cosines 0.643 and 0.866 to them, mean 0.754
    tokens = at(0, 20, 50)
    assert average_linkage(tokens, [1, 1, 1], 0.8) == [[0, 1], [2]]
    assert average_linkage(tokens, [1, 1, 1], 0.75) == [[0, 1, 2]]


def test_linkage_weighs_by_count():
    # as above, but the near member counts nine times: (0.643 + 9 * 0.866) / 10 = 0.844
    assert average_linkage(at(0, 20, 50), [1, 9, 1], 0.8) == [[0, 1, 2]]
    assert average_linkage(at(0, 20, 50), [9, 1, 1], 0.8) == [[0, 1], [2]]


def test_linkage_threshold_is_inclusive():
    assert average_linkage(np.eye(2), [1, 1], 0.0) == [[0, 1]]
    assert average_linkage(np.eye(2), [1, 1], 0.01) == [[0], [1]]


def test_linkage_of_a_round_of_hundreds_of_clients():
    # looking at every pair by itself before every merge took a quarter of an hour
    directions, which = np.random.default_rng(0).normal(size=(8, 64)), np.arange(300) % 8
    tokens = directions[which] + np.random.default_rng(1).normal(0, 0.1, (300, 64))
    assert average_linkage(tokens, np.arange(1, 301), 0.9) == [list(range(first, 300, 8)) for first in range(8)]


def test_clusters_are_disjoint_and_ascending():
    tokens = np.random.default_rng(0).normal(size=(12, 3))
    clusters = average_linkage(tokens, [1] * 12, 0.7)
    assert sorted(i for members in clusters for i in members) == list(range(12))
    assert all(members == sorted(members) for members in clusters)
    assert [members[0] for members in clusters] == sorted(members[0] for members in clusters)


def test_mean_is_exact_and_counts_are_whole():
    cache = KnowledgeCache()
    cache.add("0", np.array([2.0, 0.0]), 2)  # mean (1, 0)
    cache.add("1", np.array([0.0, 3.0]), 1)
    cache.add("0", np.array([0.0, 6.0]), 2)  # mean (0, 3)
    assert cache.names == ["0", "1"]
    assert cache.counts == [4, 1]
    assert cache.tokens.tolist() == [[0.5, 1.5], [0.0, 3.0]]
    assert cache.tokens.dtype == np.float32


def test_large_counts_are_not_rounded():
    cache = KnowledgeCache()
    cache.add("0", np.zeros(1), 100_000)
    cache.add("0", np.ones(1), 1)
    assert cache.counts == [100_001]


def test_adding_leaves_the_callers_array_alone():
    total, cache = np.array([1.0]), KnowledgeCache()
    cache.add("0", total, 1)
    cache.add("0", np.array([5.0]), 1)
    assert total.tolist() == [1.0]


def test_match():
    cache = KnowledgeCache()
    assert cache.match(np.array([1.0, 0.0]), -1.0) is None
    cache.add("x", np.array([5.0, 0.0]), 5)
    cache.add("y", np.array([0.0, 2.0]), 1)
    assert cache.match(np.array([1.0, 9.0]), 0.9) == "y"
    assert cache.match(np.array([1.0, 1.0]), 0.9) is None


def test_match_threshold_is_inclusive():
    cache = KnowledgeCache()
    cache.add("x", np.array([1.0, 0.0]), 1)
    assert cache.match(np.array([0.0, 1.0]), 0.0) == "x"
    assert cache.match(np.array([0.0, 1.0]), 1e-9) is None
    assert cache.match(np.array([2.0, 0.0]), 1.0) == "x"
