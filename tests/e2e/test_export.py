"""Adapters out: an export answers as the run did, plain peft loads it, and files of others are not trusted."""

import io
import json
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict
from PIL import Image
from safetensors.numpy import load_file, save_file

import fcit
from fcit import registry
from fcit.config import RunConfig
from fcit.data.benchmark import open_benchmark
from fcit.errors import ConfigError, DataError
from fcit.export import assistant as assistant_module
from fcit.export import format
from fcit.export.assistant import Answer
from fcit.io.files import write_json
from fcit.methods.base import Method
from fcit.models.backbone import Backbone
from fcit.models.layout import is_projector
from fcit.runs.reader import Run
from server.routing_file import speaks_as
from tests.helpers.made import QUESTION, Made, raw, said


@pytest.fixture(scope="module")
def exported(reference, tmp_path_factory) -> Path:
    return fcit.export_run(reference, tmp_path_factory.mktemp("export") / "out")


@pytest.fixture(scope="module")
def assistant(exported):
    return fcit.load(exported)


# ---------------------------------------------------------------------- a run, exported


def test_it_answers_and_routes_as_the_run_did(reference, assistant):
    run = Run(reference)
    benchmark = open_benchmark(run.config)
    for dataset in run.matrix.datasets:
        asked = run.predictions(dataset)
        images = [benchmark.image_root / record.image for record in asked]
        answers = assistant.answer(images, [record.prompt for record in asked])
        assert [a.text for a in answers] == [record.text for record in asked]
        mixes = [list(a.mix.values()) for a in answers]
        np.testing.assert_allclose(mixes, [record.mix for record in asked], atol=1e-4)
    assert list(answers[0].mix) == assistant.subspaces == run.subspaces


def test_the_run_folder_itself_answers_alike(reference, assistant, picture):
    [there] = assistant.answer([picture], [QUESTION])
    with Image.open(picture) as opened:
        assert fcit.load(reference).answer([opened], [QUESTION]) == [there]


def test_empty_slots_leave_weight_to_the_bare_model(exported, assistant, picture, tmp_path):
    """As a run with ``method.empty_slots: 8`` is exported: the same proportions, and less than one in all."""
    shutil.copytree(exported, tmp_path / "slots")
    file = tmp_path / "slots" / "routing.json"
    raw = json.loads(file.read_text())
    assert raw["method"]["empty_slots"] == 0
    raw["method"] |= {"empty_slots": 8, "temperature": 1.0}
    write_json(file, raw)
    [answer] = fcit.load(tmp_path / "slots").answer([picture], [QUESTION])
    weights = np.array(list(answer.mix.values()))
    assert weights.size == len(assistant.subspaces) == 2
    assert 2 / 8 < weights.sum() < 0.9
    raw["method"]["empty_slots"] = 2
    write_json(file, raw)
    [whole] = fcit.load(tmp_path / "slots").answer([picture], [QUESTION])
    np.testing.assert_allclose(weights / weights.sum(), list(whole.mix.values()), atol=1e-5)


