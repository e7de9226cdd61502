"""One subspace alone: what answers with a portable folder can be asked for, and what not."""

from types import SimpleNamespace

import numpy as np
import pytest

from fcit.errors import ConfigError
from fcit.export.assistant import Assistant
from fcit.models.layout import Layout


def mix(subspace: str, **layout: str) -> np.ndarray:
    """Weights of two subspaces for one question."""
    method = SimpleNamespace(name="made-up", layout=Layout(**layout))
    return Assistant._mix(SimpleNamespace(subspaces=["0", "1"], method=method), np.zeros((1, 3)), subspace)


def test_a_named_subspace_has_all_the_weight():
    assert mix("1").tolist() == [[0.0, 1.0]]


def test_an_unknown_one_is_named():
    with pytest.raises(ConfigError, match=r"subspace: no '2'.*there are: 0, 1"):
        mix("2")


def test_subspaces_that_are_mixed_in_the_last_block_alone_are_not_alone_below_it():
    with pytest.raises(ConfigError, match="act together below the last block"):
        mix("1", routed="last")
