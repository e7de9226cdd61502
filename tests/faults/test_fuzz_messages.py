"""Hostile messages: one sentence of ours, never a traceback, never memory beyond what was sent."""

import dataclasses
import json

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fcit.errors import CodecError
from fcit.federation import codec
from fcit.federation import messages as wire
from tests.helpers.cases import check_each
from tests.helpers.odd import MANY, ODD_JSON, peak, values

UPDATE = wire.ClientUpdate(
    stage=0,
    round=1,
    client=3,
    shard="ab12",
    subspace="0",
    examples=40,
    steps=3,
    loss=0.5,
    seconds=1.5,
    tensors={"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)},
)


# ---------------------------------------------------------------------- codec


def message(head: str, arrays: dict[str, Array] | None = None) -> RecordDict:
    return RecordDict({"head": ConfigRecord({"json": head}), "tensors": ArrayRecord(arrays or {})})


def decoded(content: RecordDict, kind: type = wire.ClientUpdate) -> object:
    """A record, or None for a message that was refused as it should be."""
    try:
        return codec.decode(content, kind, reply=True)
    except CodecError as error:
        assert len(str(error)) < 2000
        return None


HEAD, ARRAYS = codec.take_apart(codec.encode(UPDATE))


def test_the_message_that_is_mutated_is_whole():
    assert decoded(message(HEAD, ARRAYS)) is not None


@MANY
@given(
    values,
    st.sampled_from(
        [
            wire.ClientUpdate,
            wire.TrainOrder,
            wire.SiteScores,
            wire.Answers,
            wire.Probe,
            wire.MaskedUpdate,
            wire.OpenedShares,
        ]
    ),
)
def test_codec_any_head(value, kind):
    assert decoded(message(json.dumps(value)), kind) is None


def test_codec_odd_heads():
    def check(text: str) -> None:
        assert decoded(message(text)) is None
        for place in ('"how": {}', '"loss": 0.5', '"shard": "ab12"'):
            assert place in HEAD
            key = place.split(":")[0]
            value = f'{{"x": {text}}}' if "how" in key else text
            record = decoded(message(HEAD.replace(place, f"{key}: {value}"), ARRAYS))
            # What is read can be written: a checkpoint or an event takes it.
            if record is not None:
                json.dumps(record.how, indent=1).encode()

    check_each(ODD_JSON, check)


@MANY
@given(st.data())
def test_codec_fields_of_any_kind(draw):
    head = json.loads(HEAD)
    name = draw.draw(st.sampled_from(sorted(head["fields"])))
    head["fields"][name] = draw.draw(values)
    record = decoded(message(json.dumps(head), ARRAYS))
    if record is not None:
        plain = json.dumps({f: getattr(record, f) for f in head["fields"]}, indent=1, ensure_ascii=False)
        json.loads(plain.encode("utf-8"))
        assert np.isfinite(record.loss)
        assert np.isfinite(record.seconds)


@MANY
@given(st.data())
def test_codec_layouts_of_any_kind(draw):
    layout = json.loads(HEAD)["tensors"]
    name = draw.draw(st.sampled_from(sorted(layout)))
    part = draw.draw(st.sampled_from([None, 0, 1, 2]))
    if part is None:
        layout[name] = draw.draw(values)
    else:
        layout[name][part] = draw.draw(values)
    record = decoded(message(json.dumps(json.loads(HEAD) | {"tensors": layout}), ARRAYS))
    assert record is None or {n: t.nbytes for n, t in record.tensors.items()} == {"a": 24, "b": 16}


ROOM = 300_000  # what decoding anything takes: type hints, messages
(PIECE,) = ARRAYS


@MANY
@given(st.binary(max_size=400), st.integers(0, 200), st.sampled_from(["flip", "cut", "insert", "replace"]))
def test_codec_mutated_arrays(noise, at, how):
    whole = ARRAYS[PIECE].data
    at %= len(whole)
    changed = {
        "flip": whole[:at] + bytes(b ^ 0x5A for b in whole[at : at + 3]) + whole[at + 3 :],
        "cut": whole[:at],
        "insert": whole[:at] + noise + whole[at:],
        "replace": noise,
    }[how]
    array = Array(dtype="float32", shape=(2, 3), stype="raw", data=changed)
    records = []
    held = peak(lambda: records.append(decoded(message(HEAD, {PIECE: array}))))
    assert held < 4 * len(changed) + ROOM
    assert (records[0] is not None) == (len(changed) == len(whole))


def test_codec_memory_of_a_large_message():
    text = HEAD.replace('"how": {}', '"how": {"x": [' + "[]," * 300_000 + "[]]}")
    assert peak(lambda: decoded(message(text, ARRAYS))) < 40 * len(text)
    content = codec.encode(dataclasses.replace(UPDATE, tensors={"a": np.zeros(1_000_000, np.float32)}))
    read = []
    assert peak(lambda: read.append(decoded(content))) < ROOM
    assert read[0].tensors["a"].nbytes == 4_000_000


def test_codec_heads_have_a_size(monkeypatch):
    monkeypatch.setattr(codec, "HEAD_OF_REPLY", 100)
    assert len(HEAD) > 100
    assert decoded(message(HEAD, ARRAYS)) is None
