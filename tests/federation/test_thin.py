"""Updates in few bytes: what is sent, what is owed, and what a server reads of whatever it is sent."""

import dataclasses

import numpy as np
import pytest

from fcit.config import parse_text
from fcit.errors import CodecError, FCITError
from fcit.federation import codec, formats
from fcit.federation.messages import ClientUpdate, TrainOrder
from fcit.federation.thin import Thin, wire_of
from fcit.io import trees
from tests.helpers.cases import check_each

ORDER = TrainOrder(
    config="",
    stage=0,
    round=0,
    client=3,
    shard="s",
    tasks=[0],
    subspace="0",
    tensors={"b": np.zeros(2, np.float32), "a": np.zeros((2, 2), np.float32), "extra/x": np.ones(1, np.float32)},
)


def update(tensors: dict[str, np.ndarray]) -> ClientUpdate:
    return ClientUpdate(
        stage=0, round=0, client=3, shard="s", subspace="0", examples=1, steps=1, loss=0.0, seconds=0.0, tensors=tensors
    )


def trained(a: list[float], b: list[float]) -> dict[str, np.ndarray]:
    return {"a": np.array(a, np.float32).reshape(2, 2), "b": np.array(b, np.float32)}


def read(thin: Thin, sent: dict[str, np.ndarray], order: TrainOrder = ORDER) -> dict[str, list]:
    """What the server has after the way over the wire."""
    there = codec.decode(codec.encode(update(sent), thin.wire), ClientUpdate, reply=True)
    return {name: tensor.tolist() for name, tensor in thin.restored(order, there).tensors.items()}


# ---------------------------------------------------------------------- number formats


def test_blocks_of_int8_by_hand():
    """127 is the largest: s = 1, halves go to even; half of it: s = 1/2."""
    codes, scales = formats.to_blocks(np.array([127, -1.5, 0.5, 0] + [0] * 60 + [63.5, 1.0, -0.25], np.float32))
    assert scales.tolist() == [1.0, 0.5]
    assert codes[:4].tolist() == [127, -2, 0, 0]
    assert codes[64:].tolist() == [127, 2, 0]
    assert formats.from_blocks(codes, scales)[64:].tolist() == [63.5, 1.0, 0.0]


def test_the_error_of_int8_is_half_a_scale_and_the_map_contracts():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * np.float32(1e-3)
    codes, scales = formats.to_blocks(x)
    back = formats.from_blocks(codes, scales)
    assert scales.shape == (16,)
    assert np.abs(codes).max() <= 127
    assert (np.abs(back - x) <= np.repeat(scales, 64)[:1000] * 0.5001).all()
    assert np.square(back - x).sum() < 1e-3 * np.square(x).sum()  # Karimireddy et al.: delta > 0.999
    assert np.array_equal(formats.from_bfloat16(formats.to_bfloat16(scales)), scales)  # are sent as they are


def test_nothing_and_zeros_have_blocks_too():
    codes, scales = formats.to_blocks(np.zeros(0, np.float32))
    assert (codes.size, scales.size) == (0, 0)
    codes, scales = formats.to_blocks(np.zeros(3, np.float32))
    assert formats.from_blocks(codes, scales).tolist() == [0, 0, 0]
    tiny = np.full(2, 1e-42, np.float32)  # subnormal
    assert np.abs(formats.from_blocks(*formats.to_blocks(tiny)) - tiny).max() <= 1e-42


def test_one_participant_with_all_data_has_no_wire():
    federated = parse_text("federation: {wire: int8, top_k: 0.5}", "test")
    central = parse_text("{setting: centralised, federation: {wire: int8, top_k: 0.5}}", "test")
    assert (wire_of(federated, ""), Thin.of(federated, "")) == ("int8", Thin("int8", 0.5))
    for config, pooled in ((federated, "all"), (federated, "task"), (central, "")):
        assert (wire_of(config, pooled), Thin.of(config, pooled)) == ("float32", None)


# ---------------------------------------------------------------------- error feedback


