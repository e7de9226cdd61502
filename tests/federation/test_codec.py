import dataclasses
import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fcit.errors import CodecError
from fcit.federation import codec, messages

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([0.1], dtype=np.float64),
    "c": np.zeros((0, 4), dtype=np.float32),
}
EXAMPLES = [
    messages.Name(client=7),
    messages.DescribeOrder(config="seed: 0", client=3, shard="ab12", tasks=[1, 2]),
    messages.Description(client=3, shard="ab12", count=7, tensors=TENSORS),
    messages.TrainOrder(
        config="seed: 0", stage=0, round=1, client=3, shard="ab12", tasks=[1], subspace="0", tensors=TENSORS
    ),
    messages.TrainOrder(
        config="seed: 0",
        stage=0,
        round=1,
        client=-1,
        shard="all",
        tasks=[0, 1],
        subspace="0",
        tensors=TENSORS,
        budget=12,
        offset=24,
    ),
    messages.ClientUpdate(
        stage=0,
        round=1,
        client=3,
        shard="ab12",
        subspace="0",
        examples=7,
        steps=1,
        loss=0.5,
        seconds=1.25,
        tensors=TENSORS,
    ),
    messages.KeysOrder(config="seed: 0", stage=0, round=1, client=3, session="0-1-ab"),
    messages.PublicKeys(client=3, session="0-1-ab", tensors=TENSORS),
    messages.ShareOrder(config="seed: 0", client=3, session="0-1-ab", members=[4, 3], tensors=TENSORS),
    messages.SealedShares(client=3, session="0-1-ab", receivers=[4, 3], tensors=TENSORS),
    messages.MaskOrder(
        config="seed: 0",
        stage=0,
        round=1,
        client=3,
        shard="ab12",
        tasks=[1],
        subspace="0",
        tensors=TENSORS,
        session="0-1-ab",
        members=[3, 4],
        most=40,
        room=2,
        clip=0.5,
    ),
    messages.MaskedUpdate(
        stage=0,
        round=1,
        client=3,
        shard="ab12",
        subspace="0",
        session="0-1-ab",
        seconds=1.25,
        tensors=TENSORS,
    ),
    messages.UnmaskOrder(config="seed: 0", client=3, session="0-1-ab", alive=[3], senders=[3, 4], tensors=TENSORS),
    messages.OpenedShares(client=3, session="0-1-ab", owners=[3], unreadable=[4], tensors=TENSORS),
    messages.EvaluateOrder(
        config="seed: 0",
        dataset="iconqa",
        first=0,
        last=64,
        task="",
        names=["0"],
        knowledge={"names": ["0"], "tau": 0.9},
        tensors=TENSORS,
    ),
    messages.Answers(dataset="iconqa", first=64, texts=["3", "naïve ☃"], seconds=0.5, tensors=TENSORS),
    messages.Answers(dataset="iconqa", first=0, texts=[], seconds=0.0),
    messages.PersonalOrder(
        config="seed: 0",
        stage=0,
        round=1,
        client=3,
        shard="ab12",
        tasks=[0, 2],
        subspace="0",
        task="",
        names=["0"],
        knowledge={"names": ["0"]},
        tensors=TENSORS,
        alone=2,
    ),
    messages.PersonalScores(client=3, shard="ab12", scores={"global": 71.5}, count=4, seconds=1.5),
    messages.ScoreOrder(config="seed: 0", client=2, stage=1, names=["0"], knowledge={"names": ["0"]}, tensors=TENSORS),
    messages.SiteScores(client=2, scores={"0": 71.5}, counts={"0": 40}, seconds=1.5),
    messages.ProbeOrder(config="seed: 0"),
    messages.Probe(shapes={"x": [2, 3]}, identity_width=128, versions={"torch": "2"}, tensors=TENSORS),
]
UPDATE = next(example for example in EXAMPLES if isinstance(example, messages.ClientUpdate))


def test_every_record_type_is_tried():
    kinds = {v for v in vars(messages).values() if dataclasses.is_dataclass(v)}
    assert kinds == {type(example) for example in EXAMPLES}


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda r: type(r).__name__)
def test_round_trip(record):
    back = codec.decode(codec.encode(record), type(record))
    plain = [f.name for f in dataclasses.fields(record) if f.name != "tensors"]
    assert [getattr(back, n) for n in plain] == [getattr(record, n) for n in plain]
    sent, got = getattr(record, "tensors", {}), getattr(back, "tensors", {})
    assert list(got) == list(sent)
    for name in sent:
        assert (got[name].dtype, got[name].shape) == (sent[name].dtype, sent[name].shape)
        assert np.array_equal(got[name], sent[name])


