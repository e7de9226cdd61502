import json

import pytest
from PIL import Image

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


@pytest.fixture
def write(tmp_path):
    def _write(rows: object, name: str = "file.json"):
        path = tmp_path / name
        path.write_text(rows if isinstance(rows, str) else json.dumps(rows, indent=1), encoding="utf-8")
        return path

    return _write


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    Image.new("L", (4, 4), 7).save(folder / "good.png")
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "outside.png")
    return folder