def test_top_k_sends_the_largest_and_owes_the_rest():
    """The vector is a, then b. Half of six: 5, -4 and the first 3; then 1 + 1, 3 + 1 and 2 + 2 are largest."""
    thin, owed = Thin("float32", 0.5), {}
    first = thin.sent(ORDER, trained([1, 5, -4, 3], [2, 3]), owed)
    assert read(thin, first) == {"b": [0, 0], "a": [[0, 5], [-4, 3]]}
    assert owed["subspaces"][0][0] == "0"
    assert {n: t.tolist() for n, t in owed["subspaces"][0][1]} == {"a": [[1, 0], [0, 0]], "b": [2, 3]}
    second = thin.sent(ORDER, trained([1, 0, 1, 0], [2, 1]), owed)
    assert read(thin, second) == {"b": [4, 4], "a": [[2, 0], [0, 0]]}
    assert {n: t.tolist() for n, t in owed["subspaces"][0][1]} == {"a": [[0, 0], [1, 0]], "b": [0, 0]}


def test_nothing_is_lost_but_what_is_still_owed():
    """sum of what was read + residual = sum of what was learnt (Karimireddy et al., proof of lemma 3)."""
    for wire, top_k in (("bfloat16", None), ("int8", None), ("int8", 0.2), ("float32", 0.01)):
        rng, thin, owed = np.random.default_rng(1), Thin(wire, top_k), {}
        order = dataclasses.replace(ORDER, tensors={"w": np.zeros((30, 10), np.float32)})
        learnt, came = np.zeros((30, 10)), np.zeros((30, 10))
        for _ in range(5):
            step = rng.standard_normal((30, 10)).astype(np.float32)
            learnt += step
            sent = thin.sent(order, {"w": step.copy()}, owed)
            came += np.array(read(thin, sent, order)["w"])
        assert np.allclose(came + dict(owed["subspaces"][0][1])["w"], learnt, atol=1e-5), (wire, top_k)
        assert not np.allclose(came, learnt, atol=1e-5), (wire, top_k)


def test_a_small_step_that_bfloat16_would_swallow_arrives():
    order = dataclasses.replace(ORDER, tensors={"w": np.full(2, 100, np.float32)})
    thin = Thin("bfloat16")
    sent = thin.sent(order, {"w": np.array([100.125, 100], np.float32)}, {})
    assert read(thin, sent, order) == {"w": [100.125, 100]}
    assert formats.from_bfloat16(formats.to_bfloat16(np.array([100.125], np.float32))).tolist() == [100]


def test_a_residual_belongs_to_a_subspace_and_ends_with_its_stage():
    thin, owed = Thin("float32", 0.01), {}
    thin.sent(ORDER, trained([9, 1, 0, 0], [0, 0]), owed)
    other = dataclasses.replace(ORDER, subspace="a/b", round=1)
    assert read(thin, thin.sent(other, trained([0, 0, 2, 0], [0, 0]), owed))["a"] == [[0, 0], [2, 0]]
    plain, arrays = trees.flatten(owed)  # any name of a subspace can be kept
    owed = trees.restore(plain, arrays)
    again = dataclasses.replace(ORDER, round=2)
    assert read(thin, thin.sent(again, trained([0, 0, 0, 0.5], [0, 0]), owed))["a"] == [[0, 1], [0, 0]]
    later = dataclasses.replace(ORDER, stage=1)
    assert read(thin, thin.sent(later, trained([0, 0, 0, 0.25], [0, 0]), owed))["a"] == [[0, 0], [0, 0.25]]
    assert [name for name, _ in owed["subspaces"]] == ["0"]


def test_factors_that_take_turns_keep_what_each_is_owed():
    thin, owed = Thin("float32", 0.01), {}
    thin.sent(dataclasses.replace(ORDER, frozen=["a"]), {"b": np.array([3, 2], np.float32)}, owed)
    thin.sent(dataclasses.replace(ORDER, frozen=["b"]), {"a": trained([1, 4, 0, 0], [0, 0])["a"]}, owed)
    assert {n: t.tolist() for n, t in owed["subspaces"][0][1]} == {"a": [[1, 0], [0, 0]], "b": [0, 2]}