def test_not_contiguous():
    tensor = np.arange(6, dtype=np.float32).reshape(2, 3).T
    back = codec.decode(
        codec.encode(messages.Description(client=0, shard="s", count=1, tensors={"a": tensor})), messages.Description
    )
    assert np.array_equal(back.tensors["a"], tensor)


def shortened(values) -> np.ndarray:
    tensor = np.array(values, dtype=np.float32)
    content = codec.encode(messages.Description(client=0, shard="s", count=1, tensors={"a": tensor}), "bfloat16")
    back = codec.decode(content, messages.Description).tensors["a"]
    assert back.dtype == np.float32
    assert back.shape == tensor.shape
    return back


def test_bfloat16_error_bound():
    powers = np.float32(10.0) ** np.arange(-20, 20).repeat(25)
    values = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32) * powers
    # 8 significant bits, rounded to nearest
    assert (np.abs(shortened(values) - values) <= np.abs(values) * 2**-8).all()


def test_bfloat16_is_exact_where_it_can_be():
    values = [0.0, -0.0, 1.0, -1.5, 0.0078125, 2.0**100, 1 + 2**-7]
    back = shortened(values)
    assert back.tolist() == values
    assert np.signbit(back[1])


def test_bfloat16_ties_go_to_even():
    assert shortened([1 + 2**-8, 1 + 3 * 2**-8]).tolist() == [1.0, 1 + 4 * 2**-8]


def test_bfloat16_keeps_infinity_and_nan():
    assert shortened([np.inf, -np.inf]).tolist() == [np.inf, -np.inf]
    # a NaN with any payload must not become a number, or the check for finite values is passed by
    nans = np.array([0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint32).view(np.float32)
    assert np.isnan(shortened(nans)).tolist() == [True] * 4


def test_bfloat16_halves_float32_only():
    tensors = {"a": np.zeros(500, np.float32), "b": np.zeros(500, np.float64)}
    content = codec.encode(messages.Description(client=0, shard="s", count=1, tensors=tensors), "bfloat16")
    (piece,) = content.array_records["tensors"].values()
    assert len(piece.data) == 500 * 2 + 500 * 8


def test_size_counts_payload_and_head():
    small = codec.size(
        codec.encode(messages.Description(client=0, shard="s", count=1, tensors={"a": np.zeros(100, np.float32)}))
    )
    large = codec.size(
        codec.encode(messages.Description(client=0, shard="s", count=1, tensors={"a": np.zeros(300, np.float32)}))
    )
    assert large - small == 800
    short, long = (codec.size(codec.encode(messages.ProbeOrder(config="x" * n))) for n in (0, 1000))
    assert long - short == 1000


def test_another_type():
    with pytest.raises(CodecError, match="expected ClientUpdate, got 'ProbeOrder'"):
        codec.decode(codec.encode(messages.ProbeOrder(config="")), messages.ClientUpdate)


def forged(**changes) -> RecordDict:
    """An honest update with some keys of its head replaced."""
    content = codec.encode(UPDATE)
    head = json.loads(content.config_records["head"]["json"])
    content.config_records["head"]["json"] = json.dumps({**head, **changes})
    return content


def fields(**changes) -> dict:
    own = {f.name: getattr(UPDATE, f.name) for f in dataclasses.fields(UPDATE) if f.name != "tensors"}
    return {k: v for k, v in {**own, **changes}.items() if v != "absent"}


@pytest.mark.parametrize(
    "changes",
    [
        {"fields": fields(client="absent")},
        {"fields": fields(surprise=1)},
        {"fields": fields(client="3")},
        {"fields": fields(client=True)},
        {"fields": fields(client=3.0)},
        {"fields": fields(client=None)},
        {"fields": fields(seconds=10**400)},
        {"fields": fields(kept=2**63)},
        {"fields": fields(loss="0.5")},
        {"fields": fields(shard=["ab12"])},
        {"fields": []},
        {"fields": None},
        {"fields": 5},
        {"tensors": None},
        {"tensors": []},
        {"tensors": {"a": ["float32", [2, 3], "000000"]}},
        {"type": None},
    ],
)
def test_forged_heads(changes):
    with pytest.raises(CodecError):
        codec.decode(forged(**changes), messages.ClientUpdate)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "{}"])
