"""The documents of the repository and the code blocks in them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted(DOCS.rglob("*.md")),
]
#: Pages that are carried out as they are written; own-data.md has a test of its own.
RECIPES = sorted(page.name for page in DOCS.glob("own-*.md") if page.name != "own-data.md")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"^\w+\$\s+")


class Block(NamedTuple):
    """A fenced block: its language, its title (a file name), its lines, where it begins."""

    page: str
    line: int
    language: str
    title: str
    body: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        language, _, rest = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        line = text.count("\n", 0, match.start()) + 1
        body = re.sub(rf"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
        yield Block(str(page.relative_to(ROOT)), line, language, title[1] if title else "", body)


def commands(block: Block) -> list[str]:
    """The command lines of a block without prompts, long ones joined; none of a block that is no shell."""
    if block.language not in ("", "sh"):
        return []
    lines = re.sub(r"\\\n\s*", "", block.body).splitlines()
    return [_PROMPT.sub("", line) for line in lines if line.strip() and not line.lstrip().startswith("#")]


ALL = [block for page in PAGES for block in blocks(page)]
