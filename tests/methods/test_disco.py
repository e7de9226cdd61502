import numpy as np
import pytest

from fcit import config
from fcit.config import RunConfig
from fcit.contracts.methods import check
from fcit.errors import ConfigError
from fcit.methods.base import Factory, ServerState, Stats
from fcit.methods.disco import Disco, softmax_mix
from fcit.methods.knowledge_cache import KnowledgeCache

MAKE = Factory(0, {"x.lora_A.weight": (2, 3), "x.lora_B.weight": (3, 2)})
ICONS, BARS, BOOKS = np.eye(3)


def disco(**options) -> Disco:
    return Disco(RunConfig(method={"name": "disco", "min_records": 1, **options}))


def stats(feature: np.ndarray, count: int) -> Stats:
    return Stats(feature * count, count)


def assigned(method: Disco, state: ServerState, known: dict) -> list[str]:
    method.assign(state, list(known), {pair: stats(*value) for pair, value in known.items()}, MAKE)
    return [state.assigned[pair] for pair in known]


def test_clients_of_one_task_share_a_subspace():
    near = ICONS + 0.1 * BARS
    assert assigned(disco(), ServerState(), {(1, "a"): (ICONS, 4), (2, "b"): (near, 3)}) == ["0", "0"]


def test_two_new_tasks_of_one_round_open_two_subspaces():
    state = ServerState()
    found = assigned(disco(), state, {(2, "b"): (BARS, 4), (1, "a"): (ICONS, 4), (3, "c"): (BARS, 1)})
    assert found == ["1", "0", "1"]  # in ascending client order, whatever the order of the slots
    assert list(state.subspaces) == ["0", "1"]
    assert not np.array_equal(state.subspaces["0"]["x.lora_A.weight"], state.subspaces["1"]["x.lora_A.weight"])


def test_a_later_client_joins_or_opens():
    state, method = ServerState(), disco()
    assigned(method, state, {(1, "a"): (ICONS, 4)})
    before = state.subspaces["0"]
    assert assigned(method, state, {(7, "g"): (ICONS, 2), (8, "h"): (BOOKS, 2)}) == ["0", "1"]
    assert state.subspaces["0"] is before


def test_one_client_may_hold_two_tasks():
    assert assigned(disco(), ServerState(), {(1, "a"): (ICONS, 4), (1, "b"): (BARS, 4)}) == ["0", "1"]


def test_two_records_of_their_own_wording_do_not_open_a_subspace():
    """A client with 2 of 992 records is nearer to nobody than the threshold, and joins the nearest."""
    clients = {(n, "a"): (ICONS, 99) for n in range(10)}
    odd = 0.6 * ICONS + 0.8 * BARS
    assert assigned(disco(), ServerState(), {**clients, (10, "a"): (odd, 2)}) == ["0"] * 10 + ["1"]
    state = ServerState()
    assert assigned(disco(min_records=8), state, {**clients, (10, "a"): (odd, 2)}) == ["0"] * 11
    assert state.memory["cache"]["counts"] == [992]  # its records count in the token it joined
    assert assigned(disco(min_records=8), state, {(11, "a"): (odd, 8)}) == ["1"]  # enough records
    assert assigned(disco(min_records=8), state, {(12, "a"): (odd, 1)}) == ["1"]  # a known token is reached


def test_small_clients_of_one_wording_count_together():
    pairs = {(1, "a"): (ICONS, 9), (2, "b"): (BARS, 4), (3, "c"): (BARS, 4)}
    assert assigned(disco(min_records=8), ServerState(), pairs) == ["0", "1", "1"]
    assert assigned(disco(min_records=9), ServerState(), pairs) == ["0", "0", "0"]


def test_small_clients_join_what_the_round_opens():
    """The larger clusters come first, wherever they stand in the list."""
    pairs = {(1, "a"): (BARS + 0.5 * BOOKS, 2), (2, "b"): (ICONS, 9), (3, "c"): (BOOKS, 9)}
    state = ServerState()
    assert assigned(disco(min_records=8), state, pairs) == ["1", "0", "1"]
    assert list(state.subspaces) == ["0", "1"]


