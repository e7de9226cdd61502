"""The prompt of a training record and of the same test record are equal, token by token, however they are written."""

import json
from itertools import count

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcit.config import Backbone as Config
from fcit.config import RunConfig
from fcit.data.benchmark import open_benchmark
from fcit.models.backbone import Backbone
from tests.helpers.llava import small_llava

ANSWER = "red cup"


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """fcit-tiny's template and vicuna_v1."""
    model, identity = small_llava(tmp_path_factory.mktemp("llava"))
    llava = Config(model=model, identity=identity, conversation="vicuna_v1", feature_cache="off", threads=1)
    return [Backbone(Config(feature_cache="off", threads=1)).encoder, Backbone(llava).encoder]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Folders nothing was read from."""
    base, number = tmp_path_factory.mktemp("data"), count()

    def make():
        root = base / str(next(number))
        (root / "datasets").mkdir(parents=True)
        for name in "ab":
            Image.new("RGB", (4, 4)).save(root / "datasets" / f"{name}.png")
        return root

    return make


def tagged(question: str, images: int, place: str) -> str:
    """The question with its tags in front, behind, in the middle, or left out."""
    tags, half = "<image>\n" * images, len(question) // 2
    return {
        "front": tags + question,
        "end": f"{question}\n{tags}",
        "none": question,
        "middle": question[:half] + tags + question[half:],
    }[place]


def rows_of(form: str, text: str, images: int) -> tuple[dict, dict]:
    """The same question as a training and as a test row."""
    names = ["a.png", "b.png"][:images]
    shown = {} if not names else {"image": names[0] if len(names) == 1 else names}
    if form == "messages":
        told = {**shown, "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": ANSWER}]}
        return told, {"question_id": "0", **told}
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": ANSWER}]
    return {**shown, "conversations": turns}, {"question_id": "0", **shown, "text": text, "answer": ANSWER}


@settings(max_examples=40, deadline=None)
@given(
    question=st.text(st.sampled_from("aA?. \n是é"), max_size=8),
    images=st.integers(0, 2),
    place=st.sampled_from(["front", "middle", "end", "none"]),
    form=st.sampled_from(["llava", "messages"]),
    suffix=st.sampled_from(["", "Answer briefly.", "Answer briefly. ", " Lead.", "?"]),
    delivered=st.booleans(),
)
def test_training_and_test_prompts_are_equal(encoders, fresh, question, images, place, form, suffix, delivered):
    root = fresh()
    train, test = rows_of(form, tagged(question, images, place), images)
    (root / "instructions").mkdir()
    (root / "instructions" / "train.json").write_text(json.dumps([train]))
    (root / "instructions" / "test.json").write_text(json.dumps([test]))
    if delivered:
        folder = root / "partitioned_data" / "1.0" / "Task1"
        folder.mkdir(parents=True)
        (folder / "client_0.json").write_text(json.dumps([train]))
    data = {"train": "train.json", "test": "test.json", "suffix": suffix}
    (root / "own.yaml").write_text(yaml.safe_dump({"name": "own", "datasets": {"set": data}, "tasks": [["set"]]}))
    raw = {
        "benchmark": str(root / "own.yaml"),
        "data_root": str(root),
        "backbone": {"feature_cache": "off"},
        "federation": {"clients": 1, "clients_per_round": 1},
    }
    benchmark = open_benchmark(RunConfig.model_validate(raw))
    [learnt], [asked] = benchmark.shard(0, 0), benchmark.test("set")
    assert learnt.instructions == asked.instructions
    assert learnt.images == asked.images
    for encoder in encoders:
        assert encoder.encode(learnt).prompt == encoder.encode(asked).tokens
    if suffix.strip():
        assert asked.instruction.endswith(suffix.strip())
