"""A site's own tasks: conversations in any format, and the turns that a run learns."""

import json

import pytest
from PIL import Image

from clients.site.tasks import OwnTasks
from fcit.config.site import Site
from fcit.data.records import Record, TestRecord, Turn


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
