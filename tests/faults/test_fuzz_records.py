"""Hostile records and images: one sentence of ours with file and record, never a traceback."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcit.data import formats as reading
from fcit.data.images import opening as opened
from fcit.errors import DataError
from tests.helpers.cases import check_each
from tests.helpers.odd import MANY, ODD_JSON, peak, values


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
