"""Parquet files and what `datasets` saved or gets from the hub, column by column."""

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as Picture
from PIL import Image
from pydantic import ValidationError

from fcit import registry
from fcit.cli import main
from fcit.data import formats
from fcit.data.fingerprints import fingerprint
from fcit.data.formats import columns, files, hub, unpack
from fcit.data.formats.columns import Columns
from fcit.data.formats.files import Form
from fcit.data.images.opening import MAX_IMAGE_BYTES
from fcit.data.records import Record, TestRecord, Turn
from fcit.data.spec import DatasetSpec, read_spec
from fcit.data.store import MappedTrainFile, RecordStore
from fcit.data.verdict import Verdict
from fcit.errors import ConfigError, DataError
from tests.helpers.own_data import make_own, opened


def picture(color: tuple[int, int, int] = (200, 10, 10), form: str = "PNG", side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, form)
    return file.getvalue()


def embedded(content: bytes, path: str | None = None) -> dict:
    return {"bytes": content, "path": path}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def mapped(**names: str) -> Columns:
    return Columns.model_validate(names)


#: Three questions about pictures, in columns of other names.
VQA = Features(
    {"query": Value("string"), "label": ClassLabel(names=["red", "blue"]), "picture": Picture(), "qid": Value("int64")}
)
ROWS = {
    "query": ["Which color?", "<image>\nAnd now?", " Which one is it? "],
    "label": [0, 1, 0],
    "picture": [embedded(picture(), "a.jpg"), embedded(picture((0, 0, 9), "JPEG"), None), embedded(picture())],
    "qid": [10, 11, 12],
}
NAMES = mapped(question="query", answer="label", image="picture", id="qid")


def vqa() -> Dataset:
    return Dataset.from_dict(ROWS, features=VQA)


def parquet(folder: Path) -> str:
    vqa().to_parquet(folder / "vqa.parquet")
    return "vqa.parquet"


def saved(folder: Path) -> str:
    vqa().save_to_disk(folder / "saved")
    return "saved"


def split(folder: Path) -> str:
    DatasetDict({"train": vqa(), "validation": vqa().select([0])}).save_to_disk(folder / "both")
    return "both#train"


def sharded(folder: Path) -> str:
    for n, rows in enumerate(([0], [1, 2])):
        vqa().select(rows).to_parquet(folder / f"train-0000{n}-of-00002.parquet")
    return "train-*.parquet"


@pytest.mark.parametrize("make", [parquet, saved, split, sharded])
def test_columns_are_what_the_benchmark_file_says_wherever_rows_lie(make, tmp_path):
    form = Form(columns=NAMES, images=tmp_path / "images")
    path = tmp_path / make(tmp_path)
    first, second, third = formats.read_train(path, form)
    assert [r.turns for r in (first, second, third)] == [
        (Turn("Which color?", "red", 1),),
        (Turn("And now?", "blue", 1),),
        (Turn("Which one is it?", "red", 1),),
    ]
    png, jpeg = picture(), picture((0, 0, 9), "JPEG")
    assert (tmp_path / "images" / first.images[0]).read_bytes() == png
    assert (tmp_path / "images" / second.images[0]).read_bytes() == jpeg
    folder = Path(first.images[0]).parent
    assert folder.parent == Path("unpacked")
    assert folder.name in ("vqa", "saved", "both", tmp_path.name)
    assert first.images == third.images == (f"{folder}/{sha(png)}.png",)  # named .jpg in the data set
    assert second.images == (f"{folder}/{sha(jpeg)}.jpg",)
    assert sorted(f.name for f in (tmp_path / "images" / folder).iterdir()) == sorted(
        [f"{sha(png)}.png", f"{sha(jpeg)}.jpg"]
    )
    assert formats.read_train_file(path, form).format == ("parquet" if path.suffix == ".parquet" else "hf")
    asked = formats.read_test(path, None, form)
    assert [(q.question_id, q.answer) for q in asked] == [("10", "red"), ("11", "blue"), ("12", "red")]
    assert [q.instruction for q in asked] == ["Which color?", "And now?", " Which one is it? "]
    assert asked[0].images == first.images
    assert asked[0].references == ()


