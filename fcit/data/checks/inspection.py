"""`fcit data check`: reads a benchmark's files as they lie on disk and reports what is missing or broken."""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from fcit import seeding
from fcit.config import RunConfig
from fcit.data.checks.findings import Dataset, Findings, Partition, Setting
from fcit.data.formats import files
from fcit.data.images.verdicts import ImageVerdicts
from fcit.data.partition import beyond
from fcit.data.records import Record, picked, placed
from fcit.data.spec import BenchmarkSpec, DatasetSpec
from fcit.data.store import RecordStore
from fcit.errors import DataError

SAMPLE = 200  # images decoded, of each data set
SHOWN = 5  # problems of each data set that are described
BETAS = ("0.5", "1.0", "5.0")
SETTINGS: tuple[str, ...] = typing.get_args(RunConfig.model_fields["setting"].annotation)
#: Kinds of images that are counted: their name in tables, and the attribute of ``Look`` that holds whether it is one.
PICTURES = {"turned by EXIF": "rotated", "transparent": "transparent", "one single colour": "single"}
SHARED = "test pictures in training"


def kinds(records: Iterable[Record | None]) -> dict[str, int]:
    """Number of answers, and of records that are other than one image, one question and one answer, by kind."""
    counts: Counter[str] = Counter()
    for record in records:
        if record is not None:
            counts["answers"] += len(record.turns)
            counts["of several turns"] += len(record.turns) > 1
            counts["of text alone"] += not record.images
            counts["with several images"] += len(record.images) > 1
            counts["with a system turn"] += bool(record.system)
    return {kind: count for kind, count in counts.items() if count}


def shared(verdicts: ImageVerdicts, train: Sequence[str], test: Sequence[str]) -> list[tuple[str, str]]:
    """The test images whose files equal one of the training images, each with that one, in the test's order.

    Images are compared by content, whatever their files are called; only files of a size that both sides have are read.
    """
    trained, tested = verdicts.sizes(train), verdicts.sizes(test)
    sizes = set(trained.values()) & set(tested.values())
    contents = verdicts.contents(image for image, size in (trained | tested).items() if size in sizes)
    owners: dict[str, str] = {}
    for image in trained:
        if image in contents:
            owners.setdefault(contents[image], image)
    pairs = ((image, owners.get(contents.get(image, ""))) for image in tested)
    # An image whose name is on both sides is paired with itself, not with the first image of its content.
    return [(image, image if image in trained else owner) for image, owner in pairs if owner is not None]


