"""Tables of the Hugging Face hub: columns become records."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as Picture

from fcit.data import formats
from fcit.data.formats import columns
from fcit.data.formats.files import Form
from fcit.data.records import Record, TestRecord, Turn
from tests.helpers.tables import NAMES, embedded, mapped, parquet, picture, saved, sha, sharded, split


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
