"""Every method learns from clients whose records are text alone, have many turns, or several images."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import fcit
from fcit.data.benchmark import open_benchmark
from fcit.runs.reader import Run
from tests.helpers.runs import BACKBONE

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

METHODS = ["finetune", "disco", "ewc", "lwf", "olora", "moelora", "mlora", "l2p", "replay"]


def row(images: list[str], *turns: tuple[str, str]) -> dict:
    said = []
    for number, (question, answer) in enumerate(turns):
        tags = "<image>\n" * (len(images) if number == 0 else 0)
        said += [{"from": "human", "value": tags + question}, {"from": "gpt", "value": answer}]
    shown = {} if not images else {"image": images[0] if len(images) == 1 else images}
    return {**shown, "conversations": said}


TEXT = [row([], ("How many red cubes?", str(n))) for n in range(4)]
TURNS = [row(["a.png"], ("What color?", "red"), ("How many?", str(n)), ("Yes or no?", "no")) for n in range(3)]
PAIRS = [row(["a.png", "b.png"], ("Which is red?", "both"), ("And which is blue?", "no")) for n in range(3)]
LATER = {
    "image": "b.png",
    "conversations": [
        *row([], ("Yes?", "no"))["conversations"],
        *row(["b.png"], ("What color?", "blue"))["conversations"],
    ],
}
#: Of both tasks, client by client.
SHARDS = [[TEXT, [*TURNS, LATER]], [PAIRS, [TEXT[0], TURNS[0], PAIRS[0], row(["b.png"], ("What color?", "blue"))]]]
ASKED = [
    {"question_id": "0", "text": "How many red cubes?", "answer": "2"},
    {"question_id": "1", "image": "a.png", "text": "<image>\nWhat color?", "answer": "red"},
    {"question_id": "2", "image": ["a.png", "b.png"], "text": "Which is red?", "answer": "both"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A benchmark file of two tasks, divided among two clients as delivered."""
    root = tmp_path_factory.mktemp("conversations")
    (root / "datasets").mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(root / "datasets" / f"{name}.png")
    (root / "instructions").mkdir()
    datasets = {}
    for task, clients in enumerate(SHARDS):
        folder = root / "partitioned_data" / "1.0" / f"Task{task + 1}"
        folder.mkdir(parents=True)
        for client, rows in enumerate(clients):
            (folder / f"client_{client}.json").write_text(json.dumps(rows))
        (root / "instructions" / f"train{task}.json").write_text(json.dumps([r for rows in clients for r in rows]))
        (root / "instructions" / f"test{task}.json").write_text(json.dumps(ASKED))
        datasets[f"set{task}"] = {"train": f"train{task}.json", "test": f"test{task}.json"}
    file = root / "own.yaml"
    file.write_text(yaml.safe_dump({"name": "own", "datasets": datasets, "tasks": [["set0"], ["set1"]]}))
    return file


def settings(file: Path, folder: Path, **changes) -> dict:
    return {
        "name": "talks",
        "benchmark": str(file),
        "data_root": str(file.parent),
        "output": str(folder),
        "federation": {"clients": 2, "clients_per_round": 2, "rounds": 1, "min_updates": 2},
        "training": {"batch_size": 3, "lr": 0.001},
        "evaluation": {"max_new_tokens": 3},
        "backbone": {**BACKBONE, "feature_cache": "off"},
        **changes,
    }


def checked(run: Run) -> None:
    """Everybody's update was taken, and every kind of question was answered and written down with its images."""
    rounds = run.of("round")
    assert run.results["traffic"]["rejected"] == 0
    assert len(run.matrix.scores) == 2 == len(rounds)
    for event, shards in zip(rounds, SHARDS, strict=True):
        assert sorted(zip(event["clients"], event["examples"], strict=True)) == [
            (n, len(s)) for n, s in enumerate(shards)
        ]
        assert len(event["loss"]) == 2
        assert all(map(math.isfinite, event["loss"].values()))
    lines = (run.path / "predictions" / "stage-2" / "set1.jsonl").read_text().splitlines()
    assert [json.loads(line)["metadata"].get("image") for line in lines] == [None, "a.png", ["a.png", "b.png"]]
    assert [p.images for p in run.predictions("set0")] == [(), ("a.png",), ("a.png", "b.png")]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_conversations(data, tmp_path, method):
    adapter = {"projector": "per_subspace"} if method == "disco" else {}
    checked(fcit.simulate(settings(data, tmp_path, method=method, adapter=adapter)))


def test_scaffold_and_micro_batches_too(data, tmp_path):
    training = {"batch_size": 3, "lr": 0.001, "micro_batch": 1, "checkpointing": True}
    checked(fcit.simulate(settings(data, tmp_path, method="replay", fedopt="scaffold", training=training)))


@pytest.mark.page
def test_an_export_answers_every_kind_of_question_as_the_run(data, tmp_path):
    run = fcit.simulate(settings(data, tmp_path, method={"name": "disco", "token": "both"}))
    checked(run)
    assert (run.path / "report.html").read_text().count('alt="image of question 2"') == 2 * 2
    assistant = fcit.load(fcit.export_run(run.path, tmp_path / "out"))
    root = open_benchmark(run.config).image_root
    for dataset in ("set0", "set1"):
        told = run.predictions(dataset)
        images = [None, root / "a.png", [root / "a.png", root / "b.png"]]
        answers = assistant.answer(images, [p.prompt for p in told])
        assert [a.text for a in answers] == [p.text for p in told]
        np.testing.assert_allclose([list(a.mix.values()) for a in answers], [p.mix for p in told], atol=1e-4)


def test_the_first_turn_alone_gives_the_bits_of_files_without_the_others(data, tmp_path):
    """``data.turns: first`` is what was read before there were conversations."""
    cut = data.parent.parent / f"{data.parent.name}-cut"
    if not cut.exists():
        (cut / "instructions").mkdir(parents=True)
        (cut / "datasets").symlink_to(data.parent / "datasets")
        for file in [data, *data.parent.glob("instructions/*"), *data.parent.glob("partitioned_data/*/*/*.json")]:
            (cut / file.relative_to(data.parent)).parent.mkdir(parents=True, exist_ok=True)
            (cut / file.relative_to(data.parent)).write_text(file.read_text())
        for file in cut.glob("partitioned_data/*/*/*.json"):
            rows = json.loads(file.read_text())
            for one in rows:
                one["conversations"] = one["conversations"][:2]
                if "image" in one and "<image>" not in one["conversations"][0]["value"]:
                    one["conversations"][0]["value"] = "<image>\n" + one["conversations"][0]["value"]
            file.write_text(json.dumps(rows))
    first = fcit.simulate(settings(data, tmp_path / "first", method="finetune", data={"turns": "first"}))
    whole = fcit.simulate(settings(cut / "own.yaml", tmp_path / "cut", method="finetune"))
    every = fcit.simulate(settings(data, tmp_path / "all", method="finetune"))
    one, two, three = (
        (run.path / "adapters" / "0" / "adapter_model.safetensors").read_bytes() for run in (first, whole, every)
    )
    assert one == two != three
