import json

import pytest
import yaml
from PIL import Image

from fcit.config import RunConfig
from fcit.data import benchmark as module
from fcit.data.benchmark import Benchmark, open_benchmark
from fcit.data.shipped import shipped
from fcit.data.spec import BenchmarkSpec, read_spec
from fcit.errors import ConfigError, DataError

TASK = ["imagenet-r", "arxivqa", "iconqa", "clevr-math", "ocr-vqa", "flickr30k", "figureqa", "super-clevr"]


def opened(name: str, **changes):
    return open_benchmark(RunConfig(benchmark=str(name), **changes))


# ---------------------------------------------------------------------- shipped


@pytest.mark.parametrize("name", shipped())
def test_shipped(name, tmp_path):
    spec = read_spec(name)
    assert spec.name == name
    assert spec.description
    if spec.source == "files":
        with pytest.raises(ConfigError, match="data_root"):
            opened(name)
    root = {"data_root": str(tmp_path)} if spec.source == "files" else {}
    bench = opened(name, **root)
    assert len(bench.stages) >= 4
    assert all(len(stage) == 5 for stage in bench.stages)
    assert set(bench.evaluation(len(bench.stages) - 1)) == set(spec.datasets)
    if spec.heterogeneous:
        assert all(len(stage) == 5 for stage in opened(name, setting="heterogeneous", **root).stages)


@pytest.mark.parametrize("prefix", ["fcit-mini", "fcit"])
def test_published_lists(prefix):
    task, cap = read_spec(f"{prefix}-task"), read_spec(f"{prefix}-cap")
    assert task.tasks == [[name] for name in TASK]
    assert task.heterogeneous == [
        [1, 2, 4, 5, 6],
        [3, 4, 5, 7, 7],
        [0, 2, 3, 4, 5],
        [0, 0, 1, 3, 7],
        [1, 2, 4, 4, 5],
        [0, 3, 5, 7, 7],
        [2, 2, 5, 7, 7],
        [5, 5, 5, 6, 6],
    ]
    assert [set(t) for t in cap.tasks] == [
        {"aokvqa", "iconqa", "grounding", "imagenet-r"},
        {"flickr30k", "ocr-vqa"},
        {"clevr-math", "super-clevr", "tabmwp"},
        {"arxivqa", "figureqa", "dvqa"},
    ]
    assert cap.heterogeneous == [[0, 1, 1, 3, 3], [0, 2, 2, 2, 3], [1, 2, 2, 3, 3], [0, 0, 0, 1, 1]]


def test_homogeneous_stages():
    bench = opened("fcit-mini-task", federation={"clients_per_round": 3})
    assert bench.stages == [[task] * 3 for task in range(8)]
    assert bench.evaluation(0) == TASK[:1]
    assert bench.evaluation(2) == TASK[:3]
    assert bench.evaluation(7) == TASK


def test_centralised_stages_are_the_tasks_in_order():
    assert opened("fcit-mini-task", setting="centralised").stages == [[task] for task in range(8)]


def test_epochs_have_a_number_for_every_task():
    with pytest.raises(ConfigError, match=r"training.epochs: \[1, 3\] has 2 numbers, .* has 4 tasks"):
        opened("fcit-mini-short", training={"epochs": [1, 3]})


def test_heterogeneous_evaluation_knows_what_was_seen():
    bench = opened("fcit-mini-task", setting="heterogeneous")
    assert bench.evaluation(0) == [TASK[t] for t in (1, 2, 4, 5, 6)]
    assert bench.evaluation(1) == [TASK[t] for t in (1, 2, 4, 5, 6, 3, 7)]
    assert bench.evaluation(2) == [TASK[t] for t in (1, 2, 4, 5, 6, 3, 7, 0)]
    assert bench.evaluation(7) == bench.evaluation(2)


def test_capability_evaluation():
    assert len(opened("fcit-mini-cap").evaluation(1)) == 6
    assert len(opened("fcit-mini-cap", setting="heterogeneous").evaluation(0)) == 9


def test_slots_must_match_the_lists():
    with pytest.raises(ConfigError, match="5 slots"):
        opened("fcit-mini-task", setting="heterogeneous", federation={"clients_per_round": 4})


# ---------------------------------------------------------------------- a benchmark of one's own

SUFFIX = "Answer briefly."


