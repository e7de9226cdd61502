"""Tables of the Hugging Face hub: what cannot be read is told by file and record."""

import json
import random
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, List
from pydantic import ValidationError

from fcit.data import formats
from fcit.data.formats import columns, files, hub, unpack
from fcit.data.formats.files import Form
from fcit.data.images.opening import MAX_IMAGE_BYTES
from fcit.data.spec import DatasetSpec
from fcit.data.store import RecordStore
from fcit.errors import DataError
from tests.helpers.tables import NAMES, ROWS, VQA, embedded, mapped, parquet, picture, saved, split


def rows_with(tmp_path: Path, *, features: Features = VQA, **changed: list) -> Path:
    Dataset.from_dict({**ROWS, **changed}, features=features).to_parquet(tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


GOOD = ROWS["picture"][0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"label": [0, None, 0]}, "'answer' must be text, got None"),
        ({"query": ["a?", None, "c?"]}, "'question' must be text, got None"),
        ({"picture": [GOOD, embedded(b"%!PS-Adobe-3.0 EPSF"), GOOD]}, "an embedded image that is not readable (PNG, "),
        ({"picture": [GOOD, embedded(b""), GOOD]}, "an embedded image that is not readable (PNG, "),
        ({"query": ["a?", "<image><image>?", "c?"]}, None),  # named twice in one turn: there once
        ({"query": ["a?", "x" * 20_001, "c?"]}, "'question' has 20,001 characters"),
    ],
)
def test_problems_are_told_by_file_and_record(changed, said, tmp_path):
    path = rows_with(tmp_path, **changed)
    file = formats.read_train_file(path, Form(columns=NAMES, images=tmp_path))
    if said is None:
        assert not file.problems
        return
    [sentence] = file.sentences(5)
    assert sentence.startswith(f"{path}, record 1: ")
    assert said in sentence
    mapped_ = RecordStore(tmp_path / "records")
    assert mapped_.train(path, Form(columns=NAMES, images=tmp_path)).sentences(5) == [sentence]


def test_a_class_without_a_name_and_a_picture_too_large_are_told(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="column 'y' holds the class -1; there are 2"):
        hub._named({"y": -1}, Features({"y": ClassLabel(names=["a", "b"])}))
    assert hub._named({"y": [1, None]}, Features({"y": List(ClassLabel(names=["a", "b"]))})) == {"y": ["b", None]}
    monkeypatch.setattr(unpack, "MAX_IMAGE_BYTES", 20)
    with pytest.raises(ValueError, match="more than the 20 bytes"):
        unpack.Unpacked(tmp_path, "a").names(picture())
    assert MAX_IMAGE_BYTES > 20


def test_a_picture_in_a_row_needs_a_folder_to_be_unpacked_into(tmp_path):
    file = formats.read_train_file(tmp_path / parquet(tmp_path), Form(columns=NAMES))
    assert "there is no image folder" in file.sentences(1)[0]
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"taken/unpacked/vqa: embedded images cannot be unpacked there .*by `images`"):
        formats.read_train_file(tmp_path / "vqa.parquet", Form(columns=NAMES, images=tmp_path / "taken"))


def test_pictures_are_written_once_and_whole(tmp_path):
    form, path = Form(columns=NAMES, images=tmp_path), tmp_path / parquet(tmp_path)
    name = tmp_path / formats.read_train(path, form)[0].images[0]
    before = name.stat().st_mtime_ns
    formats.read_train(path, form)
    assert name.stat().st_mtime_ns == before
    assert not list(tmp_path.rglob("*.part"))
    name.write_bytes(b"half")  # a crash without a journal
    formats.read_train(path, form)
    assert name.read_bytes() == picture()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            {"question": "qeury"},
            "columns.question names 'qeury'; did you mean 'query'? (its columns: query, label, ",
        ),
        ({"answer": "label"}, "no column is known to hold a question or a conversation (its columns: query, label, "),
    ],
)
def test_unknown_columns_are_told_with_those_there_are(names, said, tmp_path):
    with pytest.raises(DataError) as error:
        formats.read_train(tmp_path / parquet(tmp_path), Form(columns=mapped(**names)))
    assert said in str(error.value)
    many = [f"c{n}" for n in range(1000)]
    with pytest.raises(DataError, match=r"c28, c29 and 970 more\)"):
        columns.chosen(Path("a.parquet"), None, many)


@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (split, "both", r"which of its splits is meant is not said; there are: \S+both#train, \S+both#validation"),
        (split, "both#test", r"no split 'test'; there are: "),
        (saved, "saved#train", r"holds no splits \(dataset_dict.json\); leave out #train"),
        (parquet, "vqa.parquet#train", "a Parquet file has no splits; leave out #train"),
        (parquet, ".", "a folder without state.json"),
        (parquet, "no-*.parquet", "no such file"),
        (lambda p: (p / "broken.parquet").write_text("PAR1?"), "broken.parquet", "cannot be read, perhaps damaged"),
    ],
)
def test_places_that_hold_no_rows_are_told(make, name, said, tmp_path):
    make(tmp_path)
    with pytest.raises(DataError, match=said):
        formats.read_train(tmp_path / name, Form(columns=NAMES))


def test_a_saved_data_set_names_no_files_elsewhere(tmp_path):
    state = tmp_path / saved(tmp_path) / "state.json"
    raw = json.loads(state.read_text())
    raw["_data_files"][0]["filename"] = "../data.arrow"
    state.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=r"names '../data.arrow', which lies elsewhere"):
        formats.read_train(tmp_path / "saved", Form(columns=NAMES))


def test_damaged_files_are_told_and_lead_nowhere(tmp_path):
    form, rng = Form(columns=NAMES, images=tmp_path / "images"), random.Random(0)
    (tmp_path / "tables").mkdir()
    places_ = [tmp_path / "tables" / make(tmp_path / "tables") for make in (parquet, saved)]
    told = 0
    for file in [places_[0], *sorted(places_[1].iterdir())]:
        content = file.read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(rng.choice((1, 1, 20))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            file.unlink()  # others may have it mapped
            file.write_bytes(damaged[: rng.randrange(len(damaged))] if rng.random() < 0.1 else damaged)
            for place in places_:
                try:
                    formats.read_train_file(place, form)
                except DataError as error:
                    told += 1
                    assert str(tmp_path) in str(error)
                    assert "\n" not in str(error)
                    assert len(str(error)) < 1000
        file.unlink()
        file.write_bytes(content)
    assert told > 100
    assert [formats.read_train_file(place, form).problems for place in places_] == [{}, {}]


def test_format_and_place_must_fit(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match=r"neither Parquet nor a saved or hub data set, and .* says format: hf"):
        formats.read_train(tmp_path / "a.json", "hf")
    with pytest.raises(DataError, match="is in format parquet, and the benchmark file says format: llava"):
        formats.read_train(tmp_path / parquet(tmp_path), "llava")
    files = {"train": "a.json", "test": "b.json"}
    with pytest.raises(ValidationError, match="columns are those of Parquet"):
        DatasetSpec.model_validate({**files, "format": "messages", "columns": {"question": "q"}})
    with pytest.raises(ValidationError, match="map either messages or question"):
        DatasetSpec.model_validate({**files, "columns": {"question": "q", "messages": "m"}})


def test_a_file_may_have_a_hash_in_its_name(tmp_path):
    (tmp_path / "a#b.json").write_text("[]")
    assert files.place_of(tmp_path / "a#b.json").kind == "text"
    assert formats.read_train(tmp_path / "a#b.json") == []
    assert not files.exists(tmp_path / "c#b.json")
    assert not files.exists(tmp_path / "\0")