def test_columns_called_as_what_they_are_need_no_mapping(tmp_path):
    rows = [{"question": "Why?", "answer": "so", "id": "a"}, {"question": "How?", "answer": 7, "id": "b"}]
    Dataset.from_list([{**row, "answer": str(row["answer"])} for row in rows]).to_parquet(tmp_path / "t.parquet")
    path = tmp_path / "t.parquet"
    assert formats.read_train(path) == [Record((), (Turn("Why?", "so"),)), Record((), (Turn("How?", "7"),))]
    assert formats.read_test(path) == [TestRecord("a", (), "Why?", "so"), TestRecord("b", (), "How?", "7")]
    assert formats.read_train_file(path, "parquet").format == "parquet"  # a format's name alone will do


def test_pictures_may_be_paths_several_or_none(tmp_path):
    rows = [
        {"question": "Which?", "answer": "a", "images": ["x/1.png", "2.png"]},
        {"question": "<image> and <image>?", "answer": "b", "images": ["1.png", "2.png"]},
        {"question": "None?", "answer": "c", "images": None},
        {"question": "None?", "answer": "c", "images": []},
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    found = formats.read_train(tmp_path / "t.parquet")
    assert [r.images for r in found] == [("x/1.png", "2.png"), ("1.png", "2.png"), (), ()]
    assert found[1].turns == (Turn("and ?", "b", 2),)
    assert not list(tmp_path.glob("unpacked"))
    features = Features({"question": Value("string"), "answer": Value("string"), "image": Picture()})
    rows = {"question": ["a?", "b?"], "answer": ["a", "b"], "image": [embedded(None, "1.png"), None]}
    pq.write_table(Dataset.from_dict(rows, features=features).data.table, tmp_path / "i.parquet")
    assert [r.images for r in formats.read_train(tmp_path / "i.parquet")] == [("1.png",), ()]


TEXT = {"type": "text", "text": "What is it?", "image": None}
CHAT = [
    {"role": "user", "content": [{"type": "image", "text": None, "image": embedded(picture())}, TEXT]},
    {"role": "assistant", "content": [{**TEXT, "text": "a rose"}]},
    {"role": "user", "content": [{**TEXT, "text": "Sure?"}]},
    {"role": "assistant", "content": [{**TEXT, "text": "yes"}]},
]
PART = {"type": Value("string"), "text": Value("string"), "image": Picture()}
FORM = {"role": Value("string"), "content": List(PART)}


def test_a_conversation_in_a_column_is_read_as_in_text_files(tmp_path):
    form = Form(images=tmp_path)
    features = Features({"messages": List(FORM), "system": Value("string")})
    path = tmp_path / "chat.parquet"
    Dataset.from_dict({"messages": [CHAT], "system": ["Be kind."]}, features=features).to_parquet(path)
    name = f"unpacked/chat/{sha(picture())}.png"
    wanted = Record((name,), (Turn("What is it?", "a rose", 1), Turn("Sure?", "yes")), "Be kind.")
    assert formats.read_train(path, form) == [wanted]
    assert (tmp_path / name).is_file()

    turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "rose"}]
    path = tmp_path / "llava.parquet"
    Dataset.from_list([{"image": "a.png", "talk": turns, "system": None, "id": 5}]).to_parquet(path)
    form = Form(columns=mapped(messages="talk"))
    assert formats.read_train(path, form) == [Record.single("a.png", "Which?", "rose")]
    assert formats.read_test(path, None, form) == [TestRecord("5", ("a.png",), "Which?", "rose")]

    chat = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]
    path = tmp_path / "plain.parquet"
    Dataset.from_list([{"messages": chat, "question": "not asked", "answer": "not given"}]).to_parquet(path)
    assert formats.read_train(path) == [Record((), (Turn("Hello?", "Hi."),))]
    assert formats.read_test(path) == [TestRecord("0", (), "Hello?", "Hi.")]
    wanted = [Record((), (Turn("not asked", "not given"),))]
    assert formats.read_train(path, Form(columns=mapped(question="question"))) == wanted


