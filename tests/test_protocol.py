"""docs/protocol.md says of every setting what is official and what is ours: here it is held to it."""

import ast
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from clients.worker.training import learning_rates
from fcit import config, registry
from fcit.config import Adapter, Backbone, RunConfig, Training
from fcit.methods.base import Factory
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone as Model
from tests.helpers.cases import check_each

ROOT = Path(__file__).parent.parent
GIVEN = ["data_root=/data/fcit"]
TASK, CAPABILITY = (
    [config.load(ROOT / f"configs/fcit/{kind}-{setting}-disco.yaml", GIVEN) for setting in ("hom", "het")]
    for kind in ("task", "cap")
)
HEAD = ["setting", "official value", "where it stands", "ours", "test or reason"]


def rows(head: list[str]) -> list[list[str]]:
    """The body of the table with this head; ``\\|`` is a bar within a cell."""
    lines = (ROOT / "docs/protocol.md").read_text(encoding="utf-8").splitlines()
    cells = [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    first = cells.index(head)
    last = next(i for i in range(first, len(cells) + 1) if i == len(cells) or not cells[i])
    return cells[first + 2 : last]


PROTOCOL = rows(HEAD)
DEFAULTS = rows(["option", "default", "source of the default", "in the benches"])


def settings(cell: str) -> list[tuple[str, object]]:
    """Keys and values of ``key: value`` in backticks."""
    return [next(iter(yaml.safe_load(code).items())) for code in re.findall(r"`(\w[\w.]*: [^`]+)`", cell)]


def value(run: RunConfig, key: str) -> object:
    found: object = run.model_dump(mode="json")
    for part in key.split("."):
        assert isinstance(found, dict) and part in found, f"{key}: no such setting"
        found = found[part]
    return found


def by_name(table: list[list[str]]) -> dict[str, list[str]]:
    named = {f"{n} {row[0]}": row for n, row in enumerate(table)}
    assert len(named) == len(table)
    return named


def test_the_configurations_hold_our_values():
    check_each(by_name(PROTOCOL), holds_our_values)


def holds_our_values(row: list[str]) -> None:
    common, _, apart = row[3].partition("capability:")
    for key, wanted in settings(common):
        assert {str(value(run, key)) for run in TASK} == {str(wanted)}, key
    differing = dict(settings(apart))
    for key, wanted in {**dict(settings(common)), **differing}.items():
        assert {str(value(run, key)) for run in CAPABILITY} == {str(wanted)}, key


@cache
def functions_in(file: str) -> set[str]:
    return {n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.FunctionDef)}


def test_every_row_has_a_source_and_a_test_or_a_reason():
    check_each(by_name(PROTOCOL), has_a_source_and_a_test_or_a_reason)


def has_a_source_and_a_test_or_a_reason(row: list[str]) -> None:
    assert len(row) == len(HEAD)
    assert all(row)
    assert re.match(r"(read|library|inferred|unknown): ", row[2]), row[2]
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row[4])
    assert named or "reason: " in row[4], row[4]
    for file, test in named:
        assert (ROOT / file).is_file() and (not test or test in functions_in(file)), f"{file}::{test}"


def test_every_setting_of_adapter_and_training_has_a_row():
    named = {key for row in PROTOCOL for key, _ in settings(row[3])}
    wanted = {f"adapter.{key}" for key in Adapter.model_fields} | {f"training.{key}" for key in Training.model_fields}
    assert wanted - named == set()


def test_six_steps_of_ours_go_a_third_further():
    sums = [sum(learning_rates(Training(lr=1.0, schedule=name), 6)) for name in ("cosine", "trainer")]
    assert sums == pytest.approx([4.0, 3.0], abs=0.001)


@pytest.mark.parametrize("name", ["demo-disco", "task-disco"])
def test_the_mini_world_names_our_schedule(name):
    """All benches rest on one of the two; their committed numbers were made with it."""
    raw = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
    assert raw["training"]["schedule"] == "cosine"
    run = config.load(ROOT / f"configs/{name}.yaml")
    assert (run.training.lr, run.training.max_grad_norm, run.training.warmup_ratio) == (0.003, 1.0, 0.03)


def test_the_scale_is_two():
    assert {run.adapter.alpha / run.adapter.rank for run in (*TASK, *CAPABILITY)} == {2}


def test_a_subspace_starts_as_published():
    made = Factory(0, {"x.lora_A.weight": (64, 512), "x.lora_B.weight": (512, 64)})("0")
    assert not made["x.lora_B.weight"].any()
    assert float(made["x.lora_A.weight"].std()) == pytest.approx(0.01, rel=0.02)
    assert abs(float(made["x.lora_A.weight"].mean())) < 2e-4


@pytest.fixture(scope="module")
def adapters() -> Adapters:
    return Adapters(Model(Backbone(dtype="bfloat16", feature_cache="off", threads=1)), TASK[0].adapter)


def test_what_is_trained_is_float32(adapters):
    with adapters.training() as parameters:
        assert {p.dtype for p in parameters} == {torch.float32}
    assert {t.dtype for t in adapters.read().values()} == {np.dtype("float32")}


def test_no_bias_is_adapted(adapters):
    lora = [name for name in adapters.trainable if ".lora_" in name]
    assert lora
    assert not [name for name in lora if "bias" in name]


# --------------------------------------------------------------------------- defaults of methods


def benches() -> list[dict]:
    """Parts with options as the benches of all methods and optimisers name them."""
    found = []
    for name in ("mini-task-hom", "mini-fedopt"):
        for row in yaml.safe_load((ROOT / f"configs/bench/{name}.yaml").read_text())["rows"]:
            found += [part for axis in row["axes"].values() for part in axis if isinstance(part, dict)]
    return found


def test_defaults_and_the_benches_values_are_as_told():
    check_each(by_name(DEFAULTS), is_as_told)


def is_as_told(row: list[str]) -> None:
    part, _, key = row[0].strip("`").partition(".")
    default, used = (yaml.safe_load(row[column]) for column in (1, 3))
    if part == "adapter":
        assert Adapter().model_dump()[key] == default
        assert config.load(ROOT / "configs/demo-disco.yaml").adapter.model_dump()[key] == used
        return
    family = "method" if part in registry.METHODS else "fedopt"
    assert registry.resolve(family, part).Options().model_dump()[key] == default
    assert {**registry.resolve(family, part).Options().model_dump(), **_of(part)}[key] == used


def _of(part: str) -> dict:
    named = [bench for bench in benches() if bench["name"] == part]
    assert all(bench == named[0] for bench in named)
    return named[0] if named else {}


def test_every_value_that_a_bench_changes_is_told():
    changed = {f"{bench['name']}.{key}" for bench in benches() for key in bench if key != "name"}
    assert changed - {row[0].strip("`") for row in DEFAULTS} == set()