def turns(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture
def own(tmp_path):
    """Two datasets of eight and four records, in files; returns a function that opens them."""
    root = tmp_path / "root"
    (root / "datasets" / "cups").mkdir(parents=True)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(root / "datasets" / "cups" / "0.png")
    for name, count in (("cups", 8), ("hats", 4)):
        folder = root / "instructions" / name
        folder.mkdir(parents=True)
        train = [{"image": "cups/0.png", "conversations": turns(f"<image>\n{name} {n}?", str(n))} for n in range(count)]
        test = [
            {"question_id": str(n), "image": "cups/0.png", "text": f"{name} {n}?", "answer": str(n)} for n in range(3)
        ]
        (folder / "train.json").write_text(json.dumps(train))
        (folder / "test.json").write_text(json.dumps(test))
    spec = {
        "name": "own",
        "datasets": {
            "cups": {"train": "cups/train.json", "test": "cups/test.json", "suffix": SUFFIX},
            "hats": {"train": "hats/train.json", "test": "hats/test.json"},
        },
        "tasks": [["cups"], ["cups", "hats"]],
    }

    def _open(change=None, **config):
        wanted = json.loads(json.dumps(spec))
        if change:
            change(wanted)
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump(wanted))
        config = {"data_root": str(root), "federation": {"clients": 2, "clients_per_round": 2, "beta": 5.0}, **config}
        return opened(file, **config)

    _open.root = root
    return _open


def test_own_files(own):
    bench = own()
    bench.prepare()
    assert bench.stages == [[0, 0], [1, 1]]
    assert [r.instruction for r in bench.test("cups")] == [f"cups {n}?\n{SUFFIX}" for n in range(3)]
    assert [r.instruction for r in bench.test("hats")] == [f"hats {n}?" for n in range(3)]
    assert [r.answer for r in bench.test("hats")] == ["0", "1", "2"]


def test_own_partition_is_generated_in_the_cache(own, monkeypatch, tmp_path):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    bench = own()
    shards = [bench.shard(client, 0) for client in (0, 1)]
    assert all(r.turns[0].question.endswith(f"?\n{SUFFIX}") for shard in shards for r in shard)
    found = [r.turns[0].answer for shard in shards for r in shard]
    assert len(found) == len(set(found))
    assert 7 <= len(found) <= 8
    assert bench.pooled(0) == shards[0] + shards[1]
    assert not (own.root / "partitioned_data").exists()
    assert len(list((tmp_path / "cache").rglob("client_*.json"))) == 2
    assert [own().shard(client, 0) for client in (0, 1)] == shards  # the same again, by another object


def test_a_task_of_two_datasets_is_mixed(own):
    records = own().pooled(1)
    assert {r.turns[0].question.split()[0] for r in records} == {"cups", "hats"}
    assert all(r.turns[0].question.endswith(SUFFIX) == r.turns[0].question.startswith("cups") for r in records)


def test_seed_and_beta_change_the_partition(own):
    first = own().shard(0, 1)
    assert own(seed=1).shard(0, 1) != first
    assert own(federation={"clients": 2, "clients_per_round": 2, "beta": 0.5}).shard(0, 1) != first


def test_changed_files_are_partitioned_afresh(own):
    own().shard(0, 0)
    file = own.root / "instructions" / "cups" / "train.json"
    rows = json.loads(file.read_text())
    for row in rows:
        row["conversations"][1]["value"] = "new answer"
    file.write_text(json.dumps(rows))
    assert {r.turns[0].answer for r in own().pooled(0)} == {"new answer"}


def test_suffix_is_added_once(own):
    file = own.root / "instructions" / "cups" / "train.json"
    rows = [{"image": "cups/0.png", "conversations": turns(f"<image>\ncups?\n{SUFFIX}", "1")}] * 8
    file.write_text(json.dumps(rows))
    assert {r.turns[0].question for r in own().pooled(0)} == {f"cups?\n{SUFFIX}"}


def test_numeric_question_gets_its_suffix(own):
    file = own.root / "instructions" / "cups" / "train.json"
    file.write_text(json.dumps([{"image": "cups/0.png", "conversations": turns(7, "1")}] * 8))
    assert {r.turns[0].question for r in own().pooled(0)} == {f"7\n{SUFFIX}"}