def test_the_largest_of_small_clusters_opens_where_there_is_no_subspace():
    pairs = {(1, "a"): (ICONS, 2), (2, "b"): (BARS, 3), (3, "c"): (BOOKS, 1)}
    state = ServerState()
    assert assigned(disco(min_records=8), state, pairs) == ["0", "0", "0"]
    assert list(state.subspaces) == ["0"]
    assert state.memory["cache"]["counts"] == [6]


def test_token_is_the_mean_over_records():
    state = ServerState()
    assigned(disco(threshold=0.5), state, {(1, "a"): (ICONS, 3), (2, "b"): (ICONS + 2 / 3 * BARS, 1)})
    cache = KnowledgeCache(**state.memory["cache"])
    assert cache.counts == [4]
    assert cache.tokens == pytest.approx(np.array([[1, 1 / 6, 0]]))


def test_a_known_pair_is_not_counted_twice():
    state, method = ServerState(), disco()
    assigned(method, state, {(1, "a"): (ICONS, 4)})
    method.assign(state, [(1, "a")], {}, MAKE)  # nobody described it again
    assigned(method, state, {(1, "a"): (ICONS, 4), (2, "b"): (ICONS, 1)})
    assert state.memory["cache"]["counts"] == [5]


def test_a_pair_drawn_twice_is_counted_once():
    state = ServerState()
    disco().assign(state, [(1, "a"), (1, "a")], {(1, "a"): stats(ICONS, 4)}, MAKE)
    assert state.memory["cache"]["counts"] == [4]


def test_threshold_decides():
    pairs = {(1, "a"): (ICONS, 1), (2, "b"): (ICONS + BARS, 1)}  # cosine 0.707
    assert assigned(disco(threshold=0.7), ServerState(), pairs) == ["0", "0"]
    assert assigned(disco(threshold=0.71), ServerState(), pairs) == ["0", "1"]


def test_softmax_mix_by_hand():
    mix = softmax_mix(np.array([[1.0, 0.9], [0.0, 0.0]]), 0.05)
    assert mix[0] == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))])
    assert mix[1].tolist() == [0.5, 0.5]
    assert mix.dtype == np.float32


def test_softmax_mix_does_not_overflow():
    assert softmax_mix(np.array([[1.0, -1.0]]), 1e-4).tolist() == [[1.0, 0.0]]


def test_empty_slots_take_their_share_of_the_softmax():
    """One subspace at cosine 0.05, seven empty slots at 0: e / (e + 7) of the weight, the bare model has the rest."""
    assert softmax_mix(np.array([[0.05]]), 0.05, 8)[0, 0] == pytest.approx(np.e / (np.e + 7))
    # As published, where a question resembles a token: the empty ones have next to nothing.
    assert softmax_mix(np.array([[0.9, 0.2]]), 0.05, 8).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("slots", [0, 1, 2])
def test_no_slots_are_empty_where_there_are_as_many_subspaces(slots):
    similarity = np.array([[0.3, 0.1], [-0.2, 0.4]])
    assert np.array_equal(softmax_mix(similarity, 0.05, slots), softmax_mix(similarity, 0.05))


@pytest.fixture
def trained():
    state = ServerState()
    assigned(disco(), state, {(1, "a"): (ICONS, 4), (2, "b"): (BARS, 4), (3, "c"): (BOOKS, 4)})
    return state


def test_route(trained):
    features = np.stack([2 * BARS, ICONS + BOOKS]).astype(np.float32)
    method = disco()
    mix = method.route(["0", "1", "2"], method.knowledge(trained), features)
    cosines = np.array([[0, 1, 0], [2**-0.5, 0, 2**-0.5]])
    assert mix == pytest.approx(softmax_mix(cosines, 0.05), abs=1e-6)
    assert mix[1] == pytest.approx([0.5, 0, 0.5], abs=1e-5)


