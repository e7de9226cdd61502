"""What a run folder says of the program that wrote it, and which packages a run imports."""

import hashlib
import sys

import pytest

from fcit.runs import environment


def test_the_source_hash_is_of_this_program(tmp_path, monkeypatch):
    assert all((environment.HOME / part / "__init__.py").is_file() for part in environment.PACKAGES)
    before = environment.source()
    assert before != hashlib.sha256().hexdigest()[:12]
    assert environment.describe()["source"] == before
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "app.py").write_text("")
    monkeypatch.setattr(environment, "HOME", tmp_path)
    assert environment.source() != before


def test_this_programs_packages_come_first(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/somewhere/else", *sys.path])
    environment.own_packages_first()
    assert sys.path[0] == str(environment.HOME)
    assert sys.path[1] == "/somewhere/else"


@pytest.mark.parametrize("proxy", [None, "10.0.0.1"])
def test_processes_of_flower_report_and_install_nothing(tmp_path, monkeypatch, proxy):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("no_proxy", proxy or "")
    made = environment.flower_environment(tmp_path, loopback="127.0.0.2")
    expected = {**environment.FLOWER, "FLWR_HOME": str(tmp_path)}
    assert {key: made[key] for key in expected} == expected
    assert "FLWR_LOG_LEVEL" not in made
    assert made["no_proxy"] == ("10.0.0.1,127.0.0.2" if proxy else "127.0.0.2")