def test_official_partition_is_used_as_it_is(own):
    folder = own.root / "partitioned_data" / "5.0" / "Task1"
    folder.mkdir(parents=True)
    rows = [{"image": "cups/0.png", "conversations": turns("official?\n<image>", "yes")}]
    (folder / "client_0.json").write_text(json.dumps(rows, indent=4))
    bench = own()
    (record,) = bench.shard(0, 0)
    assert (record.turns[0].question.splitlines()[0], record.turns[0].answer) == ("official?", "yes")
    with pytest.raises(DataError, match="no file for client 1"):
        bench.shard(1, 0)
    assert len(bench.pooled(1)) > 1  # a task without official files is still generated


def test_some_questions_only(own):
    assert len(own(evaluation={"samples": 2}).test("cups")) == 2


def test_split_without_files(own):
    with pytest.raises(ConfigError, match=r"needs the key datasets.cups.val in .*e.g. `val: cups/val.json`"):
        own(evaluation={"split": "val"}).test("cups")


def test_split_without_files_is_noticed_before_the_run(own):
    with pytest.raises(ConfigError, match="val"):
        own(evaluation={"split": "val"}).prepare()


def test_missing_data_root(own, tmp_path):
    with pytest.raises(ConfigError, match="data_root"):
        own(data_root=None)
    with pytest.raises(ConfigError, match="nowhere"):
        own(data_root=str(tmp_path / "nowhere")).prepare()


def test_everything_missing_is_listed(own):
    (own.root / "instructions" / "cups" / "train.json").unlink()
    (own.root / "instructions" / "hats" / "test.json").unlink()
    (own.root / "datasets").rename(own.root / "elsewhere")
    with pytest.raises(ConfigError) as caught:
        own().prepare()
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "cups/train.json" in text
    assert "hats/test.json" in text
    assert "image folder" in text


def problem(own, change) -> str:
    with pytest.raises(ConfigError) as caught:
        own(change)
    return str(caught.value)


def test_unknown_dataset_in_tasks(own):
    text = problem(own, lambda spec: spec["tasks"].append(["cupz"]))
    assert "tasks[2] names the unknown dataset 'cupz'; did you mean 'cups'?" in text


def test_a_mistake_between_keys_does_not_print_the_whole_file(own):
    assert "train.json" not in problem(own, lambda spec: spec["tasks"].append(["cupz"]))


def test_unknown_task_in_stages(own):
    assert "tasks are 0..1" in problem(own, lambda spec: spec.update(homogeneous=[0, 2]))
    assert "tasks are 0..1" in problem(own, lambda spec: spec.update(heterogeneous=[[0, -1]]))


def test_unknown_scorer(own):
    assert "did you mean 'exact'" in problem(own, lambda spec: spec["datasets"]["cups"].update(scorer="exat"))


def test_unknown_key_of_a_dataset(own):
    text = problem(own, lambda spec: spec["datasets"]["cups"].update(sufix="x"))
    assert "datasets.cups.sufix: unknown key" in text
    assert "did you mean 'suffix'" in text


def test_unknown_benchmark():
    with pytest.raises(ConfigError, match="did you mean 'fcit-mini-task'"):
        opened("fcit-mini-tusk")
    with pytest.raises(ConfigError, match="no such file"):
        opened("none.yaml")


def test_own_lists_are_needed_for_the_heterogeneous_setting(own):
    with pytest.raises(ConfigError) as caught:
        own(setting="heterogeneous")
    text = str(caught.value)
    assert "needs the key `heterogeneous` in " in text
    assert "own.yaml" in text
    assert "e.g. `heterogeneous: [[0, 1], [1, 0]]`" in text
    # and the line is right: two tasks, two slots
    line = yaml.safe_load(text[text.index("heterogeneous: [[") : text.index("`; or use")])
    assert own(lambda spec: spec.update(line), setting="heterogeneous").stages == [[0, 1], [1, 0]]


def test_slots_of_another_number_name_both_ways_out(own):
    with pytest.raises(ConfigError) as caught:
        own(lambda spec: spec.update(heterogeneous=[[0, 1, 1]]), setting="heterogeneous")
    text = str(caught.value)
    assert "set federation.clients_per_round=3, or name 2 tasks in every stage of the key `heterogeneous`" in text


def test_a_missing_file_is_told_with_the_key_that_names_it(own):
    def change(spec):
        spec["datasets"]["cups"] |= {"references": "cups/none.json", "scorer": "caption"}
        spec["images"] = "pictures"

    with pytest.raises(ConfigError) as caught:
        own(change).prepare()
    text = str(caught.value)
    assert "cups/none.json, named by datasets.cups.references of the benchmark" in text
    assert "pictures, named by `images` of the benchmark" in text


