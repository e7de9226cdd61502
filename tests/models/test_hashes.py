"""What must be the same at every site has a short hash."""

import os
import shutil

import numpy as np
import pytest

from fcit.config import Adapter
from fcit.config import Backbone as Config
from fcit.models import hashes
from fcit.models.adapters import Adapters
from fcit.models.backbone import TINY, Backbone


def hashes_of(adapter: Adapter | None = None, **config) -> dict[str, str]:
    return Adapters(Backbone(Config(feature_cache="off", **config)), adapter or Adapter()).hashes


@pytest.fixture(scope="module")
def tiny() -> dict[str, str]:
    return hashes_of()


def copied(folder) -> dict[str, str]:
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    return {"model": str(folder / "llava"), "identity": str(folder / "clip")}


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {key for key in one if one[key] != other[key]}


def test_equal_copies_have_equal_hashes_whatever_the_number_format(tiny, tmp_path):
    assert set(tiny) == {"backbone", "tokenizer", "processor", "identity", "layout"}
    assert all(len(h) == 16 and int(h, 16) >= 0 for h in tiny.values())
    assert hashes_of(**copied(tmp_path), dtype="bfloat16") == tiny


@pytest.mark.parametrize(
    ("file", "old", "new", "part"),
    [
        ("llava/processor_config.json", b'"resample": 3', b'"resample": 2', {"processor"}),
        ("llava/tokenizer.json", b'"version"', b' "version"', {"tokenizer"}),
        ("clip/tokenizer.json", b'"version"', b' "version"', {"identity"}),
    ],
)
def test_another_file_is_another_hash(tiny, tmp_path, file, old, new, part):
    where = copied(tmp_path)
    content = (tmp_path / file).read_bytes()
    assert content.count(old) >= 1
    (tmp_path / file).write_bytes(content.replace(old, new, 1))
    assert differing(tiny, hashes_of(**where)) == part


@pytest.mark.parametrize(("file", "part"), [("llava", "backbone"), ("clip", "identity")])
def test_one_weight_changed_is_another_hash(tiny, tmp_path, file, part):
    where = copied(tmp_path)
    weights = tmp_path / file / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert differing(tiny, hashes_of(**where)) == {part}


def test_another_adapter_is_another_layout(tiny):
    assert differing(tiny, hashes_of(Adapter(rank=4))) == {"layout"}


def test_a_large_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    reads = []
    digest = hashes.hashlib.file_digest
    monkeypatch.setattr(hashes.hashlib, "file_digest", lambda *a: reads.append(1) or digest(*a))
    first = hashes.of_files(str(tmp_path), ("*.safetensors",))
    assert hashes.of_files(str(tmp_path), ("*.safetensors",)) == first
    assert len(reads) == 1
    file.write_bytes(b"Weights")
    os.utime(file, ns=(0, 0))
    assert hashes.of_files(str(tmp_path), ("*.safetensors",)) != first
    assert len(reads) == 2


def test_the_hash_of_a_large_file_is_noted_for_the_next_process(tmp_path, monkeypatch):
    """14 GB are not read again by every worker; a note never speaks for another content, and a broken one is none."""
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "LARGE", 4)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    reads = []
    digest = hashes.hashlib.file_digest
    monkeypatch.setattr(hashes.hashlib, "file_digest", lambda *a: reads.append(1) or digest(*a))

    def again() -> str:
        hashes._content.cache_clear()  # another process
        return hashes.of_files(str(tmp_path), ("*.safetensors",))

    first = again()
    assert again() == first
    assert len(reads) == 1
    for note in (tmp_path / "cache" / "hashes").glob("*.json"):
        note.write_text("{}")
    assert again() == first
    assert len(reads) == 2
    times = file.stat()
    file.write_bytes(b"Weights")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as large and, it says, as old
    assert again() != first
    assert len(reads) == 3


def test_without_files_the_loaded_tensors_count_and_adapters_do_not(monkeypatch):
    monkeypatch.setattr(hashes, "of_files", lambda source, patterns: "")
    backbone = Backbone(Config(feature_cache="off"))
    adapters = Adapters(backbone, Adapter())
    first = adapters.hashes
    adapters.load({n: np.ones(p.shape, np.float32) for n, p in adapters.trainable.items()})
    assert adapters.hashes == first
    next(p for n, p in backbone.model.named_parameters() if "base_layer" in n).data += 1
    assert differing(first, adapters.hashes) == {"backbone"}
