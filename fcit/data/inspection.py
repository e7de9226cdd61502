"""Looks at a benchmark's files as they lie on disk: what is there, what is broken, which settings can run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from fcit import seeding
from fcit.data.findings import Dataset, Findings, Partition, Setting
from fcit.data.formats import places
from fcit.data.overlap import shared
from fcit.data.records import Record
from fcit.data.spec import BenchmarkSpec, DatasetSpec, placed
from fcit.data.table import Tables, picked
from fcit.data.usable import ImageVerdicts
from fcit.errors import DataError

SAMPLE = 200  # images looked at, of each data set
SHOWN = 5  # problems of each data set that are told in words
BETAS = ("0.5", "1.0", "5.0")
SETTINGS = ("homogeneous", "heterogeneous")
#: What is counted of images, in words, and the attribute of ``Look`` that says so.
PICTURES = {"turned by EXIF": "rotated", "transparent": "transparent", "one single colour": "single"}
SHARED = "test pictures in training"


def kinds(records: Iterable[Record | None]) -> dict[str, int]:
    """How many records are more than one image, one question and one answer, and in which way."""
    found: Counter[str] = Counter()
    for record in records:
        if record is not None:
            found["answers"] += len(record.turns)
            found["of several turns"] += len(record.turns) > 1
            found["of text alone"] += not record.images
            found["with several images"] += len(record.images) > 1
            found["with a system turn"] += bool(record.system)
    return {kind: count for kind, count in found.items() if count}


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
        for partition in partitions:
            if partition.origin == "generated":
                partition.notes += self._too_few(datasets)
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
        looked: set[str] = set()
        train = self._train(found, looked) if self._there(found, found.problems, spec.train) else []
        if self._there(found, found.problems, spec.test, spec.references):
            found.test, test = self._questions(found, "test", (spec.test, spec.references), looked, found.problems)
            self._overlap(found, train, test)
        if spec.val is not None:  # only evaluation.split=val asks for it
            late: list[str] = []
            if self._there(found, late, spec.val, spec.val_references):
                found.val, _ = self._questions(found, "val", (spec.val, spec.val_references), looked, late)
            found.notes += [f"{problem} (evaluation.split: val cannot run)" for problem in late]
        self._pictures(found, looked)
        return found

    def _located(self, file: str) -> Path:
        return places.located(self._instructions, file)

    def _there(self, found: Dataset, problems: list[str], *files: str | None) -> bool:
        """Whether these files are there."""
        paths = [self._located(file) for file in files if file]
        for path in paths:
            found.files[str(path)] = places.size(path) if places.exists(path) else None
        missing = [f"{path}: no such file" for path in paths if found.files[str(path)] is None]
        problems += missing
        return not missing

    def _train(self, found: Dataset, looked: set[str]) -> list[str]:
        """Look at the training records; returns all their images."""
        spec = self.spec.datasets[found.name]
        path, folder = self._located(spec.train), spec.images
        try:
            survey = self._tables.train(path, spec.form(self._images))
        except DataError as error:
            found.problems.append(str(error))
            return []
        found.format, found.conversations = survey.format, kinds(survey.records)
        found.train, found.bad_records = len(survey.records), len(survey.problems)
        rows = self._sampled(found.name, "train", found.train)
        named = [placed(folder, r.images) if r else () for r in picked(survey.records, rows)]
        bad = self._looked([image for images in named for image in images], looked)
        problems = {
            row: bad[image] for row, images in zip(rows, named, strict=True) for image in images if image in bad
        }
        if found.train == 0:
            found.problems.append(f"{path}: holds no records")
        if problems or survey.problems:
            found.problems += survey.sentences(SHOWN, {**problems, **survey.problems})
        return [image for r in survey.records if r is not None for image in placed(folder, r.images)]

    def _questions(
        self, found: Dataset, split: str, files: tuple[str, str | None], looked: set[str], problems: list[str]
    ) -> tuple[int | None, list[str]]:
        """Look at the questions of a split; returns how many there are and all their images."""
        spec = self.spec.datasets[found.name]
        folder, path = spec.images, self._located(files[0])
        try:
            references = self._located(files[1]) if files[1] else None
            questions = self._tables.test(path, references, spec.form(self._images))
        except DataError as error:
            problems.append(str(error))
            return None, []
        rows = self._sampled(found.name, split, len(questions))
        asked = [(n, i) for n, q in zip(rows, picked(questions, rows), strict=True) for i in placed(folder, q.images)]
        bad = self._looked([image for _, image in asked], looked)
        problems += [f"{path}, record {n}: {bad[image]}" for n, image in asked if image in bad][:SHOWN]
        return len(questions), [image for question in questions for image in placed(folder, question.images)]

    def _sampled(self, name: str, split: str, count: int) -> list[int]:
        """Positions of the records whose images are looked at, the same each time."""
        if self.every or count <= SAMPLE // 2:
            return list(range(count))
        return sorted(seeding.generator(0, "check", name, split).permutation(count)[: SAMPLE // 2].tolist())

    def _looked(self, images: list[str], looked: set[str]) -> dict[str, str]:
        looked.update(images)
        return self._verdicts.problems(images)

    def _pictures(self, found: Dataset, looked: set[str]) -> None:
        """What the images that were looked at are."""
        looks = self._verdicts.looks(looked)
        found.images, found.bad_images = len(looked), len(self._verdicts.problems(looked))
        counts = {word: sum(getattr(look, name) for look in looks.values()) for word, name in PICTURES.items()}
        found.pictures = counts | found.pictures
        ignored = [f"{counts[word]} are {word}" for word in ("turned by EXIF", "transparent") if counts[word]]
        if ignored:
            found.notes.append(
                f"{found.name}: of {len(looked)} images looked at, {' and '.join(ignored)}, which the published "
                "trainer ignores; data.pictures=upright does not"
            )

    def _overlap(self, found: Dataset, train: list[str], test: list[str]) -> None:
        """All images, whatever the sample: of few, hardly one would be met again."""
        pairs = shared(self._verdicts, train, test)
        found.pictures[SHARED] = len(pairs)
        if pairs:
            first = ", ".join(test if test == train else f"{test} (= {train})" for test, train in pairs[:SHOWN])
            more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
            found.notes.append(
                f"{found.name}: {len(pairs)} of {len(set(test))} pictures of the test set are in the training set, "
                f"too: {first}{more}; what is scored on them may be remembered"
            )

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

    def _too_few(self, datasets: list[Dataset]) -> list[str]:
        """Tasks that cannot be cut into a share for each client."""
        sizes = {dataset.name: dataset.train for dataset in datasets}
        cut, found = self.spec.partition, []
        for task, names in enumerate(self.spec.tasks):
            counts = [sizes[name] for name in names]
            total, each = sum(count or 0 for count in counts), max(cut.reserve, cut.min_size)
            if None not in counts and total < each * self.clients:
                found.append(
                    f"task {task} ({', '.join(names)}): {total} records are too few for {self.clients} clients "
                    f"(--clients) with {each} each; a run needs federation.clients of {total // each} at most"
                )
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
                for image in self._images_of(spec):
                    owners[image] = owners.get(image, frozenset()) | {task}
        return owners

    def _images_of(self, spec: DatasetSpec) -> set[str]:
        try:
            records = self._tables.train(self._located(spec.train), spec.form(self._images)).records
            return {image for r in records if r is not None for image in placed(spec.images, r.images)}
        except DataError:
            return set()  # told where its data set is looked at

    # ------------------------------------------------------------------ settings

    def _setting(self, setting: str, partition: Partition, datasets: list[Dataset]) -> Setting:
        broken = [dataset.name for dataset in datasets if not dataset.good]
        why = [f"data sets to repair: {', '.join(broken)}"] if broken else []
        if partition.problems:
            why.append("the delivered partition is not whole or not this benchmark's")
        return Setting(setting, partition.beta, partition.origin, not why, "; ".join(why))
