"""The pages hold what the code has: walks, rooms, settings, methods; and links lead somewhere."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import yaml

from fcit import registry
from fcit.config import settings
from fcit.methods.base import Method
from tests.docs.pages import DOCS, PAGES, RECIPES, ROOT


@pytest.fixture(scope="module")
def generate():
    """The hook of the documentation, as MkDocs loads it."""
    spec = importlib.util.spec_from_file_location("fcit_docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def names(file: str) -> set[str]:
    """Every class and function of a file."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_the_walks_lead_through_files_and_functions_that_are_there(generate):
    walks = generate.walks((DOCS / "concepts.md").read_text(encoding="utf-8"))
    assert len(walks) == 4
    assert all(len(walk) >= 8 for walk in walks.values())
    steps = [(title, step) for title, walk in walks.items() for step in walk]
    lost = [f"{title}, {step.number}: {step.file}" for title, step in steps if not (ROOT / step.file).is_file()]
    assert lost == []
    gone = [f"{title}, {s.number}: {s.function} in {s.file}" for title, s in steps if s.function not in names(s.file)]
    assert gone == []
    for title, walk in walks.items():
        assert [step.number for step in walk] == [str(n + 1) for n in range(len(walk))], title


def test_a_walk_is_drawn_with_every_step(generate):
    page = generate.filled((DOCS / "concepts.md").read_text(encoding="utf-8"))
    walks = generate.walks((DOCS / "concepts.md").read_text(encoding="utf-8"))
    assert page.count("<svg ") == len(walks)
    assert page.count("<rect ") == sum(map(len, walks.values()))


def folders() -> list[str]:
    """Every folder of the packages that holds code of ours, and every other one down to the second level."""
    tops = [ROOT / name for name in ("fcit", "server", "clients")]
    code = {file.parent for top in tops for file in top.rglob("*.py")}
    second = {path for top in tops for path in top.iterdir() if path.is_dir() and path.name != "__pycache__"}
    return sorted(f"{path.relative_to(ROOT)}/" for path in code | second if any(path.rglob("*.*")))


def test_the_architecture_page_has_every_room():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+/)` \|", text, re.MULTILINE)
    assert [room for room in folders() if room not in rows] == []
    assert [room for room in rows if not (ROOT / room).is_dir()] == []
    assert sorted(rows) == sorted(set(rows))


def test_the_tree_of_the_architecture_page_has_every_room():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\n(fcit/.*?)```", text, re.DOTALL)[1]
    shown = re.findall(r"(\w+)/ ", tree)
    assert [room for room in folders() if room.split("/")[-2] not in shown] == []


def test_every_module_says_what_it_is_for(generate):
    """The page of modules is made of first lines: a file that is no package needs one."""
    silent = [
        str(file)
        for files in generate.rooms().values()
        for file in files
        if file.name != "__init__.py" and generate.first_sentence(file) == "-"
    ]
    assert silent == []


def test_every_setting_is_in_the_reference(generate):
    page = generate.settings_page()
    assert [key for key, _, _ in settings() if f"`{key}`" not in page] == []


def test_every_command_is_in_the_reference(generate):
    page = generate.cli_page()
    listed = [name for name, _ in generate.commands()]
    assert len(listed) > 15
    assert [name for name in listed if f"## `{name}`" not in page] == []


def test_the_page_on_methods_names_every_hook():
    text = (DOCS / "own-method.md").read_text(encoding="utf-8")
    hooks = [name for name in vars(Method) if not name.startswith("_") and callable(getattr(Method, name))]
    assert [name for name in hooks if name != "Options" and not re.search(rf"`{name}\(", text)] == []


@pytest.mark.parametrize("kind", ["method", "fedopt", "factors", "robust"])
def test_every_part_has_its_formulas_or_a_sentence(generate, kind):
    page = generate.part_docs(kind)
    for name in registry.KINDS[kind]:
        section = re.search(rf"^### `{name}`(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None and len(section[1]) > 60, name


def test_every_method_that_trains_names_its_source(generate):
    """A paper, or that it is our own definition; plain tuning and references need none."""
    page = generate.part_docs("method")
    for name in registry.METHODS:
        part = registry.resolve("method", name)
        if part.group != "reference" and name != "finetune":
            section = re.search(rf"^### `{name}`(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL)[1]
            assert any(source in section for source in ("arXiv", "aclanthology.org", "our definition")), name


def test_every_mark_is_one_that_is_generated(generate):
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"<!-- generated: ([\w -]+) -->", text)) <= generate.GENERATORS.keys(), page.name


def test_every_page_is_in_the_navigation():
    def listed(part) -> list[str]:
        if isinstance(part, str):
            return [part]
        return [name for inner in (part.values() if isinstance(part, dict) else part) for name in listed(inner)]

    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = listed(yaml.safe_load(text)["nav"])
    assert sorted(nav) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_file_that_a_page_names_is_there():
    """Paths from the root of the repository, and those of tests in the table of faults."""
    roots = "fcit|server|clients|tests|configs|examples|docs"
    folders = "|".join(path.name for path in (ROOT / "tests").iterdir() if path.is_dir())
    lost = []
    for page in (page for page in PAGES if page.name not in RECIPES):
        text = page.read_text(encoding="utf-8")
        named = re.findall(rf"(?<![\w/.])((?:{roots})/[\w/.-]+\.(?:py|yaml|md|png|json|svg))(?![\w*{{])", text)
        named += re.findall(rf"`((?:{folders})/\w+\.py)`", text)
        lost += [
            f"{page.name}: {name}" for name in named if not any((ROOT / t / name).exists() for t in (".", "tests"))
        ]
    lost = [name for name in lost if "NAME" not in name]  # a placeholder
    assert lost == [], "\n".join(lost)


def anchors(text: str) -> set[str]:
    """Headings as they are linked to."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def broken(page: Path, target: str) -> bool:
    """Whether a link of a page leads nowhere; pictures of the site are taken from examples/ by the hook."""
    if target.startswith(("http://", "https://")):
        return False
    file, _, anchor = target.partition("#")
    path = (page.parent / file).resolve() if file else page
    if path.suffix == ".png" and page.parent == DOCS:
        path = ROOT / "examples" / path.name
    return not path.exists() or bool(anchor and anchor not in anchors(path.read_text(encoding="utf-8")))


def test_links_lead_somewhere():
    lost = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        lost += [f"{page.name}: {link}" for link in re.findall(r"\]\(([^)\s]+)\)", text) if broken(page, link)]
    assert lost == [], "\n".join(lost)


def test_every_term_of_the_glossary_is_one_line():
    rows = [line for line in (DOCS / "glossary.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    terms = [row.split("|")[1].strip() for row in rows[1:]]
    agreed = (
        "participant order update aggregate checkpoint adapter subspace stage round task record conversation turn "
        "question truth prediction score"
    ).split()
    assert [term for term in agreed if term not in terms] == []
    assert terms == sorted(terms, key=str.lower)