def test_unreadable_heads(text):
    content = codec.encode(UPDATE)
    content.config_records["head"]["json"] = text
    with pytest.raises(CodecError):
        codec.decode(content, messages.ClientUpdate)


def test_missing_parts():
    with pytest.raises(CodecError):
        codec.decode(RecordDict(), messages.ClientUpdate)
    head = codec.encode(UPDATE).config_records["head"]
    with pytest.raises(CodecError):
        codec.decode(RecordDict({"head": ConfigRecord(dict(head))}), messages.ClientUpdate)


def test_a_message_of_another_wire_format():
    for wire in (1, 3, "2", None):
        with pytest.raises(CodecError, match="reads 2 only: the server and all sites need one version of fcit"):
            codec.decode(forged(wire=wire), messages.ClientUpdate)


def test_a_message_as_0_1_0_sent_it():
    head = {"type": "Description", "fields": {"client": 0, "shard": "s", "count": 1}, "names": ["a"], "bfloat16": []}
    arrays = ArrayRecord({"a": Array(np.ones(1, np.float32))})
    content = RecordDict({"head": ConfigRecord({"json": json.dumps(head)}), "tensors": arrays})
    with pytest.raises(CodecError, match="wire format 1"):
        codec.decode(content, messages.Description)


def test_tensors_where_none_belong():
    content = codec.encode(messages.Description(client=0, shard="s", count=1, tensors={"a": np.ones(1)}))
    head = json.loads(content.config_records["head"]["json"]) | {"type": "Name", "fields": {"client": 0}}
    content.config_records["head"]["json"] = json.dumps(head)
    with pytest.raises(CodecError, match="Name has no tensors, got 1"):
        codec.decode(content, messages.Name)


def orders() -> list[messages.TrainOrder]:
    """Of four clients: one tensor of all, one of the first two and of the last two, one of each."""
    common = np.ones((2, 3), np.float32)
    of = [np.full(4, n, np.float32) for n in range(2)]
    plain = {"config": "c", "stage": 0, "round": 0, "shard": "s", "tasks": [0], "subspace": "0"}
    return [
        messages.TrainOrder(
            **plain, client=k, tensors={"extra/own": common + k, "common": common, "subspace": of[k // 2]}
        )
        for k in range(4)
    ]


def test_messages_share_the_bytes_of_shared_tensors():
    contents = codec.encode_all(orders())
    pieces = [{name: id(a.data) for name, a in codec.take_apart(content)[1].items()} for content in contents]
    assert [len(p) for p in pieces] == [3, 3, 3, 3]
    assert len({i for p in pieces for i in p.values()}) == 1 + 2 + 4
    assert len(set(pieces[0].values()) & set(pieces[1].values())) == 2
    assert len(set(pieces[1].values()) & set(pieces[2].values())) == 1
    for content, order in zip(contents, orders(), strict=True):
        back = codec.decode(content, messages.TrainOrder)
        assert {n: t.tolist() for n, t in back.tensors.items()} == {n: t.tolist() for n, t in order.tensors.items()}
        assert list(back.tensors) == list(order.tensors)


def test_a_message_has_the_same_size_whatever_is_sent_beside_it():
    """Else the traffic of a resumed round, some of whose updates are there already, would differ."""
    together = [codec.size(content) for content in codec.encode_all(orders())]
    assert together == [codec.size(codec.encode(order)) for order in orders()]


def test_tensors_are_views_of_the_message_unless_they_are_to_be_written_to():
    content = codec.encode(UPDATE)
    (piece,) = content.array_records["tensors"].values()
    view = codec.decode(content, messages.ClientUpdate).tensors["a"]
    assert np.shares_memory(view, np.frombuffer(piece.data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        view[:] = 0
    own = codec.decode(content, messages.ClientUpdate, writable=True).tensors["a"]
    own[:] = 0
    assert view.any()


def test_taken_apart_and_put_together():
    order = messages.TrainOrder(
        config="c",
        stage=0,
        round=0,
        client=1,
        shard="s",
        tasks=[0],
        subspace="0",
        tensors={"x": np.arange(4, dtype=np.float32)},
    )
    again = codec.decode(codec.put_together(*codec.take_apart(codec.encode(order, "bfloat16"))), messages.TrainOrder)
    assert again.tensors["x"].tolist() == [0, 1, 2, 3]
