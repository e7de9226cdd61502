"""Checks that a model's folder holds every file needed to load it, each complete and readable.

Only headers are read, so that 14 GB are checked in seconds; a run and ``fcit doctor --config`` share the checks.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fcit import config as configuration
from fcit.errors import ConfigError
from fcit.models.layout import is_factor, is_projector

#: Weight files in the order transformers looks for them.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CONFIG, WORDS, PICTURES = "config.json", "tokenizer_config.json", ("preprocessor_config.json", "processor_config.json")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_JSON = (
    *(CONFIG, WORDS, *PICTURES, "tokenizer.json", "vocab.json", "generation_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
    *WEIGHTS[1::2],
)
_POINTER = b"version https://git-lfs"


@contextlib.contextmanager
def explained(key: str, name: str, part: str) -> Iterator[None]:
    """Turn any error inside into one sentence about a part of the model; errors of memory are passed on.

    Args:
        key: the setting that names the model.
        name: its value.
        part: the part being loaded, e.g. ``its tokenizer``.

    Raises:
        ConfigError: an error occurred.
    """
    try:
        yield
    except (ConfigError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers raises bare Exceptions, configurations errors of their own
        if "allocate memory" in str(error):  # a plain RuntimeError on a CPU
            raise
        reason = " ".join(str(error).split())[:400].rstrip(".")
        reason = reason if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {reason}"
        then = "install that library beside fcit" if isinstance(error, ImportError) else _again(name)
        raise ConfigError(f"{key}: cannot load {name!r}: {part} cannot be read ({reason}); {then}") from error


def is_local(source: str) -> bool:
    """Whether a model's name denotes a folder, existing or not; a hub name has one slash at most."""
    return Path(source).is_dir() or source.startswith((".", "~", os.sep)) or source.count("/") > 1


def _again(name: str) -> str:
    """The next step for a model with missing or damaged files."""
    if Path(name).is_dir():
        return "copy it from where the model comes from, or download the model again"
    return f"name a folder that is here, or download the model first (hf download {name})"


def cannot(key: str, folder: Path, why: str, then: str) -> ConfigError:
    """The error for a folder that cannot be used: why, and the next step."""
    return ConfigError(f"{key}: cannot load {str(folder)!r}: {why}; {then}")


def check_config(key: str, folder: Path) -> None:
    """Check that there is a folder with a readable config.json.

    Args:
        key: the setting that names the folder.

    Raises:
        ConfigError: what is wrong, and what to do.
    """
    if not folder.is_dir():
        raise cannot(key, folder, "there is no such folder", "name the folder that holds config.json, or a hub name")
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        then = "name the model it was made for, or save the two merged (merge_and_unload)"
        raise cannot(key, folder, f"{adapter.name} says that this is an adapter (PEFT)", then)
    _check_present(key, folder, (CONFIG,), "which says what kind of model this is")
    if _is_pointer(folder / CONFIG):
        raise _pointer(key, folder / CONFIG)
    _object(key, folder / CONFIG)


def check_files(key: str, folder: Path, pictures: bool = True) -> list[Path]:
    """The weight files of a folder, after checking that no file is missing, a Git LFS pointer or truncated.

    Args:
        key: the setting that names the folder.
        pictures: whether an image processor is needed.

    Raises:
        ConfigError: what is wrong, with the file and what to do.
    """
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".jinja", ".txt", ".model") and _is_pointer(file):
            raise _pointer(key, file)
    for name in _JSON:
        if (folder / name).is_file():
            _object(key, folder / name)
    _check_present(key, folder, _VOCABULARIES, "the words of its tokenizer")
    _check_present(key, folder, (WORDS,), "without which its tokenizer knows no end token")
    if pictures:
        _check_present(key, folder, PICTURES, "which says how images are prepared")
    files = _weights(key, folder)
    for file in files:
        _check_weights(key, file)
    return files


def _check_present(key: str, folder: Path, names: Sequence[str], meaning: str) -> None:
    if not any((folder / name).is_file() for name in names):
        raise cannot(key, folder, f"{' or '.join(names)} is missing, {meaning}", _again(str(folder)))


