"""Short hashes of what must be equal on all machines of a run: weights, tokenizer, image processor, adapter layout."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from fcit.io.cache import cache_folder
from fcit.io.threads import each

if TYPE_CHECKING:
    from torch import nn

#: Bytes from which the hash of a file is cached on disk.
LARGE = 64 * 1024**2

#: Files of a model folder that hold weights, newest format first; the first kind found is the model.
_WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*")


def of_text(text: str) -> str:
    """Sixteen hexadecimal digits that identify a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_layout(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Hash of the names and shapes of an adapter's tensors."""
    return of_text(json.dumps(sorted((name, list(shape)) for name, shape in shapes.items())))


def of_weights(source: str, model: nn.Module) -> str:
    """Hash of the weight files in a model's folder, independent of the number format it is loaded in.

    Without such files: hash of the frozen tensors of ``model`` as loaded.
    """
    for kind in _WEIGHTS:
        digest = of_files(source, (kind,))
        if digest:
            return digest
    return of_module(model)


def of_module(module: nn.Module) -> str:
    """Hash of a module's frozen tensors in memory; the same with and without adapters attached."""
    import torch  # not above: files are hashed where nothing is loaded

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
    """Hash of the tokenizer's files in a model's folder; without files, of its vocabulary."""
    return of_files(source, TOKENIZER) or of_text(json.dumps(sorted(tokenizer.get_vocab().items())))


def of_files(source: str, patterns: tuple[str, ...]) -> str:
    """Hash of the names and contents of matching files in a model's folder; empty text if none matches."""
    folder = folder_of(source)
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()} if folder else set()
    if not files:
        return ""

    def content(file: Path) -> str:
        status = file.stat()
        return f"{file.name}:{_content(file, status.st_size, status.st_mtime_ns)}"

    # The parts of a large model side by side: 14 GB take 12 seconds one after the other.
    parts = each(content, sorted(files), sum(file.stat().st_size for file in files))
    return of_text("\n".join(parts))


def folder_of(source: str) -> Path | None:
    """The folder with a model's files: the folder named, or the local download of a hub name."""
    if Path(source).is_dir():
        return Path(source)
    from transformers.utils import cached_file

    try:
        file = cached_file(source, "config.json", local_files_only=True)
    except OSError:
        return None
    return Path(file).parent if file else None


@lru_cache(maxsize=256)
def _content(file: Path, size: int, stamp: int) -> str:
    """Hash of a file's bytes; a file of this size and time is read once per process, a large one once per machine.

    A 7B model has 14 GB of weights and every worker hashes it, so the hash of a large file is stored in FCIT's cache
    with the file's size, inode and times of change. A program cannot set the time of the last change of any kind
    (ctime), so a stored hash is never used for other contents unless the clock was set back.
    """
    if size < LARGE:
        return _digest(file)
    status = file.stat()
    about = [str(file.resolve()), size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    note = cache_folder() / "hashes" / f"{of_text(json.dumps(about))}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{note}.lock"):  # of workers that start together one reads, the others wait for its result
        digest = _noted(note, about) or _digest(file)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False, encoding="utf-8") as draft:
            json.dump({"about": about, "sha256": digest}, draft)
        Path(draft.name).replace(note)
    return digest


def _noted(note: Path, about: list[Any]) -> str | None:
    """The stored hash of exactly this file; None if there is none or it is unreadable."""
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        return noted["sha256"] if noted["about"] == about and isinstance(noted["sha256"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
