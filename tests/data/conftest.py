import pytest

from fcit.cli import main


@pytest.fixture
def fcit(capsys, monkeypatch, tmp_path):
    """Call the command line with a cache of its own; returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))

    def call(*args: object) -> tuple[int, str, str]:
        code = main([str(a) for a in args])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call
