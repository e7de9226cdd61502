"""Random and hostile input: one sentence of ours, never a traceback, never memory beyond what was sent."""

import dataclasses
import io
import json
import struct
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fcit import config as configuration
from fcit.bench import file as bench_file
from fcit.config import RunConfig, site
from fcit.data import formats as reading
from fcit.data.images import opening as opened
from fcit.data.spec import read_spec
from fcit.errors import CodecError, ConfigError, DataError, RunError
from fcit.federation import codec
from fcit.federation import messages as wire
from fcit.io import bounded, trees
from fcit.io.files import read_json, read_tensors
from fcit.methods.base import ServerState
from fcit.runs.folder import RunDir
from server import checkpoint
from tests.helpers.cases import check_each

MANY = settings(
    derandomize=True,
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

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

#: Texts with what parsers stumble over: null characters, halves of surrogate pairs, signs of YAML and paths.
texts = st.text(max_size=20) | st.sampled_from(
    [
        "",
        "\0",
        "\ud800",
        "a" * 5000,
        "~nobody-at-all/x",
        "../..",
        "/dev/zero",
        "*a",
        "&a",
        "<<",
        "!!int x",
        "./a.py:B",
        "0x_",
        "2024-99-99",
        "1e999",
        "null",
        "no.module.of.this.name:X",
        ":",
        "a:b",
        ".:.",
        "\u2028",
    ]
)
numbers = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 10**400, 10**4000, -0.0])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def nested(levels: int, opening: str = "[", closing: str = "]") -> str:
    return opening * levels + closing * levels


#: Texts of JSON that no generator of values makes.
ODD_JSON = [
    "",
    "{",
    "NaN",
    "Infinity",
    "[-Infinity]",
    '{"a": 1, "a": 2}',
    nested(100_000),
    nested(300),
    '{"a":' * 5000,
    "9" * 5000,
    "1e999",
    '"\\ud800"',
    "\ufeff{}",
    "[" + "1," * 1000 + "]",
    nested(5000, '{"a":[', "]}"),
]


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