def test_a_client_whose_rank_fell_owes_what_is_left_of_its_columns():
    thin, owed = Thin("float32", 0.01), {}
    thin.sent(ORDER, trained([1, 9, 3, 4], [0, 0]), owed)
    fewer = dataclasses.replace(ORDER, tensors={"b": np.zeros(2, np.float32), "a": np.zeros((1, 2), np.float32)})
    thin.sent(fewer, {"a": np.zeros((1, 2), np.float32), "b": np.array([0.5, 0], np.float32)}, owed)
    assert {n: t.tolist() for n, t in owed["subspaces"][0][1]} == {"a": [[0, 0]], "b": [0.5, 0]}  # 3 and 4 are gone


def test_a_client_whose_rank_has_grown_owes_nothing_of_its_new_columns():
    fewer = dataclasses.replace(ORDER, tensors={"b": np.zeros(2, np.float32), "a": np.zeros((1, 2), np.float32)})
    thin, owed = Thin("float32", 0.01), {}
    thin.sent(fewer, {"a": np.array([[1, 9]], np.float32), "b": np.array([0.5, 0], np.float32)}, owed)
    thin.sent(ORDER, trained([0, 0, 3, 4], [0, 0]), owed)  # of 4, the largest, nothing is owed; rows are not repeated
    assert {n: t.tolist() for n, t in owed["subspaces"][0][1]} == {"a": [[1, 0], [3, 0]], "b": [0.5, 0]}


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_left_out_unseen(odd):
    owed: dict = {}
    with pytest.raises(FCITError, match=r"not finite; lower training\.lr"):
        Thin("float32", 0.5).sent(ORDER, trained([1, 2, odd, 4], [5, 6]), owed)
    assert owed == {}


def test_without_feedback_nothing_is_kept():
    owed: dict = {}
    Thin("int8", feedback=False).sent(ORDER, trained([1, 2, 3, 4], [5, 6]), owed)
    assert owed == {}


# ---------------------------------------------------------------------- bytes and configurations


def test_few_numbers_are_named_by_index_and_many_by_bit():
    order = dataclasses.replace(ORDER, tensors={"w": np.zeros(1000, np.float32)})
    moved = {"w": np.arange(1000, dtype=np.float32)}
    few, many = Thin("int8", 0.01).sent(order, moved, {}), Thin("int8", 0.1).sent(order, moved, {})
    assert {n: t.nbytes for n, t in few.items()} == {"thin/values": 10, "thin/scales": 4, "thin/indices": 40}
    assert {n: t.nbytes for n, t in many.items()} == {"thin/values": 100, "thin/scales": 8, "thin/mask": 125}
    assert few["thin/indices"].tolist() == list(range(990, 1000))


def test_an_order_of_int8_is_short_in_what_is_trained_only():
    tensors = {"w": np.linspace(-1, 1, 640, dtype=np.float32).reshape(64, 10), "extra/x": np.ones(64, np.float32)}
    order = dataclasses.replace(ORDER, tensors=tensors)
    content = codec.encode(order, "int8")
    assert sum(len(a.data) for a in content.array_records["tensors"].values()) == 640 + 2 * 10 + 2 * 64
    back = codec.decode(content, TrainOrder, writable=True)
    assert back.tensors["w"].shape == (64, 10)
    assert np.abs(back.tensors["w"] - tensors["w"]).max() <= 0.5 / 127 * 1.01
    assert back.tensors["extra/x"].tolist() == [1] * 64
    broken = dataclasses.replace(ORDER, tensors={"w": np.array([np.inf], np.float32)})
    with pytest.raises(CodecError, match="not finite"):
        codec.encode(broken, "int8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("federation: {wire: float32}", None),
        ("federation: {wire: int8}", Thin("int8")),
        ("federation: {top_k: 0.1}", Thin("float32", 0.1)),
        ("{federation: {wire: bfloat16}, factors: svd}", Thin("bfloat16", feedback=False)),
        ("{federation: {wire: bfloat16}, privacy: {secure_aggregation: 'on'}}", None),
        ("{federation: {wire: int8}, setting: centralised, method: finetune}", None),
    ],
)
def test_which_runs_send_thin_updates(text, expected):
    assert Thin.of(parse_text(text, "test"), "") == expected
    assert Thin.of(parse_text(text, "test"), "all") is None