class Inspection:
    """Reads the files of a benchmark.

    Args:
        cache: where records and verdicts are kept between processes.
        every: decode all images, not a sample of each data set; read all client files.
        clients: number of files that a task's folder of the partition must hold.
    """

    def __init__(self, spec: BenchmarkSpec, root: Path, cache: Path, every: bool = False, clients: int = 50) -> None:
        self.spec, self.root, self.every, self.clients = spec, root, every, clients
        self._instructions, self._images = spec.folder(root, "instructions"), spec.folder(root, "images")
        self._store = RecordStore(cache / "records")
        self._verdicts = ImageVerdicts(self._images, cache / "images")

    def look(self, settings: Sequence[str] = SETTINGS, betas: Sequence[str] = BETAS) -> Findings:
        """Read everything that these settings need."""
        datasets = [self.dataset(name) for name in self.spec.datasets]
        if not self.spec.tasks:  # questions alone
            asked = self._whole("evaluation.held_out", datasets)
            return Findings(self.spec.name, str(self.root), datasets, [], [asked])
        partitions = [self.partition(beta) for beta in betas]
        for partition in partitions:
            if partition.origin == "generated":
                partition.notes += self._too_few(datasets)
        possible = [name for name in settings if name != "heterogeneous" or self.spec.heterogeneous]
        federated = [name for name in possible if name != "centralised"]
        runs = [self._setting(name, partition, datasets) for name in federated for partition in partitions]
        runs += [self._whole(name, datasets) for name in possible if name not in federated]
        return Findings(self.spec.name, str(self.root), datasets, partitions, runs)

    # ------------------------------------------------------------------ data sets

    def dataset(self, name: str) -> Dataset:
        """Files, records and images of one data set."""
        spec, dataset = self.spec.datasets[name], Dataset(name)
        if name in self.spec.untrained:
            dataset.notes.append(f"{name}: is in none of the tasks, so that it is neither learnt nor asked")
        decoded: set[str] = set()
        trains = spec.train and self._exist(dataset, dataset.problems, spec.train)
        train = self._train(dataset, decoded) if trains else []
        if self._exist(dataset, dataset.problems, spec.test, spec.references):
            named = spec.test, spec.references
            dataset.test, test = self._questions(dataset, "test", named, decoded, dataset.problems)
            self._overlap(dataset, train, test)
        if spec.val is not None:  # only evaluation.split=val needs it
            problems: list[str] = []
            if self._exist(dataset, problems, spec.val, spec.val_references):
                named = spec.val, spec.val_references
                dataset.val, _ = self._questions(dataset, "val", named, decoded, problems)
            dataset.notes += [f"{problem} (evaluation.split: val cannot run)" for problem in problems]
        self._pictures(dataset, decoded)
        return dataset

    def _located(self, file: str) -> Path:
        return files.located(self._instructions, file)

    def _exist(self, dataset: Dataset, problems: list[str], *names: str | None) -> bool:
        """Whether these files exist; those that do not are among the problems."""
        paths = [self._located(name) for name in names if name]
        for path in paths:
            dataset.files[str(path)] = files.size(path) if files.exists(path) else None
        missing = [f"{path}: no such file" for path in paths if dataset.files[str(path)] is None]
        problems += missing
        return not missing

    def _train(self, dataset: Dataset, decoded: set[str]) -> list[str]:
        """Read the training records; returns all their images."""
        spec = self.spec.datasets[dataset.name]
        path, folder = self._located(spec.train), spec.images
        try:
            file = self._store.train(path, spec.reading(self._images))
        except DataError as error:
            dataset.problems.append(str(error))
            return []
        dataset.format, dataset.conversations = file.format, kinds(file.records)
        dataset.train, dataset.bad_records = len(file.records), len(file.problems)
        rows = self._sampled(dataset.name, "train", dataset.train)
        named = [placed(folder, r.images) if r else () for r in picked(file.records, rows)]
        bad = self._decode([image for images in named for image in images], decoded)
        problems = {
            row: bad[image] for row, images in zip(rows, named, strict=True) for image in images if image in bad
        }
        if dataset.train == 0:
            dataset.problems.append(f"{path}: holds no records")
        if problems or file.problems:
            dataset.problems += file.sentences(SHOWN, {**problems, **file.problems})
        return [image for r in file.records if r is not None for image in placed(folder, r.images)]

    def _questions(
        self, dataset: Dataset, split: str, names: tuple[str, str | None], decoded: set[str], problems: list[str]
    ) -> tuple[int | None, list[str]]:
        """Read the questions of a split; returns their number (None: not readable) and all their images."""
        spec = self.spec.datasets[dataset.name]
        folder, path = spec.asked_images, self._located(names[0])
        try:
            references = self._located(names[1]) if names[1] else None
            questions = self._store.test(path, references, spec.reading(self._images, asked=True))
        except DataError as error:
            problems.append(str(error))
            return None, []
        rows = self._sampled(dataset.name, split, len(questions))
        sample = [(n, i) for n, q in zip(rows, picked(questions, rows), strict=True) for i in placed(folder, q.images)]
        bad = self._decode([image for _, image in sample], decoded)
        problems += [f"{path}, record {n}: {bad[image]}" for n, image in sample if image in bad][:SHOWN]
        return len(questions), [image for question in questions for image in placed(folder, question.images)]

    def _sampled(self, name: str, split: str, count: int) -> list[int]:
        """Positions of the records whose images are decoded, the same each time."""
        if self.every or count <= SAMPLE // 2:
            return list(range(count))
        return sorted(seeding.generator(0, "check", name, split).permutation(count)[: SAMPLE // 2].tolist())

    def _decode(self, images: list[str], decoded: set[str]) -> dict[str, str]:
        """Decode images; returns those that cannot be used, and why."""
        decoded.update(images)
        return self._verdicts.problems(images)

    def _pictures(self, dataset: Dataset, decoded: set[str]) -> None:
        """Count what the images that were decoded are."""
        looks = self._verdicts.looks(decoded)
        dataset.images, dataset.bad_images = len(decoded), len(self._verdicts.problems(decoded))
        counts = {word: sum(getattr(look, name) for look in looks.values()) for word, name in PICTURES.items()}
        dataset.pictures = counts | dataset.pictures
        ignored = [f"{counts[word]} are {word}" for word in ("turned by EXIF", "transparent") if counts[word]]
        if ignored:
            dataset.notes.append(
                f"{dataset.name}: of {len(decoded)} images looked at, {' and '.join(ignored)}, which the published "
                "trainer ignores; data.pictures=upright does not"
            )

    def _overlap(self, dataset: Dataset, train: list[str], test: list[str]) -> None:
        """Compare all images, not the sample: among few images hardly one would be on both sides."""
        pairs = shared(self._verdicts, train, test)
        dataset.pictures[SHARED] = len(pairs)
        if pairs:
            first = ", ".join(test if test == train else f"{test} (= {train})" for test, train in pairs[:SHOWN])
            more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
            dataset.notes.append(
                f"{dataset.name}: {len(pairs)} of {len(set(test))} pictures of the test set are in the training set, "
                f"too: {first}{more}; what is scored on them may be remembered"
            )

    # ------------------------------------------------------------------ partition

    def partition(self, beta: str) -> Partition:
        """The delivered client files for one beta."""
        folder = self.root / self.spec.partition.folder / beta
        tasks = [number for number in range(len(self.spec.tasks)) if (folder / f"Task{number + 1}").is_dir()]
        partition = Partition(beta, str(folder), len(tasks), len(self.spec.tasks))
        if tasks and len(tasks) < partition.of:
            missing = [f"Task{n + 1}" for n in range(partition.of) if n not in tasks]
            partition.problems.append(
                f"{folder}: {', '.join(missing)} missing; complete the partition, or move it away"
            )
        for task in tasks:
            self._client_files(partition, task, folder / f"Task{task + 1}")
        return partition

    def _too_few(self, datasets: list[Dataset]) -> list[str]:
        """Tasks that cannot be cut into a share for each client."""
        sizes = {dataset.name: dataset.train for dataset in datasets}
        cut, notes = self.spec.partition, []
        for task, names in enumerate(self.spec.tasks):
            counts = [sizes[name] for name in names]
            total, each = sum(count or 0 for count in counts), max(cut.reserve, cut.min_size)
            if None not in counts and total < each * self.clients:
                notes.append(
                    f"task {task} ({', '.join(names)}): {total} records are too few for {self.clients} clients "
                    f"(--clients) with {each} each; a run needs federation.clients of {total // each} at most"
                )
        return notes

    def _client_files(self, partition: Partition, task: int, folder: Path) -> None:
        paths = [folder / f"client_{client}.json" for client in range(self.clients)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            partition.problems.append(f"{folder}: no {missing[0]}{more}, of {self.clients} clients")
        unused = beyond(folder, self.clients)
        if unused:
            partition.notes.append(
                f"{folder}: files of {unused} clients beyond {self.clients} (--clients); with so many clients nobody "
                "trains their records"
            )
        present = [path for path in paths if path.is_file()]
        tasks: Counter[int] = Counter()
        for path in present if self.every else present[:2]:
            try:
                file = self._store.train(path)
            except DataError as error:
                partition.problems.append(str(error))
                continue
            if file.problems:
                partition.problems += file.sentences(1)
            tasks.update(self._tasks_of(file.records))
        most = tasks.most_common(1)
        if most and most[0][1] > tasks[task]:
            other = ", ".join(self.spec.tasks[most[0][0]])
            partition.problems.append(
                f"{folder}: its records are those of {other}, not of {', '.join(self.spec.tasks[task])}: the partition "
                "has its tasks in another order than the benchmark file; change `tasks` in a copy of that"
            )

    def _tasks_of(self, records: Sequence[Record | None]) -> Counter[int]:
        """How many records have an image of each task's training files."""
        counts: Counter[int] = Counter()
        for record in records:
            counts.update(self._owners.get(record.images[0], ()) if record and record.images else ())
        return counts

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
            records = self._store.train(self._located(spec.train), spec.reading(self._images)).records
            return {image for r in records if r is not None for image in placed(spec.images, r.images)}
        except DataError:
            return set()  # reported with its data set

    # ------------------------------------------------------------------ settings

    @staticmethod
    def _whole(setting: str, datasets: list[Dataset]) -> Setting:
        """One participant has the data sets' own files."""
        broken = [dataset.name for dataset in datasets if not dataset.good]
        why = f"data sets to repair: {', '.join(broken)}" if broken else ""
        return Setting(setting, "-", "none needed", not why, why)

    def _setting(self, setting: str, partition: Partition, datasets: list[Dataset]) -> Setting:
        why = [text] if (text := self._whole(setting, datasets).why) else []
        if partition.problems:
            why.append("the delivered partition is not whole or not this benchmark's")
        return Setting(setting, partition.beta, partition.origin, not why, "; ".join(why))
