"""One subspace alone: what answers with a portable folder can be asked for, and what not."""

from types import SimpleNamespace

import numpy as np
import pytest

from fcit.errors import ConfigError
from fcit.export.assistant import Assistant
from fcit.models.layout import Layout


def mix(*subspaces: str | None, **layout: str) -> np.ndarray:
    """Weights of two subspaces for questions that name one, or none."""
    method = SimpleNamespace(
        name="made-up",
        layout=Layout(**layout),
        needs_task_at_inference=False,
        route=lambda names, knowledge, features: features[:, : len(names)],
    )
    known = SimpleNamespace(knowledge={})
    there = SimpleNamespace(subspaces=["0", "1"], method=method, routing=known, _known={})
    there._mix = lambda features, subspace: Assistant._mix(there, features, subspace)
    for subspace in subspaces:
        Assistant._check(there, subspace)
    features = np.arange(3 * len(subspaces), dtype=np.float32).reshape(-1, 3)
    return Assistant._mixes(there, features, [SimpleNamespace(subspace=name) for name in subspaces])


def test_a_named_subspace_has_all_the_weight():
    assert mix("1").tolist() == [[0.0, 1.0]]


def test_questions_that_name_one_are_mixed_with_routed_ones_in_a_batch():
    assert mix("1", None, "0", None).tolist() == [[0.0, 1.0], [3.0, 4.0], [1.0, 0.0], [9.0, 10.0]]


def test_an_unknown_one_is_named():
    with pytest.raises(ConfigError, match=r"subspace: no '2'.*there are: 0, 1"):
        mix("2")


def test_subspaces_that_are_mixed_in_the_last_block_alone_are_not_alone_below_it():
    with pytest.raises(ConfigError, match="act together below the last block"):
        mix("1", routed="last")
