"""`fcit client status SITE.yaml`: which of a site's processes run, and what was last wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from clients.site.supervisor import STATE
from fcit.config import site as sites
from fcit.deploy import clock
from fcit.deploy.watched import read_state, rows


def status(path: str | os.PathLike[str]) -> Iterator[tuple[str, bool, str]]:
    """What runs: its name, whether it does, and a sentence.

    Raises:
        ConfigError: SITE.yaml is wrong.
        RunError: what `fcit client start` has written is damaged.
    """
    site = sites.load(path)
    state = read_state(site.folder / STATE)
    if state is None:
        yield "site", False, f"site {site.name} does not run; `fcit client start {path}` starts it"
        return
    yield "site", True, f"site {site.name} -> {site.superlink}, logs in {site.folder / 'logs'}"
    for name, runs, last in rows(state):
        yield name, runs.startswith("runs"), runs if last == "-" else f"{runs}; {last}"
    ahead = state.get("ahead")
    if ahead is None:
        yield "clock", True, "not compared with the door's: it was not reached"
    else:
        wrong = clock.problem(float(ahead))
        yield "clock", wrong is None, wrong or f"{clock.difference(float(ahead))} the door's"
