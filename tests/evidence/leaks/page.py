"""Writes the tables of ``docs/privacy.md`` from the results: ``python -m tests.evidence.leaks.page``."""

from __future__ import annotations

import re

from tests.evidence import inversion, membership
from tests.evidence.leaks.world import ROOT, read

PAGE = ROOT / "docs" / "privacy.md"


def tables() -> dict[str, str]:
    """The tables of both commands, by the name that marks their place in the page."""
    parts = ((membership.TABLES, membership.RESULTS), (inversion.TABLES, inversion.RESULTS))
    return {name: table(read(file)) for made, file in parts for name, table in made.items()}


def filled(page: str) -> str:
    """The page with every table in its place.

    Raises:
        ValueError: a table has no place, or several.
    """
    for name, table in tables().items():
        place = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, count = place.subn(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{PAGE}: {count} places for the table {name!r}, expected one: <!-- table: {name} -->")
    return page


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