@pytest.mark.parametrize(("gpu", "devices"), [(True, ["cpu", "cuda:1", "auto"]), (False, ["cpu", "cpu", "cpu"])])
def test_what_was_made_on_gpus_opens_without_one(monkeypatch, gpu, devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert [assistant_module._device(wanted) for wanted in ("cpu", "cuda:1", "auto")] == devices


def test_questions_are_put_into_the_batches_of_the_run(exported, picture, tmp_path, monkeypatch):
    """Sorted within its stretches, here of two batches of two; older folders know neither that nor our decoder."""
    raw, answered, answer = json.loads((exported / "routing.json").read_text()), [], Method.answer
    later = {"by_length": True, "batches_per_order": 4, "decoder": "auto"}
    assert {key: raw.get(key) for key in later} == later

    def noted(self, questions, mix):
        answered.append([len(example.tokens) for example in questions.examples])
        return answer(self, questions, mix)

    monkeypatch.setattr(Method, "answer", noted)
    batches = {}
    for name, changes in (("new", {"batches_per_order": 2}), ("old", {})):
        keys = {key: value for key, value in raw.items() if name == "new" or key not in later}
        shutil.copytree(exported, tmp_path / name)
        write_json(tmp_path / name / "routing.json", keys | {"batch_size": 2} | changes)
        there = fcit.load(tmp_path / name)
        there.answer([None] * 6, [f"What{' is' * count} it?" for count in range(6)], 2)
        batches[name], answered = answered, []
    shortest = batches["old"][0][0]
    assert batches["old"] == [[shortest + n, shortest + n + 1] for n in (0, 2, 4)]
    assert batches["new"] == [[shortest + n + 1, shortest + n] for n in (2, 0, 4)]
    assert there.method.answers_by == "transformers"


def test_the_card_tells_what_it_is_and_what_it_scored(reference, exported):
    _, head, text = (exported / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["base_model"] == "fcit-tiny"
    assert front["library_name"] == "peft"
    assert "license" not in front
    run = Run(reference)
    last = run.matrix.scores[-1]
    assert f"| 2 | {' | '.join(f'{last[name]:.1f}' for name in run.matrix.datasets)}" in text
    assert "**Reduced**" in text
    assert "8 questions" in text
    for name, dataset in zip(run.subspaces, run.matrix.datasets, strict=True):
        assert f"| `subspaces/{name}` | {dataset} (" in text


def test_an_earlier_export_is_replaced_only_when_asked_and_nothing_else_is(reference, exported, tmp_path, fcit):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    code, _, err = fcit("export", reference, "--to", tmp_path / "out")
    assert code == 2
    assert "is not empty" in err
    assert "--force" in err
    code, out, err = fcit("export", reference, "--to", tmp_path / "out", "--force")
    assert code == 0 and "fcit chat" in out, err
    assert fcit("export", reference, "--to", tmp_path / "out", "--force")[0] == 0
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
    mine, theirs = ({f.relative_to(d) for d in [d] for f in d.rglob("*")} for d in (tmp_path / "out", exported))
    assert mine - theirs == {Path("mine.txt")}
    assert theirs <= mine


@pytest.mark.parametrize("to", ["{}/file", "{}/file/below", "/proc/nowhere"])
def test_where_nothing_can_be_written(reference, tmp_path, fcit, to):
    (tmp_path / "file").write_text("")
    code, _, err = fcit("export", reference, "--to", to.format(tmp_path))
    assert code == 2
    assert "--to: cannot write" in err
    assert len(err.splitlines()) == 1


def same(one: Answer, other: Answer) -> bool:
    """Whether two answers are equal; a question's weights in a batch and alone may differ in the last digit shown."""
    return one.mix == pytest.approx(other.mix, abs=2e-6) and replace(one, mix={}) == replace(other, mix={})


def test_questions_of_text_alone_and_of_several_images(assistant, picture, exported, fcit):
    mixed = assistant.answer([None, picture, [picture, picture], []], [QUESTION] * 4)
    for images, answer in zip([[None], [picture], [[picture, picture]], [None]], mixed, strict=True):
        [alone] = assistant.answer(images, [QUESTION])
        assert same(alone, answer)
    tagged = assistant.answer([picture, [picture, picture]], [f"<image>\n{QUESTION}", f"<image><image>{QUESTION}"])
    assert all(map(same, tagged, mixed[1:3]))
    with pytest.raises(DataError, match=r"question 0 .*: 1 image tags in its questions, and it names 0 images"):
        assistant.answer([None], [f"<image>\n{QUESTION}"])
    code, out, err = fcit("chat", exported, "--json", QUESTION)
    assert code == 0 and json.loads(out)["text"] == mixed[0].text, err
    code, out, err = fcit("chat", exported, "--image", picture, "--image", picture, "--json", QUESTION)
    assert code == 0 and json.loads(out)["image"] == [str(picture)] * 2, err
    assert json.loads(out)["text"] == mixed[2].text


def test_chat_shows_who_spoke(exported, picture, fcit):
    code, out, err = fcit("chat", exported, "--image", picture, QUESTION)
    assert code == 0, err
    assert "%" in out
    assert "figureqa" in out
    code, out, _ = fcit("chat", exported, "--image", picture, "--json", QUESTION, "--subspace", "1")
    said = json.loads(out)
    assert code == 0
    assert said["question"] == QUESTION
    assert said["mix"] == {"0": 0.0, "1": 1.0}


def test_a_conversation_survives_mistakes_and_ends_with_the_input(exported, picture, fcit, monkeypatch):
    lines = ["/image nowhere.png", f"/image {picture}", "", "What?", "/subspace 9", "Who?", "/subspace", "/what"]
    lines += [f"/add {picture}", "Which two?", "/image", "Why?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    code, out, err = fcit("chat", exported, "--json")
    said = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(row["question"], row["image"]) for row in said] == [
        ("What?", str(picture)),
        ("Which two?", [str(picture)] * 2),
        ("Why?", None),
    ]
    assert [part in err for part in ("nowhere.png", "'9'", "/what")] == [True] * 3
    assert len(err.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat", "{}", "--image", "nowhere.png", "What?"], "nowhere.png"),
        (["chat", "/", "--image", "{image}", "What?"], "fcit export RUN --to DIR"),
        (["chat", "{}", "--image", "{image}", "--backbone", "/nowhere", "What?"], "/nowhere"),
        (["chat", "{}", "--image", "{image}", "--device", "gpu", "What?"], "backbone.device"),
        (["chat", "{}", "--image", "{image}", "--max-new-tokens", "0", "What?"], "at least 1"),
        (["export", "{}", "--to", "x"], "not a run folder"),
    ],
)
def test_refused_in_one_sentence(exported, picture, fcit, arguments, words):
    code, _, err = fcit(*(a.format(exported, image=picture) for a in arguments))
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


# ---------------------------------------------------------------------- every policy, every layout, made by hand


@pytest.mark.parametrize(
    ("model", "projector"),
    [("fcit-tiny", "shared"), ("llava", "shared"), ("llava", "frozen"), ("llava", "per_subspace"), ("qwen", "shared")],
)
def test_plain_peft_loads_each_subspace_and_answers_as_the_run(model, projector, backbones, tmp_path, picture):
    made = Made(tmp_path / "run", raw(projector=projector, backbone=backbones[model]))
    out = fcit.export_run(made.path, tmp_path / "out")
    plain = Backbone(made.config.backbone)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected|Found).*keys.*")
        plain.project(lambda base: PeftModel.from_pretrained(base, str(out / "subspaces" / "1")).eval())
    there = get_peft_model_state_dict(plain.model, save_embedding_layers=False)
    wanted = {**made.shared, **made.subspaces["1"]}
    assert set(there) == set(wanted)
    assert all(np.array_equal(there[n].numpy(), t) for n, t in wanted.items())
    assert any(is_projector(n) for n in there) == (projector != "frozen")
    (expected, texts), (logits, answers) = made.alone("1", picture), said(plain, picture)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert answers == texts
    [answer] = fcit.load(out).answer([picture], [QUESTION], subspace="1")
    assert [answer.text] == texts
    assert answer.mix == {"0": 0.0, "1": 1.0, "2": 0.0}


