"""Which statistics the server believes, and how many subspaces it lets them open."""

from types import SimpleNamespace

import numpy as np
import pytest

from fcit.config import Federation, RunConfig
from fcit.data.stream import SiteStream
from fcit.errors import DataError
from fcit.federation.messages import Description
from fcit.methods.base import Factory, ServerState, Stats
from fcit.methods.disco import Disco
from fcit.methods.hide import HiDe
from server.descriptions import LEAST, assign, most_records, outliers, reject_reason

METHOD = Disco(RunConfig(method={"name": "disco", "min_records": 1}))
MAKE = Factory(0, {"x.lora_A.weight": (1, 2)})


def described(total=(3.0, 4.0), count=1, names=("total",), dtype=np.float64) -> Description:
    return Description(client=0, shard="a", count=count, tensors={name: np.array(total, dtype=dtype) for name in names})


def test_an_honest_description():
    assert reject_reason(described(), 2, 10) is None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (described(total=(1.0,)), "one vector of 2 numbers"),
        (described(total=((1.0, 2.0),)), "one vector of 2 numbers"),
        (described(total=()), "one vector of 2 numbers"),
        (described(names=()), "one vector of 2 numbers"),
        (described(names=("total", "more")), "one vector of 2 numbers"),
        (described(total=(np.nan, 1.0)), "not finite float64"),
        (described(total=(np.inf, 1.0)), "not finite float64"),
        (described(dtype=np.float32), "not finite float64"),
        (described(count=0), "claims 0 records, it can have 1 to 10"),
        (described(count=-3), "claims -3 records"),
        (described(count=11), "claims 11 records, it can have 1 to 10"),
        (described(count=10**12), "claims 1000000000000 records"),
    ],
)
def test_what_is_not_believed(wrong, reason):
    found = reject_reason(wrong, 2, 10)
    assert found is not None
    assert reason in found


def round_of(*lengths: float, count: int = 5) -> dict:
    """Statistics of clients 0, 1, ... whose mean features are so long."""
    return {(client, "a"): Stats(np.array([0.0, length * count]), count) for client, length in enumerate(lengths)}


def test_a_feature_sum_that_is_too_long_for_its_count():
    lengths: list[float] = []
    found = outliers(round_of(10.0, 9.0, 1e6, 11.0, 10.0), METHOD, lengths)
    assert list(found) == [(2, "a")]
    assert "length 1e+06, over 4 times the median 10" in found[2, "a"]
    assert lengths == [10.0, 9.0, 11.0, 10.0]  # the lie is not remembered


def test_four_times_the_median_is_allowed():
    assert outliers(round_of(1.0, 1.0, 3.99), METHOD, []) == {}
    assert list(outliers(round_of(1.0, 1.0, 4.01), METHOD, [])) == [(2, "a")]


def test_what_was_believed_before_counts():
    assert list(outliers(round_of(1000.0), METHOD, [10.0] * 50)) == [(0, "a")]
    assert outliers(round_of(1000.0), METHOD, [10.0] * (LEAST - 2)) == {}  # two say nothing about each other


@pytest.mark.parametrize(("length", "says"), [(0.0, "zero"), (1e300, "over 4 times")])
def test_no_length_and_one_that_overflows(length, says):
    stats = round_of(10.0, 10.0, 10.0, 10.0)
    stats[4, "a"] = Stats(np.array([length, length]), 1)
    assert says in outliers(stats, METHOD, [])[4, "a"]


def test_the_window_of_lengths_is_bounded():
    lengths = [10.0] * 500
    outliers(round_of(11.0), METHOD, lengths)
    assert len(lengths) == 500
    assert lengths[-1] == 11.0


def test_statistics_of_a_methods_own_kind_are_not_measured():
    class Own(Disco):
        def describe(self, features):
            return Stats(features.max(axis=0), 1)

    assert outliers(round_of(1.0, 1.0, 0.0, 1e9), Own(RunConfig()), []) == {}


def test_most_records():
    def counted(client, tasks):
        if client == 9:
            raise DataError("the file is with the client")
        return sum(3 + task for task in tasks)

    stream = SimpleNamespace(most_records=counted)
    assert most_records(RunConfig(), stream, 0, [0, 1]) == 7
    limited = RunConfig.model_validate({"federation": {"max_records": 50}})
    assert most_records(limited, stream, 9, [0]) == 50
    assert most_records(limited, SiteStream(limited), 0, []) == 50


# ------------------------------------------------------------------ openings


def axis(number: int) -> np.ndarray:
    return np.eye(12)[number]