def test_image_parts_stand_for_the_rows_embedded_images(tmp_path):
    part = {"type": Value("string"), "text": Value("string")}
    features = Features({"messages": List({"role": Value("string"), "content": List(part)}), "images": List(Picture())})
    content = [{"type": "image", "text": None}, {"type": "image", "text": None}, {"type": "text", "text": "Same?"}]
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "no"}]}]
    pictures = [embedded(picture()), embedded(picture((0, 9, 9)))]
    path = tmp_path / "trl.parquet"
    Dataset.from_dict({"messages": [chat], "images": [pictures]}, features=features).to_parquet(path)
    [found] = formats.read_train(path, Form(images=tmp_path))
    assert found.turns == (Turn("Same?", "no", 2),)
    assert [(tmp_path / image).read_bytes() for image in found.images] == [part["bytes"] for part in pictures]


def test_columns_as_pandas_writes_them(tmp_path):
    table = pa.table(
        {
            "question": pa.array(["a?", "b?"], pa.large_string()),
            "answer": pa.array(["yes", "no"]).dictionary_encode(),
            "picture": pa.array([picture(), None], pa.large_binary()),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    found = formats.read_train(tmp_path / "t.parquet", Form(columns=mapped(image="picture"), images=tmp_path))
    assert [r.turns[0].answer for r in found] == ["yes", "no"]
    assert (tmp_path / found[0].images[0]).read_bytes() == picture()
    assert found[1].images == ()


def test_one_turn_of_lists_is_a_list_of_turns():
    # As `datasets` before 4.0 kept a Sequence of mappings.
    values = {"chat": {"role": ["user", "assistant"], "content": ["a?", "b"]}}
    made = columns.row(values, {"messages": "chat"}, lambda value: value)
    assert made == {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(ValueError, match="not equally long"):
        columns.row({"chat": {"role": ["user"], "content": []}}, {"messages": "chat"}, lambda value: value)


def test_of_a_list_of_answers_the_first_is_learnt_and_captions_are_all_of_it(tmp_path):
    rows = [{"question": "Tell.", "answers": ["a cat", "one cat"]}, {"question": "Tell.", "answers": ["a dog"]}]
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    form = Form(columns=mapped(answer="answers"))
    assert [r.turns[0].answer for r in formats.read_train(tmp_path / "t.parquet", form)] == ["a cat", "a dog"]
    asked = formats.read_test(tmp_path / "t.parquet", None, form)
    assert [(q.answer, q.references) for q in asked] == [("a cat", ("a cat", "one cat")), ("a dog", ())]


def test_captions_in_a_file_of_their_own_go_by_image_id(tmp_path):
    rows = [{"question": "Tell.", "image": f"{n}.png", "image_id": n} for n in (9, 4)]
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    captions = [{"image_id": 4, "caption": "four"}, {"image_id": 9, "caption": "nine"}]
    (tmp_path / "coco.json").write_text(json.dumps({"annotations": captions}))
    asked = formats.read_test(tmp_path / "t.parquet", tmp_path / "coco.json")
    assert [(q.question_id, q.answer) for q in asked] == [("0", "nine"), ("1", "four")]


def test_boxes_are_read_as_in_text_files(tmp_path):
    rows = [{"question": "Where?", "answer_bbox": [0.1, 0.2, 0.3, 0.4], "size": [612.0, 375.0], "image": "a.png"}]
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    [asked] = formats.read_test(tmp_path / "t.parquet")
    assert (asked.answer, asked.box, asked.size) == ("[0.1, 0.2, 0.3, 0.4]",) * 2 + ((612.0, 375.0),)


# ---------------------------------------------------------------------- problems


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


# ---------------------------------------------------------------------- mapped


def big(folder: Path) -> Path:
    rows = {key: values * 2000 for key, values in ROWS.items()}
    Dataset.from_dict(rows, features=VQA).to_parquet(folder / "big.parquet")
    return folder / "big.parquet"


def test_large_tables_are_read_once_and_pictures_that_are_gone_come_back(tmp_path, monkeypatch):
    path, tables, form = (
        big(tmp_path),
        RecordStore(tmp_path / "records"),
        Form(columns=NAMES, images=tmp_path / "images"),
    )
    wanted = formats.read_train(path, form)
    first = tables.train(path, form)
    assert isinstance(first, MappedTrainFile)
    assert first.format == "parquet"
    assert first.records == wanted
    assert tables.test(path, None, form) == formats.read_test(path, None, form)
    monkeypatch.setattr(hub, "read", lambda *_: pytest.fail("read again"))
    assert tables.train(path, form).records == wanted
    assert tables.train(path, form).sentences(1, {3: "bad"}) == [f"{path}, record 3: bad"]
    monkeypatch.undo()
    other = tables.train(path, Form(columns=mapped(question="query", answer="qid"), images=form.images)).records
    assert other[0] == Record((), (Turn("Which color?", "10"),))
    shutil.rmtree(tmp_path / "images" / "unpacked")
    again = tables.train(path, form).records
    assert again == wanted
    assert (tmp_path / "images" / wanted[0].images[0]).is_file()


# ---------------------------------------------------------------------- hub


def test_a_hub_data_set_is_named_with_its_split(tmp_path, monkeypatch):
    asked = []

    def load(name, config, split=None, revision=None):
        asked.append((name, config, split, revision))
        return vqa() if split else DatasetDict({"train": vqa()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    form, tables = Form(columns=NAMES, images=tmp_path / "images"), RecordStore(tmp_path / "records")
    names = ["hub:owner/name#train", "hub:owner/name/small@v1#train", "hub:owner/name"]
    for name in names:
        found = tables.train(files.located(Path("/data"), name), form)
        assert [r.turns[0].answer for r in found.records] == ["red", "blue", "red"]
        assert found.format == "hf"
        assert found.records[0].images == (f"unpacked/owner--name/{sha(picture())}.png",)
    assert asked == [
        ("owner/name", None, "train", None),
        ("owner/name", "small", "train", "v1"),
        ("owner/name", None, None, None),
    ]
    tables.train(Path(names[0]), form)
    assert len(asked) == 3  # kept: the hub is asked once
    with pytest.raises(DataError, match="is named hub:owner/name#split"):
        formats.read_train(Path("hub:name"))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(DataError, match="here is a folder owner/name"):
        formats.read_train(Path("hub:owner/name"))


def test_pictures_in_the_hubs_own_folders_are_taken_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_kept_by_the_hub", lambda: (tmp_path / "kept",))
    (tmp_path / "kept").mkdir()
    for file in ("kept/a.png", "private.png"):
        (tmp_path / file).write_bytes(picture())
    unpacked = unpack.Unpacked(tmp_path / "images", "o--n", hub._kept_by_the_hub())
    assert unpacked.names({"bytes": None, "path": str(tmp_path / "kept/a.png")}).startswith("unpacked/o--n/")
    outside = str(tmp_path / "kept/../private.png")
    assert unpacked.names({"bytes": None, "path": outside}) == outside  # refused where images are opened


def test_without_a_connection_one_sentence_names_the_way_out(tmp_path):
    code = (
        "from pathlib import Path; from fcit.data import formats\n"
        "from fcit.errors import DataError\n"
        "try: formats.read_train(Path('hub:owner/name#train'))\n"
        "except DataError as error: print(error)"
    )
    alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = os.environ | alone
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert out.stdout.startswith("hub:owner/name#train: cannot be had from the Hugging Face hub (ConnectionError: ")
    assert out.stdout.rstrip().endswith("and name its copy here: FOLDER#train")
    assert out.stdout.count("\n") == 1


# ---------------------------------------------------------------------- a run


def own_tables(tmp_path: Path, **more: object) -> Path:
    """The tiny own benchmark with its records in a saved data set, pictures embedded."""
    tmp_path.mkdir(exist_ok=True)
    config = make_own(tmp_path)
    root = tmp_path / "data"
    train = json.loads((root / "instructions" / "train.json").read_text())
    test = json.loads((root / "instructions" / "test.json").read_text())

    def rows(names: list[str], questions: list[str]) -> Dataset:
        pictures = [embedded((root / "datasets" / name).read_bytes(), name) for name in names]
        values = {"query": questions, "label": [0] * len(names), "picture": pictures, "qid": list(range(len(names)))}
        return Dataset.from_dict(values, features=VQA)

    asked = [row["conversations"][0]["value"] for row in train]
    splits = {
        "train": rows([row["image"] for row in train], asked),
        "test": rows([row["image"] for row in test], [row["text"] for row in test]),
    }
    shutil.rmtree(root)
    DatasetDict(splits).save_to_disk(root / "instructions" / "colors")
    spec = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    names = NAMES.model_dump(exclude_none=True)
    spec["datasets"]["colors"] = {"train": "colors#train", "test": "colors#test", "columns": names, **more}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec))
    return config


def test_a_saved_data_set_is_a_benchmark(tmp_path, capsys):
    (tmp_path / "plain").mkdir()
    own, root, adapters = own_tables(tmp_path), tmp_path / "data", []
    for config in (make_own(tmp_path / "plain"), own):
        assert main(["run", str(config)]) == 0
        [run] = (config.parent / "runs").iterdir()
        adapters.append(sorted(run.rglob("*.safetensors")))
    assert [file.name for file in adapters[0]] == [file.name for file in adapters[1]]
    assert adapters[0]
    for one, other in zip(*adapters, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    images = sorted((root / "datasets" / "unpacked" / "colors").iterdir())
    assert len(images) == 12 + 4
    assert {file.suffix for file in images} == {".png"}
    shard = opened(own).shard(0, 0)
    assert shard
    assert all(r.images[0].startswith("unpacked/colors/") and r.turns[0].answer == "red" for r in shard)
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "mine.yaml"), "--root", str(root), "--all", "--json"]) == 0
    [colors] = json.loads(capsys.readouterr().out)["datasets"]
    assert colors["format"] == "hf"
    assert (colors["train"], colors["test"], colors["bad_records"], colors["problems"]) == (12, 4, 0, [])
    assert all(size > 0 for size in colors["files"].values())


def test_images_of_a_data_set_in_a_folder_of_their_own(tmp_path):
    config = own_tables(tmp_path, images="pictures")
    benchmark = opened(config)
    benchmark.prepare()
    assert benchmark.test("colors")[0].images[0].startswith("pictures/unpacked/colors/")
    assert (tmp_path / "data" / "datasets" / benchmark.shard(0, 0)[0].images[0]).is_file()


def test_a_run_tells_all_that_is_missing_or_broken(tmp_path):
    config = own_tables(tmp_path)
    change = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    change["datasets"]["colors"]["columns"]["answer"] = "lable"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(change))
    with pytest.raises(ConfigError, match=r"columns.answer names 'lable'.*\(its columns: query, label, picture, qid"):
        opened(config).prepare()
    change["datasets"]["colors"]["columns"] = {"anwser": "label"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(change))
    with pytest.raises(ConfigError, match=r"datasets.colors.columns.anwser: unknown key"):
        read_spec(str(tmp_path / "mine.yaml"))
    shutil.rmtree(tmp_path / "data" / "instructions" / "colors")
    change["datasets"]["colors"].pop("columns")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(change))
    with pytest.raises(ConfigError, match=r"missing \S+colors#train, named by datasets.colors.train"):
        opened(config).prepare()