def peak(work) -> int:
    """Bytes that Python and numpy held at once while working."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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


# ---------------------------------------------------------------------- configurations


def laughs(merge: bool = False) -> str:
    """Ten lines of aliases that stand for ten thousand million values."""
    lines = ["l0: &l0 {lol: lol}"]
    for n in range(1, 11):
        inner = ", ".join([f"*l{n - 1}"] * 10)
        lines.append(f"l{n}: &l{n} {{<<: [{inner}]}}" if merge else f"l{n}: &l{n} [{inner}]")
    return "\n".join(lines)


ODD_YAML = [
    laughs(),
    laughs(merge=True),
    "method: &a {name: disco, x: *a}",
    "a: &a [*a]",
    nested(700),
    "a: " + nested(200),
    "- " * 3000,
    "? " * 3000,
    "a: 2024-99-99",
    "seed: !!int x",
    "seed: 0x_",
    "seed: !!int ''",
    "seed: !!float ''",
    "seed: !!bool x",
    "x: !!timestamp x",
    "seed: " + "9" * 5000,
    "seed: 0x" + "f" * 9000,
    "? [a]\n: b",
    "? {a: b}\n: c",
    "!!python/object/apply:os.abort []",
    "!!set {a, b}",
    "null: 1",
    "1: 2",
    "2024-01-01: 2",
    "true: 1",
    "",
    "[]",
    "5",
    "--- a\n--- b",
    "%YAML 9.9\n--- a",
    "a: b: c",
    "\0",
    "\ufeffseed: 1",
    "x: =",
    "<<: 3",
    "extends: [1]",
    'extends: "\\0"',
    "extends: " + "x" * 5000,
    "method: {1: 2}",
    "method: {name: [1]}",
    "method: []",
    "federation: []",
    'benchmark: "a\\0.yaml"',
    "benchmark: " + "x" * 5000 + ".yaml",
    "data_root: ~nobody-at-all/x",
    "seed: .nan",
    "training: {lr: .inf}",
    'data_root: "\\ud800"',
    'output: "a\\0b"',
    "trackers: [[1]]",
    "x: " + "y" * 300_000,
    "name: !!binary aGVsbG8=",
    "method: ./nothing.py:X",
    "federation: {clients: 1e400}",
    "max_bad_share: 1.0",
    "a." * 5000 + "b",
]


def loaded(work) -> object:
    try:
        return work()
    except ConfigError as error:
        assert len(str(error)) < 20_000
        return None


def test_configurations_that_are_odd(tmp_path):
    path = tmp_path / "run.yaml"

    def check(text: str) -> None:
        path.write_bytes(text.encode("utf-8"))
        for reader in (configuration.load, site.load, lambda p: bench_file.read(p), lambda p: read_spec(str(p))):
            loaded(lambda reader=reader: reader(path))

    check_each(ODD_YAML, check)


@pytest.mark.parametrize("merge", [False, True])
def test_a_few_lines_of_aliases_stay_a_few_lines(tmp_path, merge):
    path = tmp_path / "run.yaml"
    path.write_text(laughs(merge))
    for reader in (configuration.load, site.load, lambda p: bench_file.read(p), lambda p: read_spec(str(p))):
        held = peak(lambda reader=reader: loaded(lambda: reader(path)))
        assert held < 2_000_000
    with pytest.raises(ConfigError, match="more than 50,000 values"):
        configuration.load(path)


def test_overrides_that_are_odd():
    places = ("{}", "seed={}", "method={}", "data_root={}", "{}=1", "training.{}=1")

    def check(override: str) -> None:
        loaded(lambda: configuration.resolve({}, Path.cwd(), "config", [override]))

    check_each([place.replace("{}", text) for text in ODD_YAML for place in places], check)


keys = st.sampled_from([*RunConfig.model_fields, "extends"]) | texts
sections = st.dictionaries(
    keys, values | st.dictionaries(st.sampled_from(["clients", "lr", "name", "rank"]) | texts, values), max_size=4
)


@settings(MANY, max_examples=30)
@given(sections)
def test_any_mapping_as_a_configuration(raw):
    config = loaded(lambda: configuration.resolve(raw, Path.cwd(), "config"))
    if config is not None:
        assert configuration.parse(bounded.parse_yaml(configuration.dump(config))) == config


@MANY
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_file_as_a_configuration(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    for reader in (configuration.load, site.load, lambda p: bench_file.read(p), lambda p: read_spec(str(p))):
        loaded(lambda reader=reader: reader(path))


@MANY
@given(st.dictionaries(st.sampled_from(sorted(site.Site.model_fields)) | texts, values, max_size=4))
def test_any_mapping_as_a_site(tmp_path, raw):
    path = tmp_path / "SITE.yaml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=False))
    loaded(lambda: site.load(path))


def test_files_without_end_are_not_read_as_configurations(tmp_path):
    for reader in (configuration.load, site.load, lambda p: read_spec(str(p))):
        (tmp_path / "run.yaml").unlink(missing_ok=True)
        (tmp_path / "run.yaml").symlink_to("/dev/zero")
        assert loaded(lambda reader=reader: reader(tmp_path / "run.yaml")) is None
        (tmp_path / "run.yaml").unlink()
        (tmp_path / "run.yaml").write_text("a" * (bounded.YAML_LENGTH + 1))
        assert loaded(lambda reader=reader: reader(tmp_path / "run.yaml")) is None


# ---------------------------------------------------------------------- records and images


def read(work) -> object:
    try:
        return work()
    except DataError as error:
        assert len(str(error)) < 5000
        return None


def usable(records: object) -> None:
    """Whatever is let through can be written, and its image asked for."""
    for record in records or []:
        json.dumps(asdict(record), ensure_ascii=False).encode("utf-8")
        for image in record.images:
            with pytest.raises(DataError):
                opened.image_path(Path("/nowhere"), image)


rows = st.fixed_dictionaries(
    {},
    optional={
        "image": values,
        "question_id": values,
        "text": values,
        "answer": values,
        "answer_bbox": values,
        "conversations": values
        | st.lists(
            st.fixed_dictionaries({}, optional={"from": st.sampled_from(["human", "gpt"]) | values, "value": values}),
            max_size=3,
        ),
    },
)


@MANY
@given(st.lists(rows | values, max_size=4) | values)
def test_any_json_as_records(tmp_path, content):
    path = tmp_path / "any.json"
    path.write_text(json.dumps(content))
    usable(read(lambda: reading.read_train(path)))
    usable(read(lambda: reading.read_test(path)))
    usable(read(lambda: reading.read_test(path, path)))
    survey = read(lambda: reading.read_train_file(path))
    if survey is not None:
        assert len(survey.records) == len(content)
        assert len(survey.sentences(10)) == min(10, survey.records.count(None))


GOOD = '{"image": "a", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}'


def test_records_that_are_odd(tmp_path):
    frames = ["<>", "[<>]", '[{"image": <>}]', f"[{GOOD}, <>]", '{"annotations": <>}']
    path = tmp_path / "odd.json"
    (tmp_path / "test.json").write_text('[{"question_id": 1, "image": "a", "text": "b"}]')

    def check(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        for reader in (reading.read_train, reading.read_train_file, reading.read_test):
            read(lambda reader=reader: reader(path))
        usable(read(lambda: reading.read_test(tmp_path / "test.json", path)))

    check_each([frame.replace("<>", text) for text in ODD_JSON for frame in frames], check)


@MANY
@given(st.binary(max_size=80))
def test_any_bytes_as_records(tmp_path, content):
    path = tmp_path / "any.json"
    path.write_bytes(content)
    read(lambda: reading.read_train(path))


def test_many_bad_records_are_told_quickly(tmp_path):
    path = tmp_path / "many.json"
    path.write_text("[\n" + ",\n".join(["5"] * 200_000) + "\n]")
    survey = reading.read_train_file(path)
    assert len(survey.problems) == 200_000
    assert survey.sentences(2)[1].startswith(f"{path}, line 3, record 1:")


def pictures() -> dict[str, bytes]:
    """A small image in every format that is read."""
    found = {}
    for kind in opened.FORMATS:
        buffer = io.BytesIO()
        Image.new("RGB", (20, 10), (9, 90, 200)).save(buffer, kind)
        found[kind] = buffer.getvalue()
    return found


PICTURES = pictures()


def test_every_format_is_read(tmp_path):
    def check(content: bytes) -> None:
        (tmp_path / "x").write_bytes(content)
        assert opened.open_image(tmp_path, "x").size == (20, 10)

    check_each(PICTURES, check)


@MANY
@given(st.sampled_from(opened.FORMATS), st.integers(0, 5000), st.binary(min_size=1, max_size=8), st.booleans())
def test_any_change_of_an_image(tmp_path, kind, at, noise, early):
    whole = PICTURES[kind]
    at %= min(len(whole), 64) if early else len(whole)  # headers claim sizes
    (tmp_path / "x").write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    held = peak(lambda: read(lambda: opened.open_image(tmp_path, "x")))
    assert held < 5_000_000  # of Python's own; Pillow's pixels are bounded by the header check


# ---------------------------------------------------------------------- run folders


def ran(work) -> object:
    try:
        return work()
    except RunError as error:
        assert len(str(error)) < 5000
        return None


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run folder with one small checkpoint."""
    run = RunDir.create(tmp_path_factory.mktemp("runs"), "run", configuration.dump(configuration.parse({})), {})
    run.event("start", stages=1)
    state = ServerState(
        subspaces={"0": {"a": np.ones(2, np.float32)}},
        assigned={(0, "s"): "0"},
        turns={"0": 1},
    )
    state.memory = {"cache": [np.zeros(3)], "deep": {"x": [1, {"y": None}]}}
    state.optimizers = {"a": {"m": np.zeros(2)}}
    checkpoint.save(run, state, checkpoint.Progress())
    return run.path


