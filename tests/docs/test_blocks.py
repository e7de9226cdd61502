"""Code in documents is code: commands are parsed by the command line, YAML by the schema it is for, Python compiled."""

import argparse
import ast
import importlib
import json
import shlex

import yaml

from fcit import config
from fcit.bench.file import BenchFile
from fcit.cli.main import _parser
from fcit.config import RunConfig
from fcit.config.site import Site
from fcit.data.spec import BenchmarkSpec, DatasetSpec
from tests.docs.pages import ALL, PAGES, RECIPES, ROOT, Block, commands

READ = [block for block in ALL if block.page.removeprefix("docs/") not in RECIPES]  # those are carried out
FCIT = [(block, line) for block in READ for line in commands(block) if "fcit " in line]


def words(line: str) -> list[list[str]]:
    """The ``fcit`` commands of a line, each as the words the shell would make of it."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word in ("&&", ";", "|"):
            parts.append([])
        else:
            parts[-1].append(word)
    return [part[1:] for part in parts if part[:1] == ["fcit"]]


def problem(command: list[str]) -> str | None:
    """Why the command line would not take a command, or None."""
    try:
        args = _parser().parse_args(command)
    except SystemExit as error:
        return f"exit code {error.code}" if error.code else None
    except argparse.ArgumentError as error:
        return str(error)
    file = getattr(args, "config", None)
    if file is None or not (ROOT / file).is_file():
        return None
    given = [word for word in getattr(args, "overrides", None) or [] if "./" not in word]
    try:
        config.load(ROOT / file, ["data_root=/data/fcit", *given] if "fcit/" in str(file) else given)
    except Exception as error:  # noqa: BLE001  (whatever it is, the document is wrong)
        return str(error)
    return None


def test_every_command_is_one_that_the_command_line_takes(capsys):
    assert len(FCIT) > 50
    wrong = [f"{block}: {line}: {why}" for block, line in FCIT for part in words(line) if (why := problem(part))]
    assert wrong == [], capsys.readouterr().err


def test_every_file_of_the_repository_that_a_command_names_is_there():
    named = [
        (block, word.partition(":")[0].removeprefix("./"))
        for block, line in FCIT
        for part in words(line)
        for word in part
        if word.startswith(("configs/", "examples/", "./examples/"))
    ]
    assert [f"{block}: {file}" for block, file in named if not (ROOT / file).exists()] == []


def yaml_problem(block: Block) -> str | None:
    """Why a YAML block is no configuration, benchmark, site or bench file, or None."""
    raw = yaml.safe_load(block.body)
    try:
        if "datasets" in raw and "tasks" in raw:
            BenchmarkSpec.model_validate(raw)
        elif "datasets" in raw:
            for spec in raw["datasets"].values():
                DatasetSpec.model_validate(spec)
        elif "axes" in raw or "rows" in raw:
            BenchFile.model_validate(raw)
        elif raw.keys() <= RunConfig.model_fields.keys() | {"extends"}:
            config.parse({key: value for key, value in raw.items() if key not in ("extends", "benchmark")})
        else:
            Site.model_validate(raw)
    except Exception as error:  # noqa: BLE001  (whatever it is, the document is wrong)
        return str(error)
    return None


def test_every_yaml_block_is_valid():
    own = [block for block in READ if block.language == "yaml" and ".py:" not in block.body]
    assert len(own) >= 3
    assert [f"{block}: {why}" for block in own if (why := yaml_problem(block))] == []


def test_every_json_block_is_valid():
    for block in (block for block in READ if block.language == "json"):
        json.loads(block.body)


def names_imported(block: Block) -> list[tuple[str, str]]:
    """Module and name of everything a block imports from this repository."""
    found = []
    for node in ast.walk(ast.parse(block.body, str(block))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("fcit", "server", "clients"):
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


def test_every_python_block_compiles_and_imports_what_there_is():
    python = [block for block in READ if block.language == "python"]
    assert len(python) >= 3
    missing = [
        f"{block}: {module}.{name}"
        for block in python
        for module, name in names_imported(block)
        if not hasattr(importlib.import_module(module), name)
    ]
    assert missing == []


def test_fences_are_closed():
    assert [page.name for page in PAGES if page.read_text(encoding="utf-8").count("\n```") % 2] == []
