"""docs/own-data.md: its tables are those of the models, its example runs. ``python -m tests.data.test_own_data_page``
writes the tables anew."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from pydantic_core import PydanticUndefined

from fcit.cli import main
from fcit.data import spec
from fcit.runs.reader import Run
from tests.helpers.runs import BACKBONE

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"
MODELS = ("BenchmarkSpec", "DatasetSpec", "AnswerSuffix", "PartitionSpec", "Source")
#: Of each data set of the example; four clients have two of them each before the rest is drawn.
RECORDS = 12


def default(field) -> str:
    """What a key is where it is not given."""
    if field.is_required():
        return "*required*"
    value = field.default if field.default is not PydanticUndefined else field.default_factory()
    if value is None or value == "":
        return "-"
    return f"`{value}`" if isinstance(value, (str, int)) else "-"


def table(name: str) -> str:
    """Every key of a model with its default, its meaning and how it is written."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key, field in getattr(spec, name).model_fields.items():
        example = f"; e.g. `{key}: {field.examples[0]}`" if field.examples else ""
        rows.append(f"| `{key}` | {default(field)} | {field.description}{example} |")
    return "\n".join(rows)


def written(text: str) -> str:
    """The page with its tables as they should be."""
    for name in MODELS:
        mark = f"<!-- table: {name} -->"
        assert text.count(mark) == 1, f"docs/own-data.md: no {mark}"
        head, _, rest = text.partition(mark)
        text = f"{head}{mark}\n{table(name)}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def test_every_key_is_on_the_page_as_the_models_have_it():
    text = PAGE.read_text(encoding="utf-8")
    assert text == written(text), "run `python -m tests.data.test_own_data_page`"


@pytest.mark.parametrize("name", MODELS)
def test_every_key_says_what_it_means(name):
    undescribed = [key for key, field in getattr(spec, name).model_fields.items() if not field.description]
    assert undescribed == []


@pytest.fixture
def example(tmp_path, monkeypatch) -> Path:
    """The example of the page, with as many records as it needs; the current folder is its own."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```(yaml|json)\n(.*?)```", text, re.DOTALL)
    for _, block in (b for b in blocks if b[0] == "yaml"):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    train, test = (json.loads(block) for kind, block in blocks if kind == "json")
    for folder, image in (("flowers", "flowers/{}.png"), ("receipts", "receipts/{}.png")):
        files = tmp_path / "data" / "instructions" / folder
        files.mkdir(parents=True)
        images = tmp_path / "data" / "datasets" / ("scans" if folder == "receipts" else "")
        for n in range(RECORDS):
            path = images / image.format(n)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 24), (10 * n, 100, 200)).save(path)
        (files / "train.json").write_text(
            json.dumps([{**train, "id": n, "image": image.format(n)} for n in range(RECORDS)])
        )
        for split in ("test", "val"):
            records = [{**test, "question_id": n, "image": image.format(n)} for n in range(4)]
            (files / f"{split}.json").write_text(json.dumps(records))
    with (tmp_path / "run.yaml").open("a") as file:  # the built-in model with fewer layers
        file.write(yaml.safe_dump({"backbone": BACKBONE}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.thorough
def test_the_example_is_checked_and_runs(example, capsys):
    commands = re.search(r"```\n(fcit data check.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert commands is not None
    for line in commands[1].splitlines():
        words = line.partition("#")[0].split()
        extra = ["--no-probe"] if words[1] == "doctor" else []
        assert main([*words[1:], *extra]) == 0, f"{line}: {capsys.readouterr()}"
    first, second = (Run(example / "runs" / f"mine-disco-{n}") for n in (1, 2))
    assert first.matrix.datasets[0] == "receipts"
    assert first.finished
    assert second.finished  # homogeneous: [1, 0]
    assert second.config.setting == "heterogeneous"
    assert main(["run", "run.yaml", "evaluation.split=val"]) == 2
    assert "datasets.receipts.val" in capsys.readouterr().err


def test_the_example_can_be_run_from_anywhere(example, tmp_path_factory, monkeypatch, capsys):
    """Everything but ``output`` is found; that lies in the current folder."""
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    file = example / "run.yaml"
    raw = yaml.safe_load(file.read_text()) | {"method": "finetune", "evaluation": {"when": "final"}}
    file.write_text(yaml.safe_dump(raw))
    assert main(["run", str(file), "federation.rounds=1"]) == 0
    assert f"run folder {here / 'runs' / 'mine-disco-1'}" in capsys.readouterr().err
    assert (here / "runs" / "mine-disco-1" / "results.json").is_file()
    assert not (example / "runs").exists()
    shutil.rmtree(here / "runs")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
