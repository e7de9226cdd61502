"""What the documentation takes from the code when it is built: an MkDocs hook, also used by the tests.

A line ``<!-- generated: NAME -->`` of a page is replaced by what :data:`GENERATORS` makes under that name. A table
behind a line ``<!-- walk -->`` is drawn as a picture above itself.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from fcit import registry
from fcit.cli.main import _parser
from fcit.config import RunConfig, settings
from fcit.config.effects import Effect, effects
from fcit.config.site import Site
from fcit.data.shipped import HELD_OUT, shipped
from fcit.data.spec import read_spec

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("fcit", "server", "clients")
_MARK = re.compile(r"^<!-- generated: ([\w -]+) -->$", re.MULTILINE)
_WALK = re.compile(r"^<!-- walk -->\n\n?((?:\|.*\n)+)", re.MULTILINE)


# --------------------------------------------------------------------------- Markdown


def cell(text: object) -> str:
    """Text that stands in a cell of a Markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())


def code(text: str) -> str:
    """Text as code in a table's cell: backticks would not keep a backslash before a bar."""
    return f"<code>{escape(text).replace('|', '&#124;').replace('*', '&#42;').replace('_', '&#95;')}</code>"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_SYMBOLS = {
    "<-": "←",
    "<=": "≤",
    ">=": "≥",
    "||": "‖",
    "sqrt ": "√",
    "sqrt(": "√(",
    "theta": "θ",
    "alpha": "α",
    "beta": "β",
    "epsilon": "ε",
    "Delta": "Δ",
    "sum": "Σ",
    "mu": "μ",
    "tau": "τ",
    "eta": "η",
}
_SYMBOL = re.compile("|".join(rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])" for word in _SYMBOLS))


def _is_formula(paragraph: str) -> bool:
    """Whether a paragraph of a docstring is set as formula: it is indented, or starts with ``x = `` or ``x <- ``."""
    return paragraph.startswith("    ") or bool(re.match(r"(\S+ ){1,2}(=|<-) ", paragraph))


def _paragraph(text: str) -> str:
    if _is_formula(text):
        return f"```text\n{_SYMBOL.sub(lambda m: _SYMBOLS[m[0]], inspect.cleandoc(text))}\n```"
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.replace("``", "`"))
    return re.sub(r"(?<=\w)\*(?=[\s_])", r"\\*", text)


def prose(docstring: str) -> str:
    """A docstring as Markdown: its formulas as blocks, its references as code."""
    return "\n\n".join(_paragraph(p) for p in inspect.cleandoc(docstring).split("\n\n"))


# --------------------------------------------------------------------------- settings, commands, parts


def _sections(rows: list[tuple[str, str, str]]) -> dict[str, list[tuple[str, str, str]]]:
    found: dict[str, list[tuple[str, str, str]]] = {"": []}
    for row in rows:
        found.setdefault(row[0].rpartition(".")[0], []).append(row)
    return found


_CHANGES = {
    Effect.SCOPE: "what is measured",
    Effect.RESULTS: "results",
    Effect.BITS: "last bits",
    Effect.WORK: "where and how long",
    Effect.RECORD: "nothing",
}


def settings_page() -> str:
    """Every setting of a run, one table for each section."""
    parts, changes = [], effects(RunConfig)
    for section, rows in _sections(list(settings())).items():
        doc = "" if not section else inspect.getdoc(type(getattr(RunConfig.model_validate({}), section))) or ""
        title = f"## `{section}:`" if section else "## Of the run"
        body = [
            [f"`{key}`", code(default), cell(_allowed(key, text)), _CHANGES[changes[key]]]
            for key, default, text in rows
        ]
        parts.append(f"{title}\n\n{prose(doc)}\n\n{table(['setting', 'default', 'meaning', 'changes'], body)}")
    return "\n\n".join(parts)


def _allowed(key: str, text: str) -> str:
    """The meaning of a setting, with the values that its type allows where they are a short list."""
    section: Any = RunConfig
    *path, name = key.split(".")
    for part in path:
        section = type(getattr(section.model_validate({}), part))
    schema = section.model_json_schema()["properties"][name]
    values = schema.get("enum") or []
    listed = " / ".join(f"`{value}`" for value in values)
    return f"{listed}{': ' if listed and text else ''}{text}" or "-"