# ---------------------------------------------------------------------- whatever is sent


def sound(wire: str, top_k: float | None) -> dict[str, np.ndarray]:
    return Thin(wire, top_k).sent(ORDER, trained([1, 5, -4, 3], [2, 3]), {})


def changed(wire: str, top_k: float | None, **tensors: object) -> dict[str, np.ndarray]:
    """A sound update with other tensors; None: without."""
    named = {f"thin/{name}": tensor for name, tensor in tensors.items()}
    return {n: t for n, t in (sound(wire, top_k) | named).items() if t is not None}


FORGED = {
    "whole tensors": (("int8", None), trained([1, 2, 3, 4], [5, 6]), "is sent whole"),
    "nothing": (("int8", None), {}, "are not thin/scales, thin/values"),
    "one more": (("int8", None), changed("int8", None, mask=np.zeros(1, np.uint8)), "are not thin/scales"),
    "no scales": (("int8", None), changed("int8", None, scales=None), "first: 'thin/scales'"),
    "numbers for codes": (("int8", None), changed("int8", None, values=np.zeros(6, np.float32)), "values is float32"),
    "too many codes": (("int8", None), changed("int8", None, values=np.zeros(7, np.int8)), r"demands int8\(6,\)"),
    "code -128": (("int8", None), changed("int8", None, values=np.full(6, -128, np.int8)), "codes below -127"),
    "scale nan": (("int8", None), changed("int8", None, scales=np.array([np.nan], np.float32)), "not finite"),
    "scale inf": (("int8", None), changed("int8", None, scales=np.array([np.inf], np.float32)), "not finite"),
    "scale below 0": (("int8", None), changed("int8", None, scales=np.array([-1], np.float32)), "negative"),
    "scales of rows": (("int8", None), changed("int8", None, scales=np.ones((1, 1), np.float32)), "scales is"),
    "bit beyond": (("float32", 0.5), changed("float32", 0.5, mask=np.array([0b11000001], np.uint8)), "ascending ones"),
    "too many bits": (("float32", 0.5), changed("float32", 0.5, mask=np.array([0b11110000], np.uint8)), "3 ascending"),
    "no bit": (("float32", 0.5), changed("float32", 0.5, mask=np.zeros(1, np.uint8)), "3 ascending"),
    "long mask": (("float32", 0.5), changed("float32", 0.5, mask=np.zeros(2, np.uint8)), r"demands uint8\(1,\)"),
    "mask for index": (("float32", 0.5), changed("float32", 0.5, indices=np.zeros(3, np.uint32)), "are not thin/mask"),
}


def test_what_is_not_as_the_order_demands_is_refused():
    def check(case):
        (wire, top_k), tensors, reason = case
        with pytest.raises(CodecError, match=reason):
            Thin(wire, top_k).restored(ORDER, update(tensors))

    check_each(FORGED, check)


def test_indices_are_ascending_unique_and_in_range():
    order = dataclasses.replace(ORDER, tensors={"w": np.zeros(1000, np.float32)})
    thin = Thin("float32", 0.002)
    values = np.ones(2, np.float32)
    good = {"thin/values": values, "thin/indices": np.array([0, 999], np.uint32)}
    assert thin.restored(order, update(good)).tensors["w"].sum() == 2
    for bad in ([3, 3], [4, 3], [0, 1000], [0, 2**32 - 1]):
        with pytest.raises(CodecError, match="2 ascending ones below 1,000"):
            thin.restored(order, update(good | {"thin/indices": np.array(bad, np.uint32)}))


def test_blocks_on_the_wire_are_checked_as_they_are_read():
    content = codec.encode(dataclasses.replace(ORDER, tensors={"w": np.ones(2, np.float32)}), "int8")
    head, arrays = codec.take_apart(content)
    (key, array), *_ = arrays.items()
    for data in (b"\x80\x01" + array.data[2:], array.data[:2] + b"\x80\x7f", array.data[:2] + b"\x80\xbf"):
        forged = codec.put_together(head, {key: dataclasses.replace(array, data=data)})
        with pytest.raises(CodecError, match="codes or scales"):
            codec.decode(forged, TrainOrder)
