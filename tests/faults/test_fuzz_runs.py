"""Run folders, checkpoints and tensor files of any content: one sentence of ours, never a traceback."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcit import config as configuration
from fcit.errors import RunError
from fcit.io import trees
from fcit.io.files import read_json, read_tensors
from fcit.methods.base import ServerState
from fcit.runs.folder import RunDir
from server import checkpoint
from tests.helpers.cases import check_each
from tests.helpers.odd import MANY, ODD_JSON, peak, texts, values


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