def test_another_mapping_is_another_partition(tmp_path):
    config = own_tables(tmp_path)
    before = opened(config).client_files.folder(0)
    change = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    change["datasets"]["colors"]["columns"]["answer"] = "qid"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(change))
    benchmark = opened(config)
    assert benchmark.client_files.folder(0) != before
    assert benchmark.shard(0, 0)[0].turns[0].answer.isdigit()


def test_the_documentation_names_every_column_and_format():
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert [key for key in Columns.model_fields if f"| `{key}` |" not in text] == []
    assert [name for name in registry.FORMATS if f"`{name}`" not in text] == []


def test_a_saved_data_set_has_a_fingerprint(tmp_path):
    config = own_tables(tmp_path)
    before = fingerprint.of(opened(config))["datasets"]["colors"]
    instructions = before["train"]["instructions"]
    assert instructions["file"] == "colors#train"
    assert len(instructions["sha256"]) == 64
    assert before["train"]["images"]["count"] == 12
    assert before["test"]["images"]["count"] == 4
    folder = tmp_path / "data" / "instructions" / "colors"
    changed = datasets.load_from_disk(str(folder / "train")).select(range(11))
    changed.save_to_disk(tmp_path / "new")
    shutil.rmtree(folder / "train")
    (tmp_path / "new").rename(folder / "train")
    after = fingerprint.of(opened(config))["datasets"]["colors"]
    assert after["train"]["instructions"]["sha256"] != instructions["sha256"]
    assert after["test"] == before["test"]
    change = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    change["datasets"]["colors"]["columns"]["answer"] = "qid"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(change))
    assert fingerprint.of(opened(config))["datasets"]["colors"]["test"]["asked"] != before["test"]["asked"]


