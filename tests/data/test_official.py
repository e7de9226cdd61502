"""The published benchmarks over small trees in their layout: read as they are, checked, generated where absent."""

import json
from pathlib import Path

import pytest

from fcit import registry
from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark, open_benchmark
from fcit.data.formats import read_train
from fcit.data.records import TestRecord
from fcit.data.spec import read_spec
from fcit.errors import ConfigError
from tests.helpers.official import BETAS, official_tree

OFFICIAL = ["fcit-task", "fcit-cap", "ucit", "mllm-dcl", "mllm-acl", "coin", "coin-6", "coin-long-10", "trigap"]
CLIENTS = 5


def opened(root: Path, name: str, **changes) -> Benchmark:
    federation = {"clients": CLIENTS, "clients_per_round": 5, **changes.pop("federation", {})}
    return open_benchmark(RunConfig(benchmark=name, data_root=str(root), federation=federation, **changes))


@pytest.fixture(scope="module", params=OFFICIAL)
def tree(request, tmp_path_factory) -> tuple[str, Path]:
    """Each benchmark's tree, without a partition; not to be changed."""
    return request.param, official_tree(tmp_path_factory.mktemp(request.param), request.param, records=10, tests=5)


# ---------------------------------------------------------------------- reading


def test_the_tree_opens_and_clients_get_shares(tree):
    name, root = tree
    bench = opened(root, name)
    bench.prepare()
    bench.divide()
    for task, names in enumerate(bench.spec.tasks):
        found = bench.pooled(task)
        assert 10 * len(names) - CLIENTS <= len(found) <= 10 * len(names)
        assert {n for n in names for r in found if n.replace("-", "_") in r.images[0] or name == "mllm-dcl"} == set(
            names
        )
    for dataset in bench.spec.datasets:
        assert len(bench.test(dataset)) == 5
        assert all(r.answer for r in bench.test(dataset))
    assert not (root / bench.spec.partition.folder).exists()  # generated ones lie in the cache


@pytest.mark.parametrize("name", ["fcit-task", "fcit-cap"])
def test_published_constants(name):
    spec = read_spec(name)
    assert spec.rounds == 10
    assert spec.homogeneous == list(range(len(spec.tasks)))
    assert {d.max_new_tokens for d in spec.datasets.values()} == {128}
    rules = {n: d.scorer for n, d in spec.datasets.items() if d.scorer != "exact"}
    wanted = {
        "flickr30k": "caption7",
        "figureqa": "substring-official",
        "dvqa": "substring-official",
        "grounding": "box-iou-official",
    }
    assert rules == {n: rule for n, rule in wanted.items() if n in spec.datasets}
    assert all(d.also and d.also != [d.scorer] for d in spec.datasets.values())


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        (
            "coin",
            "coin-science coin-textvqa coin-imagenet coin-gqa exact box-iou-official exact coin-ocrvqa",
        ),
        ("coin-6", "fmcl-equal fmcl-contained fmcl-equal fmcl-contained fmcl-contained fmcl-contained"),
        ("coin-long-10", " ".join("fmcl-equal" if n in (6, 9) else "fmcl-contained" for n in range(10))),
        ("trigap", " ".join(["exact"] * 10)),
        ("mllm-acl", "acl-ocr acl-math-local acl-vp acl-gui-local"),
    ],
)
def test_published_rules(name, rules):
    spec = read_spec(name)
    assert " ".join(spec.datasets[task[0]].scorer for task in spec.tasks) == rules
    assert spec.rounds == (1 if name in ("coin-6", "coin-long-10") else None)
    local = [n for n, d in spec.datasets.items() if d.scorer not in registry.OFFICIAL_RULES]
    assert local == (["math", "gui"] if name == "mllm-acl" else [])


def test_questions_may_name_images_of_another_folder_than_training_does(tmp_path):
    bench = opened(official_tree(tmp_path, "mllm-acl", records=8, tests=2), "mllm-acl")
    bench.prepare()
    bench.divide()
    assert {r.images[0].split("/")[0] for r in bench.pooled(0)} == {"OCR"}
    assert {r.images[0].split("/")[0] for r in bench.test("ocr")} == {"OCR_test"}
    (tmp_path / "OCR_test/images/ocr/ocr_test_000001.jpg").unlink()
    with pytest.raises(ConfigError, match=r"OCR_test/images/ocr/ocr_test_000001.jpg' is missing"):
        opened(tmp_path, "mllm-acl").prepare()