def test_route_with_empty_slots(trained):
    """Three tokens that a question does not resemble at all, five empty slots: an eighth for each of the three."""
    method = disco(empty_slots=8)
    far = np.zeros((1, 3), np.float32)
    mix = method.route(["0", "1", "2"], method.knowledge(trained), np.concatenate([far, BARS[None]]))
    assert mix[0].tolist() == [0.125, 0.125, 0.125]
    assert mix.dtype == np.float32
    assert mix[1] == pytest.approx([0, 1, 0], abs=1e-6)
    assert disco().route(["0", "1", "2"], method.knowledge(trained), far).sum() == pytest.approx(1)


@pytest.mark.parametrize("mix", ["argmax", "concat", "cosine", "oracle"])
def test_empty_slots_belong_to_a_softmax(mix):
    with pytest.raises(ConfigError, match=f"method.empty_slots: 8 is for mix: softmax, and mix is '{mix}'"):
        config.parse({"method": {"name": "disco", "mix": mix, "empty_slots": 8}})


@pytest.mark.parametrize("options", [{"empty_slots": 8}, {"min_records": 6}])
def test_the_contract_holds_with_every_option(options):
    assert {what: problem for what, problem in check("disco", options) if problem} == {}


def test_route_follows_the_order_of_names(trained):
    method = disco()
    knowledge = method.knowledge(trained)
    mix = method.route(["2", "0", "1"], knowledge, BOOKS[None])
    assert mix.argmax(axis=1).tolist() == [0]


def test_route_argmax(trained):
    method = disco(mix="argmax")
    mix = method.route(["0", "1", "2"], method.knowledge(trained), np.stack([BARS + 0.5 * ICONS, BOOKS]))
    assert mix.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert mix.dtype == np.float32


def test_route_concat_adds_every_subspace(trained):
    method = disco(mix="concat")
    mix = method.route(["0", "1", "2"], method.knowledge(trained), np.stack([BARS, BOOKS]))
    assert mix.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert mix.dtype == np.float32


def test_route_cosine_keeps_raw_cosines_and_no_negative_ones(trained):
    method = disco(mix="cosine")
    features = np.array([[3.0, 4.0, 0.0], [-1.0, 0.0, 1.0]])
    mix = method.route(["0", "1", "2"], method.knowledge(trained), features)
    assert mix == pytest.approx(np.array([[0.6, 0.8, 0], [0, 0, 2**-0.5]]))
    assert mix.dtype == np.float32


def test_route_oracle_takes_the_subspace_of_the_task(trained):
    method = disco(mix="oracle")
    values, tensors = method.knowledge(trained)
    assert "trained" not in values
    assert "task" not in values
    told = {**values, "trained": {"task-5": "2"}, "task": "task-5"}
    mix = method.route(["0", "2", "1"], (told, tensors), np.stack([BARS, ICONS]))
    assert mix.tolist() == [[0, 1, 0], [0, 1, 0]]
    assert mix.dtype == np.float32
    assert not method.route(["0", "1", "2"], ({**told, "task": "task-6"}, tensors), BARS[None]).any()


def test_only_the_oracle_is_told_and_stands_apart():
    assert disco(mix="oracle").needs_task_at_inference
    assert disco(mix="oracle").group == "reference"
    assert not disco().needs_task_at_inference
    assert disco().group == ""
    assert not Disco.needs_task_at_inference
    assert [disco(token=token).identity for token in ("text", "image", "both")] == ["text", "image", "both"]
    assert disco().identity == "text"


def test_route_is_per_sample(trained):
    method = disco()
    features = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    both, knowledge = method.route(["0", "1", "2"], method.knowledge(trained), features), method.knowledge(trained)
    single = [method.route(["0", "1", "2"], knowledge, row[None])[0] for row in features]
    assert both == pytest.approx(np.stack(single), abs=1e-6)


def test_describe_is_additive():
    features = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = disco().describe(features)
    assert found.total.tolist() == [6.0, 9.0]
    assert found.total.dtype == np.float64
    assert found.count == 3
