"""A site's own tasks: conversations in any format, and the turns that a run learns."""

import json

import pytest
from PIL import Image

from clients.site.tasks import OwnTasks
from fcit.config.site import Site
from fcit.data.records import Record, TestRecord, Turn
from fcit.errors import DataError


@pytest.fixture
def tasks(tmp_path) -> OwnTasks:
    """One task with a suffix: a conversation with its image in the second turn, and one of text alone."""
    data = tmp_path / "data"
    (data / "datasets").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(data / "datasets" / "a.png")

    def chat(*texts: str) -> list[dict]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    train = [
        {"image": "a.png", "messages": chat("Yes?", "no", "<image>\nWhich? ", "red")},
        {"messages": chat("Q", "A")},
    ]
    (data / "train.json").write_text(json.dumps(train))
    test = [{"question_id": 1, "messages": chat("Q", "A")}, {"id": 2, "image": "a.png", "messages": chat("Q", "A")}]
    (data / "test.json").write_text(json.dumps(test))
    task = {"train": "train.json", "test": "test.json", "suffix": "Briefly."}
    return OwnTasks(Site(data_root=str(data), home=str(tmp_path / "home"), stream="site", tasks=[task]))


def test_whole_conversations_and_the_first_turn_alone(tasks):
    first, whole = tasks.learning("first"), tasks.learning("all")
    text = Record((), (Turn("Q\nBriefly.", "A"),))
    turns = (Turn("Yes?\nBriefly.", "no"), Turn("Which?\nBriefly.", "red", 1))
    assert whole.records(0, [0]) == tasks.records(0, [0]) == [Record(("datasets/a.png",), turns), text]
    assert first.records(0, [0]) == [Record(("datasets/a.png",), (Turn("Yes?\nBriefly.", "no", 1),)), text]
    assert first.skipped(0, [0]) == 0
    assert tasks.test("0") == [
        TestRecord("1", (), "Q\nBriefly.", "A"),
        TestRecord("2", ("datasets/a.png",), "Q\nBriefly.", "A"),
    ]


def test_files_that_were_replaced_are_read_again(tasks, tmp_path):
    """What was read of them before does not hide an image that can no longer be used, nor one that can be again."""
    usable = tasks._usable(0)
    assert tasks._usable(0) is usable
    image = tmp_path / "data" / "datasets" / "a.png"
    image.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 2 records cannot be used, max_bad_share"):
        tasks.skipped(0, [0])
    with pytest.raises(DataError, match="1 images of test records cannot be used"):
        tasks.test("0")
    Image.new("RGB", (8, 8)).save(image)
    assert tasks.skipped(0, [0]) == 0
    assert len(tasks.test("0")) == 2
    train = tmp_path / "data" / "train.json"
    train.write_text(json.dumps(json.loads(train.read_text())[1:]))
    assert len(tasks.records(0, [0])) == 1