def test_heterogeneous_schedule_is_the_official_scripts(tmp_path):
    bench = opened(tmp_path, "fcit-task", setting="heterogeneous")
    first = {"arxivqa", "iconqa", "ocr-vqa", "flickr30k", "figureqa"}
    assert set(bench.evaluation(0)) == first
    assert set(bench.evaluation(1)) == first | {"clevr-math", "super-clevr"}
    assert set(bench.evaluation(2)) == set(bench.evaluation(7)) == set(bench.spec.datasets)
    cap = opened(tmp_path, "fcit-cap", setting="heterogeneous")
    assert [len(cap.evaluation(stage)) for stage in range(4)] == [9, 12, 12, 12]


def test_homogeneous_orders():
    assert [t[0] for t in read_spec("ucit").tasks] == [
        "imagenet-r",
        "arxivqa",
        "vizwiz",
        "iconqa",
        "clevr-math",
        "flickr30k",
    ]
    assert [t[0] for t in read_spec("mllm-dcl").tasks] == ["rs", "med", "ad", "sci", "fin"]
    assert [t[0] for t in read_spec("mllm-acl").tasks] == ["ocr", "math", "vp", "gui"]
    coin = ["scienceqa", "textvqa", "imagenet", "gqa", "vizwiz", "grounding", "vqav2", "ocr-vqa"]
    assert [t[0] for t in read_spec("coin").tasks] == coin
    assert [t[0] for t in read_spec("coin-6").tasks] == [t for t in coin if t not in ("vizwiz", "grounding")]
    assert " ".join(t[0] for t in read_spec("coin-long-10").tasks) == (
        "docvqa okvqa chartqa pathvqa aokvqa infovqa iconqa vizwiz clevr-math ai2d"
    )
    assert " ".join(t[0] for t in read_spec("trigap").tasks) == (
        "pmcvqa docvqa chartqa iconqa infographicvqa arxivqa roadside chemvqa floodnetvqa clevr-math"
    )
    assert [len(t) for t in read_spec("fcit-cap").tasks] == [4, 2, 3, 3]  # General, Other, Math, Chart


@pytest.mark.parametrize("setting", ["homogeneous", "heterogeneous"])
def test_delivered_partition_is_read_as_it_is(tmp_path, setting):
    root = official_tree(tmp_path, "fcit-cap", records=5, tests=1, clients=CLIENTS)
    for beta in BETAS:
        bench = opened(root, "fcit-cap", setting=setting, federation={"beta": float(beta)})
        bench.prepare()
        file = root / f"partitioned_data/Capability-related/cap/{beta}/Task3/client_4.json"
        assert bench.shard(4, 2) == read_train(file)
        assert len(bench.shard(4, 2)) == 3
        assert bench.pooled(1)


def test_what_nobody_trains_of_a_delivered_partition_is_told(tmp_path, fcit):
    root = official_tree(tmp_path / "root", "fcit-cap", records=5, tests=1, clients=CLIENTS, betas=("1.0",))
    bench = opened(root, "fcit-cap", federation={"clients": CLIENTS - 2, "clients_per_round": 2})
    bench.prepare()
    assert len(bench.warnings) == 4
    assert f"Task1: records of 2 clients beyond federation.clients ({CLIENTS - 2})" in bench.warnings[0]
    command = ("fcit-cap", "--root", root, "--beta", "1.0", "--clients", CLIENTS - 2)
    notes = findings(fcit, *command)[1]["partitions"][0]["notes"]
    assert len(notes) == 4
    assert f"files of 2 clients beyond {CLIENTS - 2}" in notes[0]

    folder = root / "partitioned_data/Capability-related/cap/1.0"
    (folder / "Task2").rename(folder / "Other")
    bench = opened(root, "fcit-cap", federation={"clients": CLIENTS, "clients_per_round": 2})
    bench.prepare()
    assert bench.warnings == [
        f"{folder}: has no client files of task 1, which are drawn here; complete the partition, or move it away"
    ]


