"""What a run happened on."""

import hashlib
import sys

import pytest

from fcit.runs import environment


def test_the_hash_of_the_program_is_over_all_of_its_packages(tmp_path, monkeypatch):
    for part in environment.PACKAGES:
        assert (environment.HOME / part / "__init__.py").is_file()
        (tmp_path / part / "room").mkdir(parents=True)
        (tmp_path / part / "room" / "file.py").write_text("1\n")
    assert environment.source() != hashlib.sha256().hexdigest()[:12]
    monkeypatch.setattr(environment, "HOME", tmp_path)
    seen = {environment.source()}
    for part in environment.PACKAGES:
        (tmp_path / part / "room" / "file.py").write_text("2\n")
        seen.add(environment.source())
    assert len(seen) == 4


def test_this_programs_packages_come_first(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/elsewhere", str(environment.HOME)])
    environment.own_packages_first()
    assert sys.path == [str(environment.HOME), "/elsewhere"]


@pytest.mark.parametrize("proxy", [None, "10.0.0.1"])
def test_processes_of_flower_report_and_install_nothing(tmp_path, monkeypatch, proxy):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("no_proxy", proxy or "")
    made = environment.flower_environment(tmp_path, loopback="127.0.0.2")
    assert {key for key in made if key.startswith("FLWR_")} == {"FLWR_HOME", *environment.FLOWER} - {
        "RAY_USAGE_STATS_ENABLED"
    }
    assert made["FLWR_TELEMETRY_ENABLED"] == "0" and made["FLWR_HOME"] == str(tmp_path)
    assert made["no_proxy"] == ("10.0.0.1,127.0.0.2" if proxy else "127.0.0.2")
