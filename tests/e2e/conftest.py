from pathlib import Path

import pytest
import yaml

from fcit import cli

SMALL = {
    "name": "small",
    "benchmark": "fcit-mini-short",
    "method": "disco",
    "federation": {"rounds": 2, "clients": 50, "clients_per_round": 3},
    "evaluation": {"limit": 16},
    "backbone": {"threads": 1},
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A configuration that runs four stages in a few seconds."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output": str(tmp_path / "runs")}))
    return path


@pytest.fixture
def fcit(monkeypatch, capsys):
    """Call the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*args: str) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in args])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call