def test_one_participant_has_the_training_files_not_the_delivered_partition(tmp_path):
    root = official_tree(tmp_path, "fcit-cap", records=5, tests=1, clients=CLIENTS)
    bench = opened(root, "fcit-cap", setting="centralised", federation={"clients": 1, "clients_per_round": 1})
    bench.prepare()
    files = [record for name in bench.tasks[2] for record in bench.files.train_file(name).records]
    assert sorted(map(repr, bench.shard(0, 2))) == sorted(map(repr, files))


def test_questions_of_the_domains_get_what_the_official_generators_add(tmp_path):
    bench = opened(official_tree(tmp_path, "mllm-dcl", records=30, tests=5), "mllm-dcl")
    word, letter = " Only answer with yes or no directly.", " Answer with the given letter directly, e.g., A, B, C, D."
    fin = bench.test("fin")
    assert {r.answer for r in fin} >= {"Yes", "No", "A"}
    assert all(r.instruction.endswith(word if r.answer in ("Yes", "No") else letter) for r in fin)
    phrase = "? Answer the question with a single word (or phrase)."
    assert all(r.instruction.endswith(phrase) for r in bench.test("med"))
    assert all(r.instruction.endswith("single word or phrase.") for r in bench.test("rs"))
    assert not any("directly" in r.turns[0].question for r in bench.pooled(4))  # training files stay as they are
    assert {r.images[0].split("/")[0] for r in [*bench.test("sci"), *bench.pooled(3)]} == {"Sci"}


@pytest.mark.parametrize(
    ("answer", "asks"),
    [
        ("Yes", "yes or no"),
        ("No", "yes or no"),
        ("yes", "letter"),
        ("NO", "letter"),
        ("Yes ", "letter"),
        ("A", "letter"),
    ],
)
def test_yes_and_no_are_compared_as_they_stand(answer, asks):
    """``answer in ['Yes', 'No']`` in model_fin.py."""
    assert asks in read_spec("mllm-dcl").datasets["fin"].for_testing(TestRecord("0", (), "?", answer)).instruction


def test_grounding_keeps_its_box_and_captions_their_references(tmp_path):
    bench = opened(official_tree(tmp_path, "fcit-cap", records=2, tests=3), "fcit-cap")
    assert bench.test("grounding")[0].answer == "[0.01, 0.20, 0.53, 0.61]"
    assert all(len(r.references) == 2 for r in bench.test("flickr30k"))


# ---------------------------------------------------------------------- data.max_records


def test_max_records_keeps_the_same_records_for_every_method(tmp_path):
    root = official_tree(tmp_path, "fcit-cap", records=30, tests=4, clients=CLIENTS)

    def kept(most: int | None, **changes) -> list[str]:
        bench = opened(root, "fcit-cap", data={"max_records": most}, **changes)
        bench.prepare()
        return sorted(r.images[0] for r in bench.pooled(0))

    ten = kept(10, method={"name": "finetune"})
    assert ten == kept(10, method={"name": "disco"})
    assert 40 - CLIENTS <= len(ten) <= 40
    per = {n: sum(n.replace("-", "_") in image for image in ten) for n in read_spec("fcit-cap").tasks[0]}
    assert all(5 <= count <= 10 for count in per.values()), per
    assert len(kept(None)) == 120
    assert kept(10, seed=1) != ten
    assert len(opened(root, "fcit-cap", data={"max_records": 2}).test("iconqa")) == 4  # questions are not cut


def test_max_records_spares_what_is_not_kept(tmp_path):
    root = official_tree(tmp_path, "fcit-task", records=40, tests=2)
    kept = {r.images[0] for r in opened(root, "fcit-task", data={"max_records": 8}).pooled(0)}
    for image in (root / "datasets/ImageNet-R/train").iterdir():
        if f"ImageNet-R/train/{image.name}" not in kept:
            image.write_bytes(b"")
            break
    with pytest.raises(ConfigError, match="not a readable image"):
        opened(root, "fcit-task").prepare()
    bench = opened(root, "fcit-task", data={"max_records": 8})
    assert len(bench.pooled(0)) >= 8 - CLIENTS
    assert all(bench.shard(c, 0) for c in range(CLIENTS))