def test_the_checkpoint_that_is_mutated_is_whole(saved):
    assert checkpoint.load(RunDir(saved)) is not None


@MANY
@given(st.data())
def test_checkpoints_of_any_content(saved, draw):
    file = checkpoint.complete(RunDir(saved))[0] / "state.json"
    before = file.read_text()
    content = json.loads(before)
    where, depth = content, draw.draw(st.integers(0, 3))
    for _ in range(depth):
        inner = [v for v in where.values() if isinstance(v, dict) and v]
        where = draw.draw(st.sampled_from(inner)) if inner else where
    where[draw.draw(st.sampled_from(sorted(where)))] = draw.draw(values)
    file.write_text(json.dumps(content))
    try:
        ran(lambda: checkpoint.load(RunDir(saved)))
    finally:
        file.write_text(before)


def test_run_files_that_are_odd(saved, tmp_path):
    path, run = tmp_path / "odd.json", RunDir(tmp_path)
    file = checkpoint.complete(RunDir(saved))[0] / "state.json"
    before = file.read_text()

    def check(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        ran(lambda: read_json(path))
        for content in (text, before.replace('"memory": {', f'"x": {text or 0}, "memory": {{', 1)):
            file.write_text(content, encoding="utf-8")
            ran(lambda: checkpoint.load(RunDir(saved)))
        run.events.write_text(f'{{"event": "start"}}\n{text}\n', encoding="utf-8")
        ran(lambda: list(run.read_events()))

    try:
        check_each(ODD_JSON, check)
    finally:
        file.write_text(before)


@MANY
@given(st.lists(st.binary(max_size=30), max_size=3))
def test_events_of_any_bytes(tmp_path, lines):
    run = RunDir(tmp_path)
    run.events.write_bytes(b'{"event": "start"}\n' + b"\n".join(lines) + b"\n")
    ran(lambda: list(run.read_events()))


@MANY
@given(values, st.dictionaries(texts, st.just(np.zeros(1)), max_size=3))
def test_trees_of_any_kind(plain, tensors):
    try:
        trees.restore(plain, tensors)
        trees.restore({"$tensor": plain}, tensors)
    except (KeyError, TypeError, ValueError):
        pass  # what `restore` and `checkpoint.load` say they raise and catch


def tensor_file(path: Path, head: object, payload: bytes = b"", length: int | None = None) -> Path:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + payload)
    return path


