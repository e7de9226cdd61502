"""Fingerprints of what a run rests on: every data set, split and partition, and code of the user's own.

They stand under ``data`` in ``environment.json`` and ``results.json``::

    {"version": 1,
     "datasets": {"iconqa": {
        "train": {"instructions": {"file": "iconqa/train.json", "sha256": ...}, "images": {"count": 4, "sha256": ...}},
        "test": {"split": "test", "questions": {...}, "references": {...}, "images": {...}, "asked": {"sha256": ...}}}},
     "partitions": [{"delivered": "partitioned_data/0.5/Task1", "sha256": ..., "images": {...}}],
     "held_out": {"pope-random": {"test": {...}}},
     "code": {"scorer /home/me/mine.py:mine": {"file": "/home/me/mine.py", "sha256": ...}}}

A hash is the SHA-256 of a file's bytes; of images, of the sorted (name, SHA-256) pairs. What the built-in
benchmarks render is named by the renderer's version instead: one seed, the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fcit import registry
from fcit.data.benchmark import Benchmark
from fcit.data.fingerprints.image_hashes import ImageHashes
from fcit.data.formats import files
from fcit.data.formats.files import Form
from fcit.data.records import Record, TestRecord, picked, placed
from fcit.data.spec import DatasetSpec
from fcit.data.stream import Stream
from fcit.errors import ConfigError
from fcit.io.cache import cache_folder

VERSION = 1  # raised whenever something else is hashed: fingerprints of two versions are not compared


def file_sha(path: Path) -> str | None:
    """SHA-256 of a file's bytes, hexadecimal; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _sha(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def images_of(records: Iterable[Record | TestRecord | None]) -> Iterator[str]:
    """The images that records name, as they name them."""
    for record in records:
        if record is not None:
            yield from record.images


def of(stream: Stream, trains: bool = True) -> dict[str, Any]:
    """The fingerprints of a run's data and of the code it names; of a stream without data, of the code alone.

    Args:
        trains: whether the training data are here; where sites train, only the server's own questions are.

    Raises:
        ConfigError, DataError: the data are not usable.
    """
    data: dict[str, Any] = {"version": VERSION, "datasets": {}} | ({"partitions": []} if trains else {})
    if isinstance(stream, Benchmark):
        source = _Data(stream)
        datasets = data["datasets"] = {
            name: ({"train": source.train(name)} if trains else {}) | {"test": source.test(name)}
            for name in source.names
        }
        if trains:
            data["partitions"] = [source.partition(task, datasets) for task in range(len(stream.tasks))]
        if stream.held_out:
            data["held_out"] = {name: {"test": _Data(owner).test(name)} for name, owner in stream.held_out.items()}
    return data | {"code": code(stream)}


def differing_images(benchmark: Benchmark, name: str, split: str, before: str) -> list[str]:
    """The images of a data set that differ from those of a fingerprint, as far as their hashes are still kept.

    Args:
        split: ``train`` or ``test``.
        before: the hash of the images in the fingerprint.
    """
    data = _Data(benchmark.owner(name))
    return data.hashes.differing(before, data.hashes.of(data.images(name, split)))