REFUSED = [("moelora", "token gates"), ("l2p", "soft prompts"), ("smolora", "routers"), ("proglora", "a key")]


@pytest.mark.parametrize(("method", "words"), REFUSED)
def test_what_peft_cannot_hold_is_refused_and_the_run_folder_answers(method, words, tmp_path, picture):
    made = Made(tmp_path / "run", raw(method), count=1)
    with pytest.raises(ConfigError, match=f"(?s){words}.*fcit chat"):
        fcit.export_run(made.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    [answer] = fcit.load(made.path).answer([picture], [QUESTION])
    assert answer.mix == {"0": 1.0}


def test_a_reference_that_is_told_the_task_asks_who_shall_answer(tmp_path, picture):
    made = Made(tmp_path / "run", raw("individual", "frozen"))
    out = fcit.load(fcit.export_run(made.path, tmp_path / "out"))
    with pytest.raises(ConfigError, match="say which subspace answers"):
        out.answer([picture], [QUESTION])
    assert out.answer([picture], [QUESTION], subspace="2")[0].text == made.alone("2", picture)[1][0]


def test_nothing_trained_nothing_exported(tmp_path):
    made = Made(tmp_path / "run", raw("zero_shot"), count=0)
    with pytest.raises(ConfigError, match="nothing to export"):
        fcit.export_run(made.path, tmp_path / "out")


def test_an_unfinished_run_is_not_exported(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="has not finished"):
        fcit.export_run(tmp_path, tmp_path / "out")


def test_a_method_of_ones_own_answers_as_the_shipped_one_it_derives_from(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from fcit.methods.disco import Disco\n"
        "class Trains(Disco):\n    def on_step(self, session):\n        pass\n"
        "class Routes(Disco):\n    def route(self, names, knowledge, features):\n        return features\n"
    )

    def spoken(name: str) -> str:
        config = RunConfig.model_validate({"method": {"name": f"{tmp_path}/mine.py:{name}"}})
        return speaks_as(registry.resolve("method", config.method["name"])(config))["name"]

    assert spoken("Trains") == "disco"
    assert spoken("Routes").endswith("mine.py:Routes")


# ---------------------------------------------------------------------- files of others


@pytest.fixture
def given(exported, tmp_path) -> Path:
    """An export that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "given"))


def changed(folder: Path, **values) -> None:
    file = folder / format.ROUTING
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_another_backbone_is_refused_with_both_hashes_unless_told_otherwise(given, assistant, picture):
    right = assistant.routing.hashes["backbone"]
    changed(given, hashes={**assistant.routing.hashes, "backbone": "0123456789abcdef"})
    with pytest.raises(ConfigError, match=f"backbone is {right}, the run's was 0123456789abcdef"):
        fcit.load(given)
    other = fcit.load(given, other_weights=True)
    assert other.answer([picture], [QUESTION]) == assistant.answer([picture], [QUESTION])


@pytest.mark.parametrize(
    "values",
    [
        {"subspaces": ["../../etc"]},
        {"subspaces": ["0", "0"]},
        {"format": 2},
        {"extra": 1},
        {"adapter": {"rank": "many"}},
        {"method": {"name": "disco", "temperature": -1}},
        {"subspaces": ["0", "7"]},
        {"knowledge": json.loads("[" * 70 + "]" * 70)},
    ],
)
def test_damaged_routing_is_one_sentence(given, values):
    changed(given, **values)
    with pytest.raises(DataError, match=r"given"):
        fcit.load(given)


@pytest.mark.parametrize("part", ["method", "family"])
def test_no_code_is_run_that_a_file_of_others_names(given, tmp_path, part):
    (given / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    evil, backbone = f"{given}/evil.py:Evil", json.loads((given / format.ROUTING).read_text())["backbone"]
    changed(given, **({"method": {"name": evil}} if part == "method" else {"backbone": {**backbone, "family": evil}}))
    with pytest.raises(ConfigError, match="code of its own"):
        fcit.load(given)
    assert not (tmp_path / "run").exists()


def test_damaged_tensors_are_one_sentence(given):
    file = given / "subspaces" / "1" / "adapter_model.safetensors"
    whole = load_file(file)
    first = sorted(whole)[0]
    for wrong in (
        {**whole, first: whole[first][:1]},
        {n: t for n, t in whole.items() if n != first},
        {**whole, first: whole[first] * np.float32("nan")},
        {**whole, first: whole[first].astype(np.float64)},
        {**whole, first.replace("layers.0", "layers.9"): whole[first]},
    ):
        save_file(wrong, file)
        with pytest.raises(DataError, match="subspaces/1"):
            fcit.load(given)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match="subspaces/1"):
        fcit.load(given)


def test_a_shared_projector_that_is_not_shared_is_noticed(given):
    file = given / "subspaces" / "1" / "adapter_model.safetensors"
    save_file({n: t + is_projector(n) for n, t in load_file(file).items()}, file)
    with pytest.raises(DataError, match="per_subspace"):
        fcit.load(given)


def test_tokens_that_do_not_fit_are_noticed_when_asked(given, picture):
    save_file({"tokens": np.zeros((1, 3), np.float32)}, given / format.TOKENS)
    with pytest.raises(DataError, match="do not fit together"):
        fcit.load(given).answer([picture], [QUESTION])


def test_pictures_and_questions_must_pair(assistant, picture, tmp_path):
    assert assistant.answer([], []) == []
    with pytest.raises(DataError, match="2 images for 1"):
        assistant.answer([picture, picture], ["What?"])
    with pytest.raises(DataError, match="no such file"):
        assistant.answer([tmp_path / "none.png"], ["What?"])
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(DataError, match="not a readable image"):
        assistant.answer([tmp_path / "text.png"], ["What?"])