def test_a_hub_data_set_is_a_benchmark_with_a_fingerprint_of_its_records(tmp_path, monkeypatch):
    config = own_tables(tmp_path)
    folder = tmp_path / "data" / "instructions" / "colors"
    splits = {name: datasets.load_from_disk(str(folder / name)) for name in ("train", "test")}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split, revision: splits[split])
    change = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    change["datasets"]["colors"] |= {"train": "hub:me/colors#train", "test": "hub:me/colors#test"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(change))
    benchmark = opened(config)
    benchmark.prepare()
    assert len(benchmark.test("colors")) == 4
    assert benchmark.shard(0, 0)[0].images[0].startswith("unpacked/me--colors/")
    found = fingerprint.of(benchmark)["datasets"]["colors"]
    assert found["train"]["instructions"]["file"] == "hub:me/colors#train"
    assert len(found["train"]["instructions"]["sha256"]) == len(found["test"]["questions"]["sha256"]) == 64


def test_another_mapping_is_judged_anew(tmp_path):
    asked = []

    class Judge:
        def train(self, parts, places, records):
            asked.append(json.dumps(parts))
            return Verdict()

        def test(self, parts, records, limit):
            return Verdict(warnings={1: "long"})

    config = own_tables(tmp_path)
    for column in ("label", "qid"):
        change = yaml.safe_load((tmp_path / "mine.yaml").read_text())
        change["datasets"]["colors"]["columns"]["answer"] = column
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(change))
        benchmark = opened(config)
        benchmark.judge = Judge()
        benchmark.prepare()
        assert benchmark.warnings == [f"{tmp_path}/data/instructions/colors#test, record 1: long"]
    assert len(set(asked)) == 2


def test_what_is_kept_of_the_hub_is_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **more: vqa())
    form, tables = Form(columns=NAMES, images=tmp_path / "images"), RecordStore(tmp_path / "records")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        tables.train(Path("hub:owner/name#train"), form)
    assert len(list((tmp_path / "records").glob("*.arrow"))) == 1
