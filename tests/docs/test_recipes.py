"""The recipes for own parts work: their files are written, their changes made, their commands run, all as shown.

All of them in one copy of the code and one process: what each needs for itself is small, what all need is not.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from fcit.models.places import TINY
from tests.docs.pages import DOCS, RECIPES, ROOT, Block, blocks, commands
from tests.helpers import lighter
from tests.helpers.commands import Process

#: Runs the commands of a file; its last line holds the exit code and the output of each. The libraries are those that
#: the fork server has imported, which takes long; the code is that of the copy.
DRIVER = """
import contextlib, io, json, runpy, sys, traceback
from pathlib import Path
for name in [name for name in sys.modules if name.partition(".")[0] in ("fcit", "server", "clients", "tests")]:
    del sys.modules[name]
sys.path[:0] = sys.argv[2:]
import fcit
assert Path(fcit.__file__).is_relative_to(sys.argv[2]), fcit.__file__
from fcit.cli import main
from tests.helpers.lighter import lighten
lighten()
done = []
for page, line, (program, *words) in json.loads(Path(sys.argv[1]).read_text()):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(words) if program == "fcit" else runpy.run_path(words[0]) and 0
        except BaseException:
            code = traceback.format_exc()
    done.append((page, line, code, out.getvalue()))
print(json.dumps(done))
"""


def change(file: Path, block: Block) -> None:
    """Make the change that a diff shows: unmarked lines and those with - are there, once; those with + come."""
    lines = block.body.splitlines()
    before = "\n".join(line[1:] for line in lines if line[:1] != "+")
    after = "\n".join(line[1:] for line in lines if line[:1] != "-")
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{block}: in {block.title} there is {text.count(before)} times:\n{before}"
    file.write_text(text.replace(before, after), encoding="utf-8")


def prepare(page: str, folder: Path) -> list[tuple[str, str, list[str]]]:
    """Write the files and make the changes of a recipe; returns its commands."""
    lines = []
    for block in blocks(DOCS / page):
        if block.language == "diff":
            change(folder / block.title, block)
        elif block.title and block.title != "output":
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.body, encoding="utf-8")
        lines += [(page, line, shlex.split(line, comments=True)) for line in commands(block)]
    return lines


@pytest.fixture(scope="module")
def followed(world, tmp_path_factory) -> list[tuple[str, str, int | str, str]]:
    """Page, command, exit code and output of every command of every recipe."""
    folder = tmp_path_factory.mktemp("recipes")
    for name in ("fcit", "server", "clients", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    model = folder / TINY.relative_to(ROOT) / "llava"
    shutil.rmtree(model)
    lighter.cut_model(model)
    quick = folder / "configs" / "quick.yaml"  # of which a recipe shows that it runs
    fewer = {"evaluation": {"when": "final", "samples": 1}, "federation": {"rounds": 1, "clients_per_round": 1}}
    quick.write_text(yaml.safe_dump({**yaml.safe_load(quick.read_text()), **fewer}))
    lines, stale = [], []
    for page in RECIPES:
        try:
            lines += prepare(page, folder)
        except AssertionError as error:  # of this recipe alone
            stale.append((page, "its changes", str(error), ""))
    (folder / "commands.json").write_text(json.dumps(lines))
    done = Process("tests.helpers.forkserver:execute", DRIVER, "commands.json", folder, ROOT, folder=folder)
    assert done.wait() == 0, done.stderr
    return [*stale, *json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("page", RECIPES)
def test_a_recipe_works_as_it_is_written(page, followed):
    entries = [entry for entry in followed if entry[0] == page]
    assert entries
    failed = [f"{line}: {code}\n{output}" for _, line, code, output in entries if code != 0]
    assert failed == []


@pytest.mark.thorough
@pytest.mark.parametrize("page", RECIPES)
def test_a_recipe_shows_what_is_printed(page, followed):
    printed = re.sub(r" +", " ", "".join(output for name, _, _, output in followed if name == page))
    for block in (block for block in blocks(DOCS / page) if block.title == "output"):
        missing = [line for line in block.body.splitlines() if re.sub(r" +", " ", line.rstrip()) not in printed]
        assert missing == [], f"{block}: not printed: {missing}\n{printed}"