def test_max_records_too_few_for_the_clients(tmp_path):
    root = official_tree(tmp_path, "fcit-task", records=6, tests=1)
    with pytest.raises(ConfigError, match=r"raise data\.max_records"):
        opened(root, "fcit-task", data={"max_records": 3}).divide()


# ---------------------------------------------------------------------- fcit data check


def test_check_finds_nothing_wrong(tree, fcit):
    name, root = tree
    code, out, err = fcit("data", "check", name, "--root", root)
    assert code == 0, out + err
    assert "FAIL" not in out
    assert "generated" in out
    said = [line for line in out.splitlines() if ": best constant answer " in line]
    scorers = [dataset.scorer for dataset in read_spec(name).datasets.values()]
    assert len(said) == len(scorers)
    assert sum("by our rule" in line for line in said) == scorers.count("caption7")
    assert sum(": form of answers: " in line for line in out.splitlines()) == len(scorers)
    assert ("heterogeneous" in out) == name.startswith("fcit")


def findings(fcit, *args: object) -> tuple[int, dict]:
    code, out, err = fcit("data", "check", *args, "--json")
    assert not err
    return code, json.loads(out)


def test_check_names_what_is_missing_and_broken(tmp_path, fcit):
    root = official_tree(tmp_path / "root", "fcit-cap", records=6, tests=3)
    instructions = root / "instructions"
    (root / "datasets/DVQA/images/dvqa_train_000004.png").unlink()
    (instructions / "TabMWP/test.json").unlink()
    rows = json.loads((instructions / "AOKVQA/train.json").read_text())
    rows[2]["conversations"] = []
    (instructions / "AOKVQA/train.json").write_text(json.dumps(rows, indent=4))
    (instructions / "IconQA/val.json").write_text("[\n1,\n}")
    (root / "datasets/COCO2014/val2014/aokvqa_test_000001.jpg").write_bytes(b"no image")

    code, found = findings(fcit, "fcit-cap", "--root", root)
    assert code == 2
    assert not found["good"]
    told = {d["name"]: "\n".join(d["problems"]) for d in found["datasets"] if d["problems"]}
    assert set(told) == {"dvqa", "tabmwp", "aokvqa", "iconqa"}
    line = 1 + (instructions / "DVQA/train.json").read_text().split('"dvqa-4"')[0].count("\n") - 1
    assert (
        f"DVQA/train.json, line {line}, record 4: image 'DVQA/images/dvqa_train_000004.png' is missing" in told["dvqa"]
    )
    assert "TabMWP/test.json: no such file" in told["tabmwp"]
    assert "AOKVQA/train.json, line" in told["aokvqa"]
    assert "record 2: a conversation needs" in told["aokvqa"]
    assert "val.json, record 1" in told["aokvqa"]
    assert "not a readable image" in told["aokvqa"]
    assert "IconQA/val.json, line 3: broken JSON" in told["iconqa"]
    assert all(not s["runs"] and "dvqa" in s["why"] for s in found["settings"])
    counts = {d["name"]: (d["train"], d["test"], d["bad_images"], d["bad_records"]) for d in found["datasets"]}
    assert counts["dvqa"] == (6, 3, 1, 0)
    assert counts["aokvqa"] == (6, 3, 1, 1)
    assert counts["tabmwp"] == (6, None, 0, 0)

    code, out, _ = fcit("data", "check", "fcit-cap", "--root", root)
    assert code == 2
    assert "dvqa_train_000004.png" in out
    assert "FAIL" in out


def test_check_samples_images_unless_all_are_asked_for(tmp_path, fcit):
    root = official_tree(tmp_path / "root", "mllm-dcl", records=130, tests=2)
    for image in (root / "RS/images").glob("rs_train_*"):
        image.unlink()
    sampled = findings(fcit, "mllm-dcl", "--root", root)[1]["datasets"][0]
    every = findings(fcit, "mllm-dcl", "--root", root, "--all")[1]["datasets"][0]
    assert (sampled["images"], sampled["bad_images"]) == (102, 100)
    assert (every["images"], every["bad_images"]) == (132, 130)
    assert len(every["problems"]) == 5


