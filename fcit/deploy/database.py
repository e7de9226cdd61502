"""The SuperLink's database: what finished runs have left in it, and the room they took.

Flower removes messages and objects of a finished run when its runs are listed (``flwr ls``; 1.41 and 1.42), as
`submit`, `follow` and `status` do. SQLite uses their room again, but keeps the file as large as it ever was. So the
file is written anew by SQLite's own means while no SuperLink is up.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from fcit.deploy.steps import Steps

FREE = 64 * 2**20  # bytes of room in the file that are not worth the seconds it takes


def shrink(file: Path, steps: Steps) -> None:
    """Give back the room that finished runs have left; the SuperLink must not be up. A failure is told and goes by."""
    if not file.is_file():
        return
    try:
        with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as database:
            free = database.execute("PRAGMA freelist_count").fetchone()[0]
            room = free * database.execute("PRAGMA page_size").fetchone()[0]
            if room < FREE:
                return
            steps.say(f"finished runs have left {room / 1e6:,.0f} MB of room in {file}; it is written anew")
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        steps.say(f"{file} stays as large as it is ({error})")
