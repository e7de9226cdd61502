"""The command line teaches: every help has an example, every mistake names the way to the help."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcit.cli.list import KINDS
from fcit.cli.main import _parser, main
from fcit.errors import EXIT_OUTPUT_CLOSED, EXIT_USAGE


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    [action] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


def test_every_command_has_a_line_and_an_example():
    lacking = [
        name
        for name, command in commands(_parser()).items()
        if not command.description or f"fcit {name}" not in (command.epilog or "")
    ]
    assert lacking == []


def arguments(name: str, parser: argparse.ArgumentParser):
    """Every argument of a command and its actions, with the words that lead to it, and the parsers themselves."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner, command in action.choices.items():
                yield f"{name} {inner}", command
                yield from arguments(f"{name} {inner}", command)
        else:
            yield f"{name}: {action.dest}", action


def test_every_argument_is_explained():
    found = list(arguments("fcit", _parser()))
    silent = [where for where, one in found if isinstance(one, argparse.Action) and not one.help]
    assert silent == []
    assert [where for where, one in found if isinstance(one, argparse.ArgumentParser) and not one.description] == []
    texts = [(where, str(getattr(one, "description", ""))) for where, one in found]
    assert [where for where, text in texts if any(len(line) > 120 for line in text.splitlines())] == []


def test_a_default_is_told():
    given = [
        (where, action)
        for where, action in arguments("fcit", _parser())
        if isinstance(action, argparse.Action) and action.nargs != 0 and action.default not in (None, "", [])
    ]
    assert len(given) > 10
    assert [where for where, action in given if "default" not in action.help] == []


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["rnu"], "`fcit --help`"),
        (["run"], "`fcit run --help`"),
        (["data", "check", "--clients", "x"], "fcit data check"),
        (["run", "x.yaml", "--dry-runn"], "'--dry-run'?; `fcit run --help`"),
        (["deploy", "stop", "dir", "--now"], "--now; `fcit deploy stop --help`"),
        (["client", "check", "SITE.yaml", "again"], "again; `fcit client --help`"),
    ],
)
def test_a_mistake_names_the_help(words, hint, capsys):
    with pytest.raises(SystemExit) as raised:
        raise SystemExit(main(words))
    assert raised.value.code == EXIT_USAGE
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            ["run", "a.yaml", "--dry-run", "seed=1", "name=a"],
            {"overrides": ["seed=1", "name=a"]},
        ),
        (["run", "--dry-run", "a.yaml", "seed=1"], {"overrides": ["seed=1"]}),
        (["doctor", "seed=1", "--config", "a.yaml", "data_root=x"], {"overrides": ["seed=1", "data_root=x"]}),
        (
            ["deploy", "submit", "d", "--dry-run", "a.yaml", "seed=1"],
            {"config": Path("a.yaml"), "overrides": ["seed=1"]},
        ),
        (["deploy", "stop", "d", "--dry-run", "7"], {"run": "7"}),
        (["data", "check", "--config", "a.yaml", "data_root=x", "--json", "seed=1"], {"overrides": ["seed=1"]}),
        (["report", "a", "--output", "o", "b"], {"runs": [Path("a"), Path("b")]}),
        (["chat", "a", "--image", "i", "What?"], {"question": "What?"}),
    ],
)
def test_arguments_stand_before_and_after_options(words, wanted):
    args = vars(_parser().parse_args(words))
    assert {key: args[key] for key in wanted} == wanted


def test_a_folder_of_runs_names_those_in_it(tmp_path, capsys):
    (tmp_path / "demo-1").mkdir()
    (tmp_path / "demo-1" / "config.yaml").touch()
    for wrong in (tmp_path, tmp_path / "demo-2"):
        assert main(["report", str(wrong)]) == EXIT_USAGE
        assert f"there are: {tmp_path / 'demo-1'}" in capsys.readouterr().err


def test_what_cannot_be_written_is_named(tmp_path, capsys, monkeypatch):
    from fcit.report import page, terminal
    from fcit.runs import reader

    (tmp_path / "file").touch()
    monkeypatch.setattr(reader, "Run", lambda path: path)
    monkeypatch.setattr(terminal, "show", lambda screen, runs: None)
    monkeypatch.setattr(page, "write_all", lambda runs, output: output.mkdir(parents=True))
    assert main(["report", "a", "--output", str(tmp_path / "file/o")]) == EXIT_USAGE
    assert "--output DIR" in capsys.readouterr().err
    assert main(["report", "a", "--figure", "a.xyz"]) == EXIT_USAGE
    assert "'a.xyz' must end with .png, .svg, .pdf" in capsys.readouterr().err
    assert main(["deploy", "init", str(tmp_path / "file/d"), "--clients", "1", "--host", "127.0.0.1"]) == EXIT_USAGE
    assert "cannot be filled" in capsys.readouterr().err


def test_evaluating_names_its_own_option(capsys):
    assert main(["evaluate", "--predictions", "merge.jsonl", "--dataset", "iconqa"]) == EXIT_USAGE
    assert "--root: benchmark 'fcit-task' reads files; say where, e.g. --root /data/fcit" in capsys.readouterr().err


def test_list_has_every_kind(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.removesuffix(":") for line in lines if not line.startswith(" ")] == KINDS
    assert all(len(line.split()) > 1 for line in lines if line.startswith(" "))


def test_list_has_the_formats_of_instruction_files(capsys):
    assert main(["list", "format"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "format:",
        "llava",
        "messages",
        "mme",
        "pope",
        "parquet",
        "hf",
    ]


def test_a_reader_that_has_seen_enough_is_no_error():
    """``fcit list | head -1``"""
    read, write = os.pipe()
    os.close(read)
    call = [sys.executable, "-m", "fcit.cli", "list", "methods"]
    done = subprocess.run(call, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (EXIT_OUTPUT_CLOSED, "")