def _is_pointer(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size > 1024:
        return False
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def _pointer(key: str, file: Path) -> ConfigError:
    then = "run `git lfs pull` in that folder, or download the model with hf download"
    return cannot(key, file.parent, f"{file.name} is a Git LFS pointer that stands for the file", then)


def _object(key: str, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise cannot(key, file.parent, f"{file.name} is not JSON ({error})", _again(str(file.parent))) from None
    if not isinstance(content, dict):
        raise cannot(key, file.parent, f"{file.name} holds no JSON object", _again(str(file.parent)))
    return content


def _weights(key: str, folder: Path) -> list[Path]:
    """The weight files that transformers would read, including those that an index names."""
    named_file = _object(key, folder / CONFIG).get("transformers_weights")
    first = next(
        (
            name
            for name in (*([named_file] if isinstance(named_file, str) else []), *WEIGHTS)
            if (folder / name).is_file()
        ),
        "",
    )
    if not first:
        raise cannot(key, folder, f"there are no weights ({' or '.join(WEIGHTS[::2])})", _again(str(folder)))
    if not first.endswith(".index.json"):
        return [folder / first]
    named = _object(key, folder / first).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise cannot(key, folder, f"{first} names no files (weight_map)", _again(str(folder)))
    files = [folder / name for name in sorted(set(named.values()))]
    gone = [file.name for file in files if not file.is_file()]
    if gone:
        why = f"{len(gone)} of the {len(files)} weight files that {first} names are missing, first {gone[0]}"
        raise cannot(key, folder, why, _again(str(folder)))
    return files


def _check_weights(key: str, file: Path) -> None:
    if _is_pointer(file):
        raise _pointer(key, file)
    try:
        header(file)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (torch raises arbitrary errors for damaged files)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        why = f"{file.name} ({file.stat().st_size:,} bytes) is cut short or damaged ({reason})"
        raise cannot(key, file.parent, why, _again(str(file.parent))) from None


def header(file: Path) -> dict[str, torch.Tensor]:
    """Names and shapes of the tensors of one file, as tensors on the ``meta`` device."""
    if file.suffix != ".safetensors":
        from transformers.modeling_utils import load_state_dict

        tensors = load_state_dict(file, map_location="meta")  # weights_only: only tensors are unpickled
        if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise ValueError(f"holds a {type(tensors).__name__} and not tensors by name")
        return tensors
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
        return {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}


def check_buffers(projector: torch.nn.Module, policy: str, family: Any) -> None:
    """All that a trained projector consists of is parameters: what it counts beside them would stay with one process.

    Raises:
        ConfigError: it has buffers, which peft would save and nobody sends.
    """
    buffers = sorted(projector.state_dict().keys() - dict(projector.named_parameters()).keys())
    if buffers:
        raise ConfigError(
            f"adapter.projector: {policy!r}, but the projector of {type(family).__name__} has {buffers[0]!r}, which is "
            "no parameter and so not trained, sent or averaged; register a constant with persistent=False, or set "
            "adapter.projector: frozen"
        )


def check_adapted(names: Iterable[str], adapter: configuration.Adapter, family: Any) -> None:
    """Factors lie in the language model, and what is trained beside them is the projector as configured.

    Args:
        names: of all trained tensors.
        family: of the model (:class:`fcit.models.families.base.Family`).

    Raises:
        ConfigError: ``adapter.targets`` or ``adapter.projector`` does not fit the model.
    """
    names, targets, policy, projector = list(names), adapter.targets, adapter.projector, family.projector
    reasons = {"projector": "which is trained as a whole or not at all"}
    for module, part in family.outside().items():
        why = f"{part}, {reasons.get(part, 'whose features are computed once')}"
        inside = [n for n in names if module in n.split(".") and is_factor(n)]
        if inside:
            raise ConfigError(
                f"adapter.targets: {targets!r} reaches the {why} ({inside[0]}); anchor the expression in the language "
                "model"
            )
    trained = [n for n in names if is_projector(n)]
    if bool(trained) != (policy != "frozen") or not all(projector in n.split(".") for n in trained):
        raise ConfigError(
            f"adapter.projector: {policy!r}, but of the module {projector!r}, the projector of "
            f"{type(family).__name__}, {len(trained)} tensors are trained; correct the module's name in the family "
            "(fcit/models/families)"
        )
