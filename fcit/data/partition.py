"""How a task's records are divided among the clients: delivered files, or a split by size, Dirichlet(beta)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fcit import seeding
from fcit.config import RunConfig
from fcit.data import formats
from fcit.data.formats import files
from fcit.data.records import Record
from fcit.data.spec import BenchmarkSpec
from fcit.errors import ConfigError, DataError
from fcit.io.cache import cache_folder

REDRAWS = 1000

Rows = list[dict[str, object]]


def dirichlet_sizes(
    total: int, clients: int, beta: float, rng: np.random.Generator, *, min_size: int = 1, reserve: int = 0
) -> list[int]:
    """How many of ``total`` records each client gets.

    Every client first gets ``reserve`` records; the rest is cut by shares drawn from
    Dirichlet(beta, ..., beta), rounded down (what is left over is dropped, as in the reference
    partitioner). The whole draw is repeated until each client has ``min_size``. One client gets all.

    Raises:
        ConfigError: ``reserve`` needs more records than there are, or 1,000 draws did not reach ``min_size``.
    """
    rest = total - reserve * clients
    if rest < 0:
        raise ConfigError(
            f"partition.reserve: {reserve} records for each of {clients} clients are more than the {total} there are"
        )
    for _ in range(REDRAWS):
        # The draw of one share, x / x, can be a bit less than 1.
        shares = rng.dirichlet([beta] * clients) if clients > 1 else np.ones(1)
        sizes = reserve + np.floor(shares * rest).astype(int)
        if sizes.min() >= min_size:
            return [int(size) for size in sizes]
    raise ConfigError(
        f"partition.min_size: no draw in {REDRAWS} gave each of {clients} clients {min_size} of {total} records "
        f"at beta {beta}; lower min_size, raise beta or use partition.reserve"
    )


def partition(
    total: int, clients: int, beta: float, seed: int, task: int, *, min_size: int = 1, reserve: int = 0
) -> list[list[int]]:
    """Record indices of each client: shuffled once, then cut into consecutive pieces."""
    rng = seeding.generator(seed, "partition", task, str(beta), clients)
    sizes = dirichlet_sizes(total, clients, beta, rng, min_size=min_size, reserve=reserve)
    order = rng.permutation(total)
    ends = np.cumsum(sizes)
    return [order[end - size : end].tolist() for size, end in zip(sizes, ends, strict=True)]


def kept(total: int, most: int, seed: int, dataset: str) -> list[int]:
    """Which ``most`` of a data set's ``total`` records are used (``data.max_records``), in the file's order.

    They are the first of one shuffle, the same for every method; a smaller choice is always part of a larger one.
    """
    return sorted(seeding.generator(seed, "max-records", dataset).permutation(total)[:most].tolist())


def write_clients(folder: Path, rows: Rows, shares: list[list[int]]) -> None:
    """Write ``client_<i>.json`` files of one task, in the official layout, all or nothing."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        for client, share in enumerate(shares):
            text = json.dumps([rows[i] for i in share], indent=1)
            (staging / f"client_{client}.json").write_text(text, encoding="utf-8")
        staging.rename(folder)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        if not folder.is_dir():  # else another process was first; its files are the same
            raise


def beyond(folder: Path, clients: int) -> int:
    """How many client files of a folder are those of more than so many clients."""
    numbers = (file.stem.removeprefix("client_") for file in folder.glob("client_*.json"))
    return sum(number.isdecimal() and int(number) >= clients for number in numbers)


