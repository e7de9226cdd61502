"""The SuperLink's database file, of which SQLite itself gives nothing back."""

import sqlite3
from contextlib import closing

import pytest

from fcit.deploy import database
from fcit.deploy.steps import Steps


@pytest.fixture
def file(tmp_path):
    """A database in the SuperLink's mode with one row left of a hundred."""
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("PRAGMA journal_mode = WAL")
        opened.execute("CREATE TABLE objects (number INTEGER, content BLOB)")
        opened.executemany("INSERT INTO objects VALUES (?, ?)", [(n, bytes(10_000)) for n in range(100)])
        opened.execute("DELETE FROM objects WHERE number > 0")
        opened.commit()
    return path


def rows(path) -> list[int]:
    with closing(sqlite3.connect(path)) as opened:
        return [number for (number,) in opened.execute("SELECT number FROM objects")]


def test_room_of_finished_runs_is_given_back(file, monkeypatch, capsys):
    monkeypatch.setattr(database, "FREE", 500_000)
    assert file.stat().st_size > 1_000_000
    database.shrink(file, Steps())
    assert file.stat().st_size < 50_000
    assert rows(file) == [0]
    assert "left 1 MB of room" in capsys.readouterr().out


def test_little_room_is_left_alone(file):
    before = file.read_bytes()
    database.shrink(file, Steps())
    assert file.read_bytes() == before


def test_no_database_yet(tmp_path):
    database.shrink(tmp_path / "state.db", Steps())
    assert not (tmp_path / "state.db").exists()


def test_what_cannot_be_written_anew_is_told(file, monkeypatch, capsys):
    monkeypatch.setattr(database, "FREE", 500_000)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        database.shrink(file, Steps())
    assert "stays as large as it is (database is locked)" in capsys.readouterr().out
    assert rows(file) == [0]
    file.write_bytes(b"no database" * 100)
    database.shrink(file, Steps())
    assert "stays as large as it is (file is not a database)" in capsys.readouterr().out