def options_page() -> str:
    """The options of every method and federated optimiser: keys under ``method:`` and ``fedopt:``."""
    rows = []
    for kind in ("method", "fedopt"):
        for name in sorted(registry.KINDS[kind]):
            for key, field in registry.resolve(kind, name).Options.model_fields.items():
                default, meaning = code(str(field.default)), cell(field.description or "-")
                rows.append([f"`{kind}={name}`", f"`{kind}.{key}`", default, meaning])
    return table(["with", "key", "default", "meaning"], rows)


def site_page() -> str:
    """Every key of SITE.yaml."""
    rows = []
    for key, field in Site.model_fields.items():
        default = "*required*" if field.is_required() else code(str(field.get_default(call_default_factory=True)))
        rows.append([f"`{key}`", default, cell(field.description or "-")])
    return table(["key", "default", "meaning"], rows)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command and subcommand with its parser, in the order in which ``fcit --help`` has them."""

    def inner(prefix: str, parser: Any) -> Iterator[tuple[str, Any]]:
        for action in parser._actions:
            if isinstance(getattr(action, "choices", None), dict):
                for name, sub in action.choices.items():
                    yield f"{prefix} {name}", sub
                    yield from inner(f"{prefix} {name}", sub)

    yield from inner("fcit", _parser())


def cli_page() -> str:
    """The help of every command, as the command line prints it."""
    parts = []
    for name, parser in commands():
        parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, width=100)
        help_text = parser.format_help().strip()
        parts.append(f"## `{name}`\n\n```text\n{help_text}\n```")
    return "\n\n".join(parts)


def _summary(part: Any) -> str:
    text = getattr(part, "summary", "") or (inspect.getdoc(part) or "-").splitlines()[0]
    return text + (" †" if getattr(part, "dagger", False) is True else "")


def parts_page() -> str:
    """Everything that is chosen by name: one table for each kind of parts."""
    tables = []
    for kind, names in registry.KINDS.items():
        rows = [[f"`{name}`", cell(_summary(registry.resolve(kind, name)))] for name in sorted(names)]
        tables.append(f"## {kind}\n\n{table(['name', 'what it is'], rows)}")
    rows = [[f"`{name}`", cell(read_spec(name).description)] for name in shipped()]
    held_out = [[f"`{name}`", cell(read_spec(name).description)] for name in shipped(HELD_OUT)]
    tables += [f"## benchmark\n\n{table(['name', 'what it is'], rows)}"]
    return "\n\n".join([*tables, f"## held-out\n\n{table(['name', 'what it is'], held_out)}"])


def part_docs(kind: str) -> str:
    """Every part of a kind: the docstring of its class with formulas, the source from that of its module."""
    sections = []
    for name in sorted(registry.KINDS[kind]):
        part = registry.resolve(kind, name)
        module = inspect.getmodule(part)
        source = inspect.getdoc(module) or ""
        if source.count("\n") > 0 and kind in ("factors", "robust"):
            source = ""  # one file holds all of the kind; its docstring is about all of them
        where = Path(str(getattr(module, "__file__", ""))).relative_to(ROOT)
        sign = " †" if getattr(part, "dagger", False) is True else ""
        sections.append(
            f"### `{name}`{sign}\n\n{prose(source)}\n\n{prose(inspect.getdoc(part) or '')}\n\nIn `{where}`."
        )
    return "\n\n".join(sections)


# --------------------------------------------------------------------------- modules


def rooms() -> dict[str, list[Path]]:
    """Every folder of the packages with its Python files, paths relative to the repository."""
    found: dict[str, list[Path]] = {}
    for top in ROOMS:
        for file in sorted((ROOT / top).rglob("*.py")):
            found.setdefault(str(file.parent.relative_to(ROOT)), []).append(file.relative_to(ROOT))
    return found


def first_sentence(file: Path) -> str:
    """The first line of a module's docstring."""
    doc = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or "-"
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", doc.splitlines()[0].replace("``", "`"))


def modules_page() -> str:
    """Every module with the first line of its docstring, room by room."""
    parts = []
    for room, files in rooms().items():
        rows = [[f"`{file.name}`", cell(first_sentence(file))] for file in files if first_sentence(file) != "-"]
        if rows:
            parts.append(f"## `{room}/`\n\n{table(['file', 'what it is for'], rows)}")
    return "\n\n".join(parts)


# --------------------------------------------------------------------------- walks


class Step(NamedTuple):
    """One step of a walk: who does it, in which file and function, and what happens."""

    number: str
    lane: str
    file: str
    function: str
    what: str


def steps(body: str) -> list[Step]:
    """The rows of a walk's table."""
    rows = [[c.strip().strip("`") for c in line.strip().strip("|").split("|")] for line in body.strip().splitlines()]
    return [Step(*row) for row in rows[2:]]