class _Data:
    """The data of a benchmark."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark, self.spec = benchmark, benchmark.spec
        self.names = list(dict.fromkeys(name for task in self.spec.tasks for name in task))
        self.hashes = ImageHashes(benchmark.image_root, cache_folder() / "image-hashes")

    def _file(self, name: str) -> dict[str, Any]:
        """A file by its content, a table of several files by all of them; None for one of the hub: it has no file."""
        path = self.benchmark.files.located(name)
        place = files.place_of(path)
        if place.is_table and place.files():
            return {"file": name, "sha256": _sha([[file.name, file_sha(file)] for file in place.files()])}
        return {"file": name, "sha256": file_sha(path)}

    def _images(self, names: Iterable[str]) -> dict[str, Any]:
        hashes = self.hashes.of(names)
        return {"count": len(hashes), "sha256": self.hashes.remember(hashes)}

    def _images_of_split(self, name: str, split: str) -> dict[str, Any]:
        if self.spec.source == "mini":
            from fcit.data.mini.render import VERSION as rendered

            return {"rendered": rendered}
        return self._images(self.images(name, split))

    def images(self, name: str, split: str) -> Iterator[str]:
        """Images that the records in use name, from the image root."""
        if split == "test":
            yield from images_of(self.benchmark.test(name))
            return
        spec = self.spec.datasets[name]
        # Without a file the benchmark's own code makes its records.
        if files.exists(self.benchmark.files.located(spec.train)):
            records = self.benchmark.files.train_file(name).records
            used = self.benchmark.files.used(name, len(records))
            yield from placed(spec.images, tuple(images_of(records if used is None else picked(records, used))))

    def train(self, name: str) -> dict[str, Any]:
        """The training file of a data set and the images of its records that are used."""
        spec = self.spec.datasets[name]
        instructions = self._file(spec.train)
        if files.place_of(self.benchmark.files.located(spec.train)).kind == "hub":
            records = self.benchmark.files.train_file(name).records
            instructions["sha256"] = _sha([record and asdict(record) for record in records])
        return {"instructions": instructions, "images": self._images_of_split(name, "train")}

    def test(self, name: str) -> dict[str, Any]:
        """What a data set is scored on."""
        file, references = self.benchmark.files.split(name)
        questions = self._file(file)
        if questions["sha256"] is None:  # made by code of the user's own, or of the hub
            questions["sha256"] = _sha([_values(record) for record in self.benchmark.test(name)])
        spec = self.spec.datasets[name]
        return {
            "split": self.benchmark.config.evaluation.split,
            "questions": questions,
            **({"references": self._file(references)} if references else {}),
            "images": self._images_of_split(name, "test"),
            "asked": {"sha256": _sha(_how_asked(spec, self.spec.question_blanks))},
        }

    def partition(self, task: int, datasets: dict[str, Any]) -> dict[str, Any]:
        """A delivered partition's content; of a generated one, what it follows from."""
        config, names, client_files = self.benchmark.config, self.spec.tasks[task], self.benchmark.client_files
        folder = client_files.folder(task)
        clients = range(config.federation.clients)
        if not client_files.is_delivered(task):
            spec = self.spec.partition
            return {
                "generated": {name: datasets[name]["train"]["instructions"]["sha256"] for name in names},
                "clients": len(clients),
                "beta": config.federation.beta,
                "seed": config.seed,
                "min_size": spec.min_size,
                "reserve": spec.reserve,
                "max_records": config.data.max_records,
            }
        paths = [folder / f"client_{client}.json" for client in clients]
        records = (self.benchmark.files.read(path, Form()).records for path in paths if path.is_file())
        return {
            "delivered": os.path.relpath(folder, self.benchmark.root),  # a partition may lie elsewhere
            "clients": len(clients),
            "sha256": _sha([[path.name, file_sha(path)] for path in paths]),
            "images": self._images(image for some in records for image in images_of(some)),
        }


def _values(record: TestRecord) -> dict[str, Any]:
    """What a question consists of; an empty kind is left out, as there was none before."""
    return {key: value for key, value in asdict(record).items() if key != "kind" or value}


def _how_asked(spec: DatasetSpec, blanks: str) -> dict[str, Any]:
    """How questions are put and scored; defaults are left out, so that a new setting changes no fingerprint."""
    keys = {"suffix", "test_suffix", "max_new_tokens", "columns"}
    settings = spec.model_dump(mode="json", include=keys, exclude_defaults=True)
    kept = {"blanks": blanks} if blanks != "stripped" else {}
    return {**settings, **kept, "scorer": registry.label(spec.scorer)}


# ---------------------------------------------------------------------- code


def source_file(name: str) -> Path | None:
    """The file of a part of the user's own, ``./file.py:Name`` or ``package.module:Name``."""
    source = name.rpartition(":")[0]
    if source.endswith(".py"):
        return Path(source)
    try:
        module = importlib.util.find_spec(source)
    except (ImportError, ValueError):
        return None
    return Path(module.origin) if module is not None and module.origin is not None else None


def code(stream: Stream) -> dict[str, Any]:
    """The files of own parts that a run names, by family and name; of a benchmark file, its content.

    Modules that these files import are not hashed.
    """
    config = stream.config
    named = [(family, str(getattr(config, family)["name"])) for family in ("method", "fedopt")]
    named += [("tracker", name) for name in config.trackers]
    named += [("trainer", config.training.trainer)] if config.training.trainer else []
    named += [("benchmark", config.benchmark)]
    datasets = list(stream.datasets.values())
    if isinstance(stream, Benchmark):
        named += [("held-out", entry.benchmark) for entry in config.evaluation.held_out]
        datasets += [owner.datasets[name] for name, owner in stream.held_out.items()]
    named += [("scorer", rule) for data in datasets for rule in [data.scorer, *data.also]]
    hashes: dict[str, Any] = {}
    for family, name in named:
        if registry.is_own(name):
            file = source_file(name)
        elif family in ("benchmark", "held-out") and name.endswith((".yaml", ".yml")):
            file = Path(name)
        else:
            continue
        if file is None:
            raise ConfigError(f"{family}: the file of {name!r} cannot be found; is its folder on PYTHONPATH?")
        hashes[f"{family} {name}"] = {"file": str(file), "sha256": file_sha(file)}
    return hashes
