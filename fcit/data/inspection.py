"""Looks at a benchmark's files as they lie on disk: what is there, what is broken, which settings can run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fcit import seeding
from fcit.data.formats import Form, places
from fcit.data.records import Record, TestRecord
from fcit.data.spec import BenchmarkSpec, placed
from fcit.data.table import Tables, picked
from fcit.data.usable import ImageVerdicts
from fcit.errors import DataError

SAMPLE = 200  # images looked at, of each data set
SHOWN = 5  # problems of each data set that are told in words
BETAS = ("0.5", "1.0", "5.0")
SETTINGS = ("homogeneous", "heterogeneous")


@dataclass
class Dataset:
    """What was found of one data set; counts are None where a file could not be read."""

    name: str
    files: dict[str, int | None] = field(default_factory=dict)  # path -> bytes
    train: int | None = None
    test: int | None = None
    images: int = 0  # looked at
    bad_images: int = 0
    bad_records: int = 0
    problems: list[str] = field(default_factory=list)  # the first ones
    format: str | None = None  # of its training records

    @property
    def good(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.problems


@dataclass
class Partition:
    """What was found of the delivered partition for one beta."""

    beta: str
    folder: str
    tasks: int  # that have client files
    of: int
    problems: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        """Where client files come from in a run."""
        return "generated" if self.tasks == 0 else "delivered" if self.tasks == self.of else "incomplete"


@dataclass
class Setting:
    """One way to run the benchmark."""

    setting: str
    beta: str
    partition: str
    runs: bool
    why: str = ""


@dataclass
class Findings:
    """Everything that was found."""

    benchmark: str
    root: str
    datasets: list[Dataset]
    partitions: list[Partition]
    settings: list[Setting]

    @property
    def good(self) -> bool:
        """Whether every setting asked for can run."""
        return all(setting.runs for setting in self.settings)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"good": self.good, **asdict(self)}


class Inspection:
    """A look at the files of a benchmark.

    Args:
        cache: where records and verdicts are kept between runs.
        every: decode all images, not a sample of each data set; read all client files.
        clients: files a task's folder of the partition must hold.
    """

    def __init__(self, spec: BenchmarkSpec, root: Path, cache: Path, every: bool = False, clients: int = 50) -> None:
        self.spec, self.root, self.every, self.clients = spec, root, every, clients
        self._instructions, self._images = spec.folder(root, "instructions"), spec.folder(root, "images")
        self._tables = Tables(cache / "records")
        self._verdicts = ImageVerdicts(self._images, cache / "images")

    def look(self, settings: Sequence[str] = SETTINGS, betas: Sequence[str] = BETAS) -> Findings:
        """Look at everything that these settings need."""
        datasets = [self.dataset(name) for name in self.spec.datasets]
        partitions = [self.partition(beta) for beta in betas]
        found = []
        for setting in settings:
            if setting == "heterogeneous" and not self.spec.heterogeneous:
                continue
            found += [self._setting(setting, partition, datasets) for partition in partitions]
        return Findings(self.spec.name, str(self.root), datasets, partitions, found)

    # ------------------------------------------------------------------ data sets

    def dataset(self, name: str) -> Dataset:
        """Files, records and images of one data set."""
        spec, found = self.spec.datasets[name], Dataset(name)
        for path in map(self._located, filter(None, (spec.train, spec.test, spec.references))):
            there = places.exists(path)
            found.files[str(path)] = places.size(path) if there else None
            if not there:
                found.problems.append(f"{path}: no such file")
        if places.exists(self._located(spec.train)):
            self._train(found)
        questions = [self._located(file) for file in (spec.test, spec.references) if file]
        if all(map(places.exists, questions)):
            self._test(found)
        return found

    def _located(self, file: str) -> Path:
        return places.located(self._instructions, file)

    def _train(self, found: Dataset) -> None:
        spec = self.spec.datasets[found.name]
        path, folder = self._located(spec.train), spec.images
        try:
            survey = self._tables.train(path, spec.form(self._images))
        except DataError as error:
            found.problems.append(str(error))
            return
        found.train, found.bad_records = len(survey.records), len(survey.problems)
        found.format = survey.format
        rows = self._sampled(found.name, "train", found.train)
        named = [placed(folder, r.images) if r else () for r in picked(survey.records, rows)]
        bad = self._looked(found, [image for images in named for image in images])
        problems = {
            row: bad[image] for row, images in zip(rows, named, strict=True) for image in images if image in bad
        }
        if found.train == 0:
            found.problems.append(f"{path}: holds no records")
        if problems or survey.problems:
            found.problems += survey.sentences(SHOWN, {**problems, **survey.problems})

    def _test(self, found: Dataset) -> None:
        spec = self.spec.datasets[found.name]
        path = self._located(spec.test)
        references = self._located(spec.references) if spec.references else None
        try:
            questions = self._tables.test(path, references, spec.form(self._images))
        except DataError as error:
            found.problems.append(str(error))
            return
        found.test = len(questions)
        rows = self._sampled(found.name, "test", found.test)
        asked: Sequence[TestRecord] = picked(questions, rows)
        named = [(n, image) for n, q in zip(rows, asked, strict=True) for image in placed(spec.images, q.images)]
        bad = self._looked(found, [image for _, image in named])
        found.problems += [f"{path}, record {n}: {bad[image]}" for n, image in named if image in bad][:SHOWN]

    def _sampled(self, name: str, split: str, count: int) -> list[int]:
        """Positions of the records whose images are looked at, the same each time."""
        if self.every or count <= SAMPLE // 2:
            return list(range(count))
        return sorted(seeding.generator(0, "check", name, split).permutation(count)[: SAMPLE // 2].tolist())

    def _looked(self, found: Dataset, images: list[str]) -> dict[str, str]:
        bad = self._verdicts.problems(images)
        found.images += len(set(images))
        found.bad_images += len(bad)
        return bad

    # ------------------------------------------------------------------ partition

    def partition(self, beta: str) -> Partition:
        """The delivered client files for one beta."""
        folder = self.root / self.spec.partition.folder / beta
        tasks = [number for number in range(len(self.spec.tasks)) if (folder / f"Task{number + 1}").is_dir()]
        found = Partition(beta, str(folder), len(tasks), len(self.spec.tasks))
        if tasks and len(tasks) < found.of:
            missing = [f"Task{n + 1}" for n in range(found.of) if n not in tasks]
            found.problems.append(f"{folder}: {', '.join(missing)} missing; complete the partition, or move it away")
        for task in tasks:
            self._client_files(found, task, folder / f"Task{task + 1}")
        return found

    def _client_files(self, found: Partition, task: int, folder: Path) -> None:
        files = [folder / f"client_{client}.json" for client in range(self.clients)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            found.problems.append(f"{folder}: no {missing[0]}{more}, of {self.clients} clients")
        there = [file for file in files if file.is_file()]
        tasks: Counter[int] = Counter()
        for file in there if self.every else there[:2]:
            try:
                survey = self._tables.train(file)
            except DataError as error:
                found.problems.append(str(error))
                continue
            if survey.problems:
                found.problems += survey.sentences(1)
            tasks.update(self._tasks_of(survey.records))
        meant, most = tasks[task], tasks.most_common(1)
        if most and most[0][1] > meant:
            other = ", ".join(self.spec.tasks[most[0][0]])
            found.problems.append(
                f"{folder}: its records are those of {other}, not of {', '.join(self.spec.tasks[task])}: the partition "
                "has its tasks in another order than the benchmark file; change `tasks` in a copy of that"
            )

    def _tasks_of(self, records: Sequence[Record | None]) -> Counter[int]:
        """How many records have an image of each task's training files."""
        found: Counter[int] = Counter()
        for record in records:
            found.update(self._owners.get(record.images[0], ()) if record and record.images else ())
        return found

    @cached_property
    def _owners(self) -> dict[str, frozenset[int]]:
        """The tasks that each training image belongs to."""
        owners: dict[str, frozenset[int]] = {}
        for task, names in enumerate(self.spec.tasks):
            for spec in (self.spec.datasets[name] for name in names):
                for image in self._images_of(self._located(spec.train), spec.images, spec.form(self._images)):
                    owners[image] = owners.get(image, frozenset()) | {task}
        return owners

    def _images_of(self, path: Path, folder: str, form: Form) -> set[str]:
        try:
            records = self._tables.train(path, form).records
            return {image for r in records if r is not None for image in placed(folder, r.images)}
        except DataError:
            return set()  # told where its data set is looked at

    # ------------------------------------------------------------------ settings

    def _setting(self, setting: str, partition: Partition, datasets: list[Dataset]) -> Setting:
        broken = [dataset.name for dataset in datasets if not dataset.good]
        why = [f"data sets to repair: {', '.join(broken)}"] if broken else []
        if partition.problems:
            why.append("the delivered partition is not whole or not this benchmark's")
        return Setting(setting, partition.beta, partition.origin, not why, "; ".join(why))