def walks(text: str) -> dict[str, list[Step]]:
    """The walks of a page by the heading above each."""
    found = {}
    for match in _WALK.finditer(text):
        heading = re.findall(r"^#+ (.+)$", text[: match.start()], re.MULTILINE)[-1]
        found[heading] = steps(match[1])
    return found


_WIDTH, _BOX, _ROW, _HEAD = 780, 250, 56, 34


def picture(walk: list[Step]) -> str:
    """A walk as SVG: a rail for each who takes part, a box for each step on its rail, an arrow from step to step.

    Boxes are wider than the distance of the rails: in each row there is one.
    """
    lanes = list(dict.fromkeys(step.lane for step in walk))
    width, apart = _WIDTH, (_WIDTH - _BOX - 2) / max(1, len(lanes) - 1)
    height = _HEAD + len(walk) * _ROW
    centre = {lane: round(1 + i * apart + _BOX / 2) for i, lane in enumerate(lanes)}
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="the steps of the table below as a picture">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    for lane, x in centre.items():
        parts.append(f'<text class="lane" x="{x}" y="18">{escape(lane)}</text>')
        parts.append(f'<line class="rail" x1="{x}" x2="{x}" y1="26" y2="{height}"/>')
    for i, (step, following) in enumerate(zip(walk, [*walk[1:], None], strict=True)):
        x, y = centre[step.lane], _HEAD + i * _ROW
        parts.append(f'<rect x="{x - _BOX / 2}" y="{y}" width="{_BOX}" height="42" rx="5"/>')
        parts.append(f'<text class="number" x="{x - _BOX / 2 + 8}" y="{y + 18}">{step.number}</text>')
        parts.append(f'<text class="function" x="{x}" y="{y + 18}">{escape(step.function)}</text>')
        parts.append(f'<text class="file" x="{x}" y="{y + 34}">{escape(step.file)}</text>')
        if following is not None:
            to, below = centre[following.lane], y + _ROW
            bend = y + 42 + (_ROW - 42) / 2
            parts.append(f'<path class="arrow" d="M{x} {y + 42}V{bend}H{to}V{below}" marker-end="url(#tip)"/>')
    return f'<div class="walk">{"".join(parts)}</svg></div>'


# --------------------------------------------------------------------------- the hook


def method_table() -> str:
    """Every method with its family and its summary."""
    parts = [(name, registry.resolve("method", name)) for name in sorted(registry.METHODS)]
    rows = [[f"`{name}`", part.family, cell(_summary(part))] for name, part in parts]
    return table(["`method:`", "family", "what it does"], rows)


GENERATORS: dict[str, Callable[[], str]] = {
    "method table": method_table,
    "settings": settings_page,
    "options": options_page,
    "site": site_page,
    "commands": cli_page,
    "parts": parts_page,
    "methods": lambda: part_docs("method"),
    "fedopts": lambda: part_docs("fedopt"),
    "factors": lambda: part_docs("factors"),
    "robust": lambda: part_docs("robust"),
    "scorers": lambda: part_docs("scorer"),
    "modules": modules_page,
}


def filled(text: str) -> str:
    """A page with what the code has to say in it.

    Raises:
        KeyError: it asks for something that is not in :data:`GENERATORS`.
    """
    text = _MARK.sub(lambda match: GENERATORS[match[1]](), text)
    return _WALK.sub(lambda match: f"{picture(steps(match[1]))}\n\n{match[1]}", text)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs: called for every page."""
    return filled(markdown)


def on_files(files: Any, config: Any) -> Any:
    """MkDocs: pictures of the repository that pages show are taken from where they are."""
    from mkdocs.structure.files import File

    for picture_file in sorted((ROOT / "examples").glob("*.png")):
        files.append(File.generated(config, picture_file.name, abs_src_path=str(picture_file)))
    return files