def fingerprint(*parts: object) -> str:
    """Short name for generated partitions of the same origin."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


class ClientFiles:
    """The client files of a benchmark's tasks: delivered under the data root, else generated in the cache.

    Args:
        rows: makes the rows of a task's training records, for files that are generated.
    """

    def __init__(self, spec: BenchmarkSpec, root: Path, config: RunConfig, rows: Callable[[int], Rows]) -> None:
        self.spec, self.root, self.config, self._rows = spec, root, config, rows
        self._folders: dict[int, Path] = {}

    def file(self, client: int, task: int) -> Path:
        """The file of one client for one task.

        Raises:
            DataError, ConfigError: as :meth:`folder`; or the client has none.
        """
        path = self.folder(task) / f"client_{client}.json"
        if not path.is_file():
            raise DataError(f"{path}: the partition has no file for client {client}")
        return path

    def is_delivered(self, task: int) -> bool:
        """Whether a task's client files lie under the data root and are used.

        Their records do not say which data set they are from, so that ``data.max_records`` cannot be applied to them.
        The one participant of ``setting: centralised`` has a task's own files.

        Raises:
            DataError: it cannot be seen whether there are any.
        """
        whole = self.config.data.max_records is None and not self.config.centralised
        try:
            return whole and self._delivered(task).is_dir()
        except OSError as error:  # no other partition is drawn in its place
            raise DataError(f"{self._delivered(task)}: cannot be looked into ({error})") from None

    def _delivered(self, task: int) -> Path:
        """The folder that a task's delivered client files would lie in."""
        return self.root / self.spec.partition.folder / str(float(self.config.federation.beta)) / f"Task{task + 1}"

    def folder(self, task: int) -> Path:
        """The folder of a task's client files, which are generated if there are none.

        Raises:
            DataError: a training file is missing or broken, or client files cannot be written.
            ConfigError: the task has too few records for its clients.
        """
        if task not in self._folders:
            folder = self._delivered(task) if self.is_delivered(task) else self._generated(task)
            if not folder.is_dir():
                self._generate(task, folder)
            self._folders[task] = folder
        return self._folders[task]

    def _generated(self, task: int) -> Path:
        """The folder of a task's generated client files, named by everything they follow from."""
        federation, spec = self.config.federation, self.spec.partition
        datasets = [self.spec.datasets[name] for name in self.spec.tasks[task]]
        instructions = self.spec.folder(self.root, "instructions")
        trained = [files.located(instructions, dataset.train) for dataset in datasets]
        missing = next((file for file in trained if not files.exists(file)), None)
        if missing is not None:
            raise DataError(f"{missing}: no such instruction file; check data_root and the benchmark file")
        stamps = [(str(file), *files.stamp(file)) for file in trained]
        images, names = [dataset.images for dataset in datasets], [dataset.format for dataset in datasets]
        columns = [dataset.columns.model_dump() if dataset.columns else None for dataset in datasets]
        # A setting that came later is part of the name only where it is set: older folders keep theirs.
        more: list[object] = [images] if any(images) else []
        more += [self.config.data.max_records] if self.config.data.max_records else []
        more += [names] if any(names) else []
        more += [columns] if any(columns) else []
        more += ["all"] if federation.clients == 1 else []
        suffixes = [dataset.suffix for dataset in datasets]
        origin = fingerprint(formats.VERSION, stamps, suffixes, federation.clients, spec.model_dump(), *more)
        draw = f"{float(federation.beta)}-seed{self.config.seed}"
        return cache_folder() / "partitions" / f"{self.spec.name}-{origin}" / draw / f"Task{task + 1}"

    def _generate(self, task: int, folder: Path) -> None:
        federation, spec, rows = self.config.federation, self.spec.partition, self._rows(task)
        shares = partition(
            len(rows),
            federation.clients,
            federation.beta,
            self.config.seed,
            task,
            min_size=spec.min_size,
            # With few records hardly a draw would leave every client one.
            reserve=spec.reserve if self.config.data.max_records is None else max(spec.reserve, 1),
        )
        try:
            write_clients(folder, rows, shares)
        except OSError as error:
            raise DataError(
                f"client files cannot be written to {folder} ({error}); set FCIT_CACHE to a folder that can be written "
                "and has room"
            ) from None


class SuffixIndex:
    """Which suffix belongs to a record of a delivered client file, which does not say which data set it is from.

    A record is identified by its images, first question and first answer; where several data sets have such a record,
    or none has, by its first image alone. If that belongs to several suffixes, or to none, the suffix is unknown.

    Args:
        records: of training files: suffix, record, its images from the image root.
    """

    def __init__(self, records: Iterable[tuple[str, Record, tuple[str, ...]]]) -> None:
        self._by_record: dict[tuple[object, ...], set[str]] = {}
        self._by_image: dict[str, set[str]] = {}
        for suffix, record, images in records:
            self._by_record.setdefault(self._key(record, images), set()).add(suffix)
            for image in images[:1]:
                self._by_image.setdefault(image, set()).add(suffix)

    @staticmethod
    def _key(record: Record, images: tuple[str, ...]) -> tuple[object, ...]:
        return images, record.turns[0].question, record.turns[0].answer

    def suffix(self, record: Record) -> str | None:
        """The suffix of a record whose images are named from the image root; None: not known."""
        suffixes = self._by_record.get(self._key(record, record.images), set())
        if len(suffixes) != 1 and record.images:
            suffixes = self._by_image.get(record.images[0], set())
        return next(iter(suffixes)) if len(suffixes) == 1 else None