def open_(state, stats, openings, **limits):
    return assign(METHOD, state, stats, sorted(stats), MAKE, Federation.model_validate(limits), openings)


def test_within_the_limits_the_method_decides():
    stats = {(c, "a"): Stats(axis(c % 2) * 3, 3) for c in range(4)}
    mine, plain = ServerState(), ServerState()
    openings: dict[str, int] = {}
    assert open_(mine, stats, openings) == {}
    METHOD.assign(plain, sorted(stats), stats, MAKE)
    assert mine.assigned == plain.assigned
    assert list(mine.subspaces) == list(plain.subspaces) == ["0", "1"]
    assert all(np.array_equal(mine.subspaces[n][k], t) for n in plain.subspaces for k, t in plain.subspaces[n].items())
    assert mine.memory["cache"]["counts"] == plain.memory["cache"]["counts"]
    assert openings == {"0": 1, "1": 1, "2": 1, "3": 1}


def test_a_client_with_random_tokens_opens_only_so_many():
    state, openings = ServerState(), {}
    for round_ in range(5):
        stats = {(7, f"shard-{round_}"): Stats(axis(round_), 1)}
        left = open_(state, stats, openings, max_openings=2)
        assert bool(left) is (round_ >= 2)
    assert len(state.subspaces) == 2
    assert openings == {"7": 2}
    assert "more than 2 subspaces for one client (federation.max_openings)" in left[7, "shard-4"]
    assert (7, "shard-4") not in state.assigned
    assert len(state.memory["cache"]["names"]) == 2


def test_a_client_at_its_limit_still_joins_what_is_there():
    state, openings = ServerState(), {"7": 2}
    open_(state, {(1, "a"): Stats(axis(0), 1)}, openings)
    assert open_(state, {(7, "b"): Stats(axis(0), 1)}, openings, max_openings=2) == {}
    assert state.assigned[7, "b"] == "0"
    assert openings == {"7": 2, "1": 1}


def test_of_two_in_one_round_the_first_is_opened():
    state, openings = ServerState(), {}
    stats = {(7, "a"): Stats(axis(0), 1), (7, "b"): Stats(axis(1), 1)}
    assert list(open_(state, stats, openings, max_openings=1)) == [(7, "b")]
    assert list(state.assigned) == [(7, "a")]


def test_an_honest_client_keeps_the_subspace_that_a_refused_one_would_have_opened_too():
    state, openings = ServerState(), {"7": 1}
    stats = {(1, "a"): Stats(axis(3), 1), (7, "b"): Stats(axis(3), 1)}
    assert list(open_(state, stats, openings, max_openings=1)) == [(7, "b")]
    assert state.assigned == {(1, "a"): "0"}
    assert state.memory["cache"]["counts"] == [1]


def test_the_server_keeps_only_so_many_subspaces():
    state, openings = ServerState(), {}
    stats = {(client, "a"): Stats(axis(client), 1) for client in range(5)}
    left = open_(state, stats, openings, max_subspaces=3)
    assert list(left) == [(3, "a"), (4, "a")]
    assert len(state.subspaces) == 3
    assert "the server keeps 3 (federation.max_subspaces)" in left[3, "a"]
    assert list(open_(state, {(9, "a"): Stats(axis(9), 1)}, openings, max_subspaces=3)) == [(9, "a")]
    assert open_(state, {(9, "b"): Stats(axis(1), 1)}, openings, max_subspaces=3) == {}


def test_methods_without_statistics_know_no_openings():
    class Fresh(Disco):
        needs_stats = False

        def assign(self, state, pairs, stats, make):
            for pair in pairs:
                state.subspaces[pair[1]], state.assigned[pair] = make(pair[1]), pair[1]

    state, limits = ServerState(), Federation.model_validate({"max_openings": 1, "max_subspaces": 1})
    assert assign(Fresh(RunConfig()), state, {}, [(0, "a"), (0, "b")], MAKE, limits, {}) == {}
    assert len(state.subspaces) == 2


def test_a_subspace_of_the_stage_is_opened_by_no_client():
    method = HiDe(RunConfig(method={"name": "hide"}))
    state, openings, limits = ServerState(), dict[str, int](), Federation.model_validate({"max_openings": 1})
    for state.stage in range(3):
        pair = (7, f"shard-{state.stage}")
        assert assign(method, state, {pair: Stats(axis(0), 1)}, [pair], MAKE, limits, openings) == {}
    assert list(state.subspaces) == ["0", "1", "2"]
    assert openings == {}
