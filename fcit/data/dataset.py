"""The files of data sets: where they lie, reading them, and which of their records can be used.

Bad training records are passed over up to a share, the same ones wherever the file is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import cast

from fcit.config import RunConfig
from fcit.data import formats, partition
from fcit.data.formats import TrainFile, files, read_train_file
from fcit.data.formats.files import Form
from fcit.data.images.verdicts import ImageVerdicts
from fcit.data.records import Record, TestRecord, picked, placed
from fcit.data.spec import BenchmarkSpec
from fcit.data.store import MappedTrainFile, RecordStore
from fcit.data.verdict import Verdict
from fcit.errors import DataError
from fcit.io.cache import cache_folder

SHOWN = 20  # problems shown at once

#: Called with the positions of records in their file and these records: which of them a model can use.
CheckRecords = Callable[[Sequence[int], Sequence[Record]], Verdict]


class Usable:
    """The records of a training file that can be used.

    Args:
        file: the file.
        verdicts: of its images; None where the images are rendered by fcit.
        folder: what its image names are relative to, under the root of ``verdicts``.
        only: positions of the records wanted; None: all.
        check: checks the records that are otherwise good with a model's tokenizer; None: they are not checked so.

    Attributes:
        records: in the file's order.
        skipped: number of the others.
        images: that were looked at, also those of the others.
        verdict: the result of ``check``.
    """

    def __init__(
        self,
        file: TrainFile | MappedTrainFile,
        verdicts: ImageVerdicts | None,
        folder: str = "",
        only: Sequence[int] | None = None,
        check: CheckRecords | None = None,
    ) -> None:
        self.verdict = Verdict()
        self.images: Sequence[str] = ()
        wanted = range(len(file.records)) if only is None else only
        problems = file.problems if only is None else {n: file.problems[n] for n in only if n in file.problems}
        if verdicts is not None:
            names = [placed(folder, r.images) if r is not None else () for r in picked(file.records, wanted)]
            self.images = list(dict.fromkeys(image for images in names for image in images))
            bad = verdicts.problems(self.images)
            broken = {n: bad[i] for n, images in zip(wanted, names, strict=True) for i in images if i in bad}
            problems = {**problems, **broken}
        if check is not None:
            positions = [n for n in wanted if n not in problems] if problems else wanted
            self.verdict = check(positions, cast("Sequence[Record]", picked(file.records, positions)))
            problems = {**problems, **self.verdict.problems}
        good = [n for n in wanted if n not in problems] if problems else wanted
        self.records = cast("Sequence[Record]", picked(file.records, good))  # what is None has a problem
        self.skipped = len(problems)
        # The sentences are made now, so that the whole file need not be kept in memory for them.
        self._path, self._total = file.path, len(wanted)
        self._first = file.sentences(SHOWN, problems) if problems else []

    def excess(self, share: float) -> list[str]:
        """If more than ``share`` of the records cannot be used, the first problems and a sentence about all."""
        allowed = math.floor(share * self._total + 1e-9)
        if self.skipped <= allowed:
            return []
        enough = math.ceil(100 * self.skipped / self._total) / 100
        way_out = f", or raise max_bad_share to {enough:g}" if enough < 1 else ""
        return [
            *self._first,
            *([f"... and {self.skipped - SHOWN} more"] if self.skipped > SHOWN else []),
            f"{self._path}: {self.skipped} of {self._total} records cannot be used, max_bad_share: {share:g} lets "
            f"{allowed} be passed over; repair them{way_out}",
        ]


def read_usable(
    path: Path,
    verdicts: ImageVerdicts | None,
    share: float,
    store: RecordStore | None = None,
    check: CheckRecords | None = None,
) -> Usable:
    """Read a training file of which at most ``share`` of the records may be passed over.

    Args:
        store: keeps large files out of memory; None: records are a list.
        check: as for :class:`Usable`.

    Raises:
        DataError: the file is broken as a whole, or more of its records are than that.
    """
    usable = Usable(store.train(path) if store else read_train_file(path), verdicts, check=check)
    problems = usable.excess(share)
    if problems:
        raise DataError(f"{problems[-1]} (first: {problems[0]})")
    return usable


class DatasetFiles:
    """Training files, test files and images of a benchmark's data sets."""

    def __init__(self, spec: BenchmarkSpec, root: Path, config: RunConfig) -> None:
        self.spec, self.root, self.config = spec, root, config

    def located(self, file: str) -> Path:
        """The path of a file that the benchmark file names."""
        return files.located(self.spec.folder(self.root, "instructions"), file)

    def form(self, name: str, asked: bool = False) -> Form:
        """How a data set's training file is read, or with ``asked`` its questions."""
        return self.spec.datasets[name].reading(self.spec.folder(self.root, "images"), asked)

    def split(self, name: str) -> tuple[str, str | None]:
        """The files a data set is scored on, as the benchmark file names them: questions and, for captions, references.

        Raises:
            ConfigError: it has no such split (``evaluation.split``).
        """
        return self.spec.split(name, self.config.evaluation.split)

    @cached_property
    def store(self) -> RecordStore | None:
        """Keeps large files out of memory; None: those of the built-in data sets are small."""
        return RecordStore(cache_folder() / "records") if self.spec.source == "files" else None

    @cached_property
    def image_verdicts(self) -> ImageVerdicts | None:
        """Which images can be used; None: all, as they are rendered by fcit."""
        if self.spec.source == "mini":
            return None
        on_disk = self.config.backbone.feature_cache == "disk"
        return ImageVerdicts(self.spec.folder(self.root, "images"), cache_folder() / "images" if on_disk else None)

    def read(self, path: Path, form: Form) -> TrainFile | MappedTrainFile:
        """A training file or a client's file.

        Raises:
            DataError: it cannot be read as a whole.
        """
        return self.store.train(path, form) if self.store else formats.read_train_file(path, form)

    def train_file(self, name: str) -> TrainFile | MappedTrainFile:
        """The training file of a data set. Raises as :meth:`read`."""
        return self.read(self.located(self.spec.datasets[name].train), self.form(name))

    def used(self, name: str, count: int) -> Sequence[int] | None:
        """Positions of the records that are used of a data set's ``count`` (``data.max_records``); None: all."""
        most = self.config.data.max_records
        return None if most is None or most >= count else partition.kept(count, most, self.config.seed, name)

    def questions(self, name: str) -> Sequence[TestRecord]:
        """All questions of a data set's split, as its file has them.

        Raises:
            DataError: one of them is broken.
        """
        questions, references = self.split(name)
        path, captions = self.located(questions), self.located(references) if references else None
        stamp = (*files.stamp(path), *(files.stamp(captions) if captions else ()))
        return _read_once(self.store, path, captions, self.form(name, asked=True), stamp)


@lru_cache(maxsize=64)
def _read_once(
    store: RecordStore | None, path: Path, references: Path | None, form: Form, stamp: tuple[int, ...]
) -> Sequence[TestRecord]:
    return store.test(path, references, form) if store else formats.read_test(path, references, form)