def one(**changes: object) -> dict:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


LIES = {
    "huge": (one(shape=[10**15], data_offsets=[0, 4 * 10**15]), b"1234"),
    "overflows": (one(shape=[2**63, 2**63]), b"1234"),
    "empty and huge": (one(shape=[0, 2**62, 4], data_offsets=[0, 0]), b""),
    "dimensions": (one(shape=[1] * 100), b"1234"),
    "negative": (one(shape=[-1]), b"1234"),
    "offsets": (one(data_offsets=[4, 0]), b"1234"),
    "beyond": (one(data_offsets=[0, 400]), b"1234"),
    "unknown": (one(dtype="O"), b"1234"),
    "bfloat16": (one(dtype="BF16", shape=[2]), b"1234"),
    "float8": (one(dtype="F8_E4M3", shape=[4]), b"1234"),
    "overlap": ({"a": one()["a"], "b": one()["a"]}, b"1234"),
    "deep": (b"[" * 100_000, b""),
    "a list": ([1], b""),
    "nothing": (b"", b""),
    **{f"a head of {length} bytes": (one(), b"1234", length) for length in (2**40, 2**63, 2**64 - 1)},
}


def test_tensor_files_that_lie(tmp_path):
    def check(content: tuple) -> None:
        path = tensor_file(tmp_path / "t.safetensors", *content)
        with pytest.raises(RunError):
            read_tensors(path)
        assert peak(lambda: ran(lambda: read_tensors(path))) < 1_000_000

    check_each(LIES, check)


@MANY
@given(st.binary(max_size=120))
def test_tensor_files_of_any_bytes(tmp_path, content):
    path = tmp_path / "any.safetensors"
    path.write_bytes(content)
    ran(lambda: read_tensors(path))
