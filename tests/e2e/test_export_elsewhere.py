"""What an export is to others: a plain checkpoint, a repository of a hub, tasks of lmms-eval, adapters for vLLM."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForImageTextToText

import fcit as package
from fcit.data.benchmark import open_benchmark
from fcit.errors import ConfigError
from fcit.evaluation.scoring import score_file
from fcit.export.folder import export_merged
from fcit.export.metadata import hub_datasets
from fcit.export.tasks import write_tasks
from fcit.models.backbone import Backbone
from fcit.runs.reader import Run
from tests.helpers.made import Made, raw, said

TOKEN = "hf_never_to_be_shown"


# ---------------------------------------------------------------------- a plain checkpoint


@pytest.mark.parametrize(("model", "projector"), [("llava", "per_subspace"), ("qwen", "shared")])
def test_a_merged_subspace_answers_as_it_does_beside_the_base(model, projector, backbones, tmp_path, picture):
    made = Made(tmp_path / "run", raw(projector=projector, backbone=backbones[model]))
    expected, texts = made.alone("1", picture)
    out = export_merged(made.path, "1", tmp_path / "out")
    _, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    plain = Backbone(made.config.backbone.model_copy(update={"model": str(out)}))
    assert not hasattr(plain.model, "peft_config")
    assert plain.hashes["tokenizer"] == made.backbone.hashes["tokenizer"]
    assert plain.hashes["processor"] == made.backbone.hashes["processor"]
    logits, answers = said(plain, picture)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert answers == texts
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model_relation == "finetune"


def test_what_cannot_be_merged_is_said(tmp_path, fcit):
    made = Made(tmp_path / "run", raw("disco"), count=2)
    code, _, err = fcit("export", made.path, "--to", tmp_path / "out", "--merge", "7")
    assert (code, "no subspace '7'" in err) == (2, True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for more, words in (([], "is not empty"), (["--force"], "an empty folder")):
        code, _, err = fcit("export", made.path, "--to", tmp_path / "full", "--merge", "0", *more)
        assert (code, words in err) == (2, True)


# ---------------------------------------------------------------------- the card


def test_the_card_is_metadata_that_the_hub_reads(reference, tmp_path):
    out = package.export_run(reference, tmp_path / "out")
    run, card = Run(reference), ModelCard.load(out / "README.md")
    data = card.data
    assert (data.base_model, data.base_model_relation, data.library_name) == ("fcit-tiny", "adapter", "peft")
    assert data.pipeline_tag == "image-text-to-text"
    assert {"lora", "federated-learning", "continual-learning"} <= set(data.tags)
    assert data.model_name == run.name
    values = {(r.dataset_config, r.metric_name): r for r in data.eval_results}
    for name, score in run.matrix.scores[-1].items():
        [found] = [r for (config, _), r in values.items() if config == name]
        assert found.metric_value == pytest.approx(score, abs=0.005)
        assert (found.task_type, found.dataset_split) == ("image-text-to-text", "test")
        assert found.dataset_args["reduced"][0].startswith("8 questions")
    assert values["all", "Last"].metric_value == pytest.approx(run.matrix.last, abs=0.005)
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()


def test_data_sets_are_named_where_a_hub_has_them(tmp_path):
    assert hub_datasets("fcit-mini-task") == []
    assert hub_datasets("fcit-task")[:2] == ["MLLM-CL/FCIT", "HaiyangGuo/UCIT"]
    assert hub_datasets(str(tmp_path / "gone.yaml")) == []


# ---------------------------------------------------------------------- a hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; remembers what was sent."""

    def do_GET(self):
        self.reply({"id": "me/out", "private": self.server.private})

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        self.server.calls.append((self.path, self.headers.get("Authorization"), body))
        if self.server.refuses:
            self.reply({"error": "not allowed"}, 403)
        elif self.path == "/api/repos/create":
            self.reply({"url": f"http://{self.headers['Host']}/me/out", "name": "me/out"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.reply({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            self.reply({"commitUrl": f"http://{self.headers['Host']}/me/out/commit/1", "commitOid": "1"})
        else:
            self.reply({"warnings": [], "errors": []})

    def reply(self, value: dict, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.calls, server.private, server.refuses = [], True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def sent(hub) -> dict[str, bytes]:
    """The files of the commit, by name."""
    [body] = [body for path, _, body in hub.calls if "/commit/" in path]
    rows = [json.loads(line)["value"] for line in body.splitlines() if json.loads(line)["key"] == "file"]
    return {row["path"]: base64.b64decode(row["content"]) for row in rows}


def test_a_push_uploads_the_export_and_nothing_else_to_a_private_repository(hub, tmp_path, fcit):
    made = Made(tmp_path / "run", raw("disco"), count=2)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("secret")
    code, shown, err = fcit("export", made.path, "--to", out, "--force")
    assert code == 0, err
    assert hub.calls == []  # nothing leaves the machine without the flag
    code, shown, err = fcit("export", made.path, "--to", out, "--force", "--push", "me/out")
    assert code == 0, err
    path, key, body = hub.calls[0]
    assert (path, key) == ("/api/repos/create", f"Bearer {TOKEN}")
    assert json.loads(body)["visibility" if "visibility" in json.loads(body) else "private"] in (True, "private")
    files = sent(hub)
    assert set(files) == {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file() and f.name != "mine.txt"}
    assert all((out / name).read_bytes() == content for name, content in files.items())
    assert "/me/out" in shown
    assert TOKEN not in shown + err


def test_what_a_hub_refuses_leaves_the_export_and_shows_no_token(hub, tmp_path, fcit, monkeypatch):
    made = Made(tmp_path / "run", raw("disco"), count=1)

    def push(*more: str) -> str:
        code, shown, err = fcit("export", made.path, "--to", tmp_path / "out", "--force", *more)
        assert code == 2
        assert TOKEN not in shown + err
        return err

    hub.private = False
    assert "is a public repository" in push("--push", "me/out")
    assert not any("/commit/" in path for path, _, _ in hub.calls)
    hub.refuses = True
    assert "403" in push("--push", "me/out", "--public")
    assert (tmp_path / "out" / "routing.json").is_file()
    assert "--push no/such/name" in push("--push", "no/such/name")
    assert "there is no --push" in push("--public")
    hub.server_close()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "--push me/out" in push("--push", "me/out")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline" in push("--push", "me/out").lower()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "HF_TOKEN" in push("--push", "me/out")


# ---------------------------------------------------------------------- lmms-eval

#: Of TaskConfig in lmms-eval 0.7.3 (lmms_eval/api/task.py), those that its task guide explains for generation.
FIELDS = set(
    "task dataset_path dataset_name dataset_kwargs test_split output_type doc_to_visual doc_to_text doc_to_target "
    "generation_kwargs process_results metric_list metadata lmms_eval_specific_kwargs".split()
)


class Loader(yaml.SafeLoader):
    """Reads ``!function utils.NAME`` as the name."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_tasks_hold_the_questions_and_score_as_the_run_does(reference, tmp_path, fcit):
    out = tmp_path / "tasks"
    code, _, err = fcit("export", reference, "--to", tmp_path / "out", "--tasks", out)
    assert code == 0, err
    run = Run(reference)
    benchmark = open_benchmark(run.config)
    functions: dict = {}
    exec((out / "utils.py").read_text(), functions)

    def called(name: str):
        return functions[name.removeprefix("utils.")]

    files = {name: out / f"{name.replace('-', '_')}.yaml" for name in run.matrix.datasets}
    tasks = {name: yaml.load(file.read_text(), Loader) for name, file in files.items()}
    group = yaml.load((out / "_group.yaml").read_text(), Loader)
    assert group["task"] == [task["task"] for task in tasks.values()]
    for name, task in tasks.items():
        assert set(task) <= FIELDS
        assert task["output_type"] == "generate_until"
        rows = list(datasets.load_dataset(task["dataset_path"], **task["dataset_kwargs"])[task["test_split"]])
        asked = run.predictions(name)
        assert [called(task["doc_to_text"])(row, {}) for row in rows] == [record.prompt for record in asked]
        [image] = called(task["doc_to_visual"])(rows[0])
        assert image.mode == "RGB"
        answers = [[record.text] for record in asked]
        found = map(called(task["process_results"]), rows, answers)
        [metric] = task["metric_list"]
        score = called(metric["aggregation"])([result[metric["metric"]] for result in found])
        file = run.folder.predictions / "stage-2" / f"{name}.jsonl"
        assert score == score_file(benchmark, name, file).scores[0].score
    assert not (tmp_path / "out" / "tasks").exists()
    with pytest.raises(ConfigError, match="is not an empty folder"):
        write_tasks(reference, out)


# ---------------------------------------------------------------------- vLLM


def test_an_adapter_has_the_names_and_keys_that_vllm_reads(backbones, tmp_path):
    """``PEFTHelper`` and ``LoRAModel.from_local_checkpoint`` of vLLM: rank, alpha, modules; names of factors alone."""
    from safetensors import safe_open

    made = Made(tmp_path / "run", raw(projector="frozen", backbone=backbones["llava"]))
    out = package.export_run(made.path, tmp_path / "out")
    for name in made.subspaces:
        folder = out / "subspaces" / name
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (made.config.adapter.rank, made.config.adapter.alpha)
        assert config["modules_to_save"] is None
        assert config["bias"] == "none"
        assert not config["use_dora"]
        with safe_open(folder / "adapter_model.safetensors", "np") as tensors:
            names = list(tensors.keys())
        assert all(n.startswith("base_model.model.") and n.endswith(("lora_A.weight", "lora_B.weight")) for n in names)
