"""Short hashes of what must be the same wherever a run computes: model, words, pixels, adapters."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from transformers.utils import cached_file

from fcit.io.cache import cache_folder

#: Bytes from which on a file's hash is noted.
LARGE = 64 * 1024**2

#: Files of a model folder that hold weights, newest format first; the first kind found is the model.
_WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*")


def of_text(text: str) -> str:
    """Sixteen hexadecimal digits that name a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_layout(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Names and shapes of an adapter's tensors."""
    return of_text(json.dumps(sorted((name, list(shape)) for name, shape in shapes.items())))


def of_weights(source: str, model: nn.Module) -> str:
    """The weight files of a model's folder, whatever number format it is loaded in.

    Where no such files are found: the frozen tensors of ``model`` as they were loaded.
    """
    for kind in _WEIGHTS:
        found = of_files(source, (kind,))
        if found:
            return found
    return of_module(model)


def of_module(module: nn.Module) -> str:
    """The frozen tensors of a module, as they are in memory; the same with and without adapters attached."""
    digest = hashlib.sha256()
    frozen = {
        name.replace(".original_module.", ".").replace(".base_layer.", "."): tensor
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name and ".modules_to_save." not in name
    }
    for name, tensor in sorted(frozen.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def of_tokenizer(source: str, tokenizer: Any) -> str:
    """The tokenizer's files in a model's folder; where there are none, its vocabulary."""
    return of_files(source, TOKENIZER) or of_text(json.dumps(sorted(tokenizer.get_vocab().items())))


def of_files(source: str, patterns: tuple[str, ...]) -> str:
    """Names and contents of the files of a model's folder that match; empty text if none does."""
    folder = folder_of(source)
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()} if folder else set()
    if not found:
        return ""
    parts = [f"{f.name}:{_content(f, f.stat().st_size, f.stat().st_mtime_ns)}" for f in sorted(found)]
    return of_text("\n".join(parts))


def folder_of(source: str) -> Path | None:
    """Where a model's files lie: the folder itself or what the hub's name was downloaded to."""
    if Path(source).is_dir():
        return Path(source)
    try:
        file = cached_file(source, "config.json", local_files_only=True)
    except OSError:
        return None
    return Path(file).parent if file else None


@lru_cache(maxsize=256)
def _content(file: Path, size: int, stamp: int) -> str:
    """Hash of a file's bytes; a file of this size and time is read once per process, a large one once per machine.

    A 7B model has 14 GB of weights and every worker names it, so the hash of a large file is noted in FCIT's cache
    beside the file's size, inode and times of change. The time of the last change of any kind (ctime) cannot be set
    by a program, so a note is never taken for another content, other than with a clock put back.
    """
    if size < LARGE:
        return _digest(file)
    status = file.stat()
    about = [str(file.resolve()), size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    note = cache_folder() / "hashes" / f"{of_text(json.dumps(about))}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{note}.lock"):  # workers that start together: one reads, the others wait for its note
        found = _noted(note, about) or _digest(file)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False, encoding="utf-8") as draft:
            json.dump({"about": about, "sha256": found}, draft)
        Path(draft.name).replace(note)
    return found


def _noted(note: Path, about: list[Any]) -> str | None:
    """What a note says about exactly this file; None if it does not, or is none."""
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        return noted["sha256"] if noted["about"] == about and isinstance(noted["sha256"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
