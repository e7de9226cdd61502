"""Tables of the Hugging Face hub: large ones, those kept of the hub, and runs on them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from datasets import Dataset, DatasetDict

from fcit import registry
from fcit.cli import main
from fcit.data import formats
from fcit.data.fingerprints import fingerprint
from fcit.data.formats import files, hub, unpack
from fcit.data.formats.columns import Columns
from fcit.data.formats.files import Form
from fcit.data.records import Record, Turn
from fcit.data.spec import read_spec
from fcit.data.store import MappedTrainFile, RecordStore
from fcit.data.verdict import Verdict
from fcit.errors import ConfigError, DataError
from tests.helpers.own_data import make_own, opened
from tests.helpers.tables import NAMES, ROWS, VQA, embedded, mapped, picture, sha, vqa


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
