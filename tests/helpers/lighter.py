"""What makes the runs of the tests lighter: a smaller built-in world, no page at the end, no waiting for the disk."""

import os
from pathlib import Path

from fcit.data.mini import render
from fcit.report import page
from fcit.runs.folder import RunDir

#: Pictures per split and data set, where users get 4,000, 150 and 300: drawing them costs more than a small run.
SPLITS = {"train": 800, "val": 60, "test": 120}
#: Set in the environment, pages are drawn, by commands that the tests start, too.
PAGES = "FCIT_TEST_PAGES"


def lighten() -> None:
    """Do so in this process, from now on."""
    write_page = page.write_page

    def unless_nobody_looks(runs: list, path: Path) -> None:
        # drawing the page takes as long as a small run does; elsewhere than in a run's folder it was asked for
        if PAGES in os.environ or not RunDir(path.parent).config.is_file():
            write_page(runs, path)

    page.write_page = unless_nobody_looks
    render.SPLITS.update(SPLITS)
    # A small run waits a hundred times until the disk has what it wrote, for the case that the machine loses power.
    os.fsync = lambda descriptor: None