def test_captions_without_answers_name_the_key_of_their_references(own):
    file = own.root / "instructions" / "cups" / "test.json"
    file.write_text(
        json.dumps([{k: v for k, v in row.items() if k != "answer"} for row in json.loads(file.read_text())])
    )
    with pytest.raises(ConfigError) as caught:
        own(lambda spec: spec["datasets"]["cups"].update(scorer="caption")).prepare()
    assert "a COCO file of their own: datasets.cups.references" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec.pop("tasks"), "tasks: must be given, e.g. `tasks: [[flowers], [receipts]]`"),
        (lambda spec: spec.pop("name"), "name: must be given, e.g. `name: mine`"),
        (
            lambda spec: spec["datasets"]["cups"].pop("train"),
            "datasets.cups.train: must be given, e.g. `train: flowers/t",
        ),
        (lambda spec: spec.update(tasks=["cups"]), "got 'cups', e.g. `tasks: [[flowers], [receipts]]`"),
        (lambda spec: spec.update(tasks=[]), "got [], e.g. `tasks: ["),
        (lambda spec: spec.update(tasks=[[]]), "tasks[0] is empty; name its data sets"),
        (lambda spec: spec.update(labels=[{"letter": "A", "description": "cups"}] * 2), "labels: the letters A, A are"),
        (lambda spec: spec.update(homogeneous=["cups"]), "got 'cups', e.g. `homogeneous: [1, 0]`"),
        (lambda spec: spec.update(heterogeneous=[0]), "got 0, e.g. `heterogeneous: [[0, 1, 1], [1, 0, 0]]`"),
        (lambda spec: spec["datasets"]["cups"].update(also="exact"), "got 'exact', e.g. `also: [substring-official]`"),
        (lambda spec: spec["datasets"]["cups"].update(max_new_tokens=0), "max_new_tokens: input should be greater"),
        (lambda spec: spec.update(instructions=5), "instructions: input should be a valid string or input should be a"),
        (lambda spec: spec.update(images=[]), "images: input should be a valid string or list should have at least 1"),
        (
            lambda spec: spec["datasets"]["cups"].update(test_suffix={"cases": {}, "otherwise": "x", "other": "y"}),
            "datasets.cups.test_suffix.other: unknown key; did you mean 'otherwise'? (allowed: cases, otherwise)",
        ),
        (
            lambda spec: spec["datasets"]["cups"].update(columns={"questions": "q"}),
            "datasets.cups.columns.questions: unknown key; did you mean 'question'?",
        ),
    ],
)
def test_a_mistake_in_the_file_shows_how_the_key_is_written(own, change, said):
    text = problem(own, change)
    assert said in text
    assert len(text.splitlines()) == 1


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path))
    assert module.cache_folder() == tmp_path
    monkeypatch.delenv("FCIT_CACHE")
    assert module.cache_folder().name == "fcit"


def test_texts_alone_need_no_image_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "instructions"
    folder.mkdir()
    said = [{"from": "human", "value": "What is the color of snow?"}, {"from": "gpt", "value": "white"}]
    (folder / "train.json").write_text(json.dumps([{"conversations": said}] * 4))
    (folder / "test.json").write_text(json.dumps([{"question_id": 1, "text": "And of grass?", "answer": "green"}]))
    spec = BenchmarkSpec(name="t", datasets={"snow": {"train": "train.json", "test": "test.json"}}, tasks=[["snow"]])
    bench = Benchmark(spec, tmp_path, RunConfig(federation={"clients": 2, "clients_per_round": 2}))
    bench.prepare()
    assert bench.pooled(0)
    assert bench.test("snow")[0].images == ()


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("Benchmark(read_spec('fcit-mini-task'), Path(), config)", None),
        ("read_spec('fcit-mini-task')", "returned BenchmarkSpec, not a Benchmark"),
    ],
)
def test_a_benchmark_made_by_code(tmp_path, returned, said):
    file = tmp_path / "mine.py"
    file.write_text(
        "from pathlib import Path\n"
        "from fcit.data.benchmark import Benchmark\n"
        "from fcit.data.spec import read_spec\n\n\n"
        f"def make(config):\n    return {returned}\n"
    )
    if said is None:
        assert opened(f"{file}:make").name == "fcit-mini-task"
    else:
        with pytest.raises(ConfigError, match=said):
            opened(f"{file}:make")
