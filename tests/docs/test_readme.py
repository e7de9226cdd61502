"""README.md is one page, and what it says first is what a newcomer needs first."""

import re

from tests.docs.pages import ROOT, blocks, commands

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_it_is_one_page():
    assert len(TEXT.splitlines()) <= 150
    assert len(TEXT) <= 12_000


def test_the_environment_is_activated_before_the_first_command_that_needs_it():
    lines = [line for block in blocks(README) for line in commands(block)]
    first = next(n for n, line in enumerate(lines) if line.startswith("fcit "))
    assert "source .venv/bin/activate" in " ".join(lines[:first])
    assert any(line.startswith("make demo") for line in lines[:first])


def test_its_tree_has_every_folder_of_the_repository():
    tree = re.search(r"```text\n(fcit/.*?)```", TEXT, re.DOTALL)[1]
    shown = {line.split("/")[0].lstrip("├└─│ ") for line in tree.splitlines()}
    there = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    made = {"runs", "report", "build", "dist", "site"}  # by commands; in .gitignore
    assert {name for name in there - made if not name.endswith(".egg-info")} <= shown


def test_headline_tables_have_four_lines_each():
    tables = re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE)
    figures = [table for table in tables if "Last" in table.splitlines()[0]]
    assert len(figures) >= 2
    assert all(len(table.splitlines()) - 2 <= 4 for table in figures)


def test_every_page_of_the_documentation_that_it_names_is_there():
    named = re.findall(r"docs/[\w/-]+\.md", TEXT)
    assert len(set(named)) >= 10
    assert all((ROOT / name).is_file() for name in named)