def test_check_looks_at_the_partition(tmp_path, fcit):
    root = official_tree(tmp_path / "root", "fcit-cap", records=6, tests=2, clients=CLIENTS)
    folder = root / "partitioned_data/Capability-related/cap"
    command = ("fcit-cap", "--root", root, "--clients", CLIENTS)
    code, found = findings(fcit, *command)
    assert code == 0
    federated = [s for s in found["settings"] if s["setting"] != "centralised"]
    assert {s["partition"] for s in federated} == {"delivered"}
    assert len(federated) == 6

    (folder / "0.5/Task2").rename(folder / "0.5/Other")
    (folder / "1.0/Task1/client_3.json").unlink()
    (folder / "5.0/Task4/client_0.json").write_text('[\n{"image": 1}]')
    code, found = findings(fcit, *command)
    told = {p["beta"]: " ".join(p["problems"]) for p in found["partitions"]}
    assert code == 2
    assert [s["setting"] for s in found["settings"] if s["runs"]] == ["centralised"]  # it needs no client files
    assert "Task2 missing" in told["0.5"]
    assert found["partitions"][0]["tasks"] == 3
    assert "1.0/Task1: no client_3.json" in told["1.0"]
    assert "5.0/Task4/client_0.json, line 2, record 0" in told["5.0"]
    assert findings(fcit, *command, "--beta", "0.1")[0] == 0  # none is delivered for it: generated


def test_check_notices_tasks_in_another_order(tmp_path, fcit):
    """What the published partition's order is nobody states; who has it is told if the benchmark file is wrong."""
    root = official_tree(tmp_path / "root", "fcit-cap", records=6, tests=2, clients=CLIENTS, betas=("1.0",))
    folder = root / "partitioned_data/Capability-related/cap/1.0"
    for old, new in (("Task2", "x"), ("Task4", "Task2"), ("x", "Task4")):
        (folder / old).rename(folder / new)
    code, found = findings(fcit, "fcit-cap", "--root", root, "--clients", CLIENTS, "--beta", "1.0")
    first, second = found["partitions"][0]["problems"]
    assert code == 2
    assert "Task2: its records are those of arxivqa, figureqa, dvqa, not of flickr30k, ocr-vqa" in first
    assert "Task4" in second
    assert "another order" in second


def test_check_of_one_setting(tmp_path, fcit):
    root = official_tree(tmp_path / "root", "ucit", records=3, tests=2)
    code, found = findings(fcit, "ucit", "--root", root, "--setting", "homogeneous", "--beta", "0.5")
    assert code == 0
    assert [(s["setting"], s["beta"]) for s in found["settings"]] == [("homogeneous", "0.5")]
    code, _, err = fcit("data", "check", "ucit", "--root", root, "--setting", "heterogeneous")
    assert code == 2
    assert "needs the key `heterogeneous` in" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("fcit-task", "--root", "/nowhere/at/all"), "no folder /nowhere/at/all"),
        (("fcit-tusk", "--root", "/tmp"), "did you mean 'fcit-task'"),
        (("fcit-mini-task", "--root", "/tmp"), "fcit data make"),
        (("fcit-task", "--root", "/tmp", "--beta", "x"), "must be numbers"),
    ],
)
def test_check_of_what_is_not_there(fcit, args, words):
    code, _, err = fcit("data", "check", *args)
    assert code == 2
    assert words in err


def test_ucit_images_are_found_in_either_place(tmp_path):
    root = official_tree(tmp_path, "ucit", records=4, tests=2)
    opened(root, "ucit").prepare()
    for folder in (root / "datasets").iterdir():
        target = root / folder.name
        target.mkdir(exist_ok=True)
        for inner in folder.iterdir():
            inner.rename(target / inner.name)
        folder.rmdir()
    (root / "datasets").rmdir()
    bench = opened(root, "ucit")
    bench.prepare()
    assert bench.image_root == root


def test_make_still_renders(fcit, tmp_path, monkeypatch):
    from fcit.data.mini import render

    monkeypatch.setattr(render, "SPLITS", {"train": 2, "val": 1, "test": 1})
    code, out, _ = fcit("data", "make", "--root", tmp_path / "root", "--dataset", "iconqa")
    assert code == 0
    assert (tmp_path / "root/instructions/IconQA/train.json").is_file()
    assert "IconQA" in out
    assert fcit("data", "make", "--root", tmp_path / "root", "--dataset", "iconqb")[0] == 2
