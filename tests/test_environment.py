"""What a run folder says of the program that wrote it, and which packages a run imports."""

import hashlib
import sys

from fcit.runs import environment


def test_the_source_hash_is_of_this_program(tmp_path, monkeypatch):
    assert all((environment.HOME / part / "__init__.py").is_file() for part in environment.PACKAGES)
    before = environment.source()
    assert before != hashlib.sha256().hexdigest()[:12] and environment.describe()["source"] == before
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "app.py").write_text("")
    monkeypatch.setattr(environment, "HOME", tmp_path)
    assert environment.source() != before


def test_this_programs_packages_come_first(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/somewhere/else", *sys.path])
    environment.own_packages_first()
    assert sys.path[0] == str(environment.HOME) and sys.path[1] == "/somewhere/else"
