"""A site's own stream: the tasks that its SITE.yaml lists, each from its own stage on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from fcit import registry
from fcit.config.evaluation import LONGEST
from fcit.config.site import Site, SiteTask
from fcit.data.dataset import Usable, read_usable
from fcit.data.formats import read_test
from fcit.data.formats.files import read_rows, stamps, text_only
from fcit.data.images.verdicts import ImageVerdicts
from fcit.data.records import Record, TestRecord, placed, suffixed, with_suffix
from fcit.data.verdict import Judge, Verdict
from fcit.errors import DataError, Refused
from fcit.evaluation.scorers import Result

T = TypeVar("T")


class Held(NamedTuple, Generic[T]):
    """What was read of a task, and from which files: it is read again when one of them is another."""

    value: T
    files: list[object]
    images: Sequence[str]
    stamp: str  # of the images


class OwnTasks:
    """Shards of one site: a stage stands for the task that has begun last.

    Args:
        site: whose ``tasks`` these are.
    """

    def __init__(self, site: Site) -> None:
        self._site, self._turns = site, "all"
        self._read: dict[int, Held[Usable]] = {}
        self._tests: dict[int, Held[list[TestRecord]]] = {}
        self._judge: Judge | None = None

    @property
    def image_root(self) -> Path:
        """The data root: image names are given relative to it."""
        return Path(self._site.data_root)

    def learning(self, turns: str) -> OwnTasks:
        """The same tasks for a run with this ``data.turns``."""
        view = copy(self)
        view._turns, view._read, view._tests = turns, {}, {}  # another run's model may be able to use other records
        return view

    def _verdicts(self, spec: SiteTask) -> ImageVerdicts:
        return ImageVerdicts(self._file(spec.images), self._site.folder / "verdicts")

    def tasks(self, stage: int, ordered: list[int]) -> list[int]:
        """The task of a stage. The server cannot name one.

        Raises:
            Refused: it tried to. DataError: no task has begun yet.
        """
        if ordered:
            raise Refused(f"tasks: the order names {ordered}; with stream: site the stage alone selects the task")
        current = self._site.current(stage)
        if current is None:
            raise DataError(f"no task of SITE.yaml has begun at stage {stage} (start_stage)")
        return [current]

    def begun(self, stage: int) -> list[int]:
        """The tasks that have begun by a stage: this site is scored on them."""
        return [n for n, task in enumerate(self._site.tasks) if task.start_stage <= stage]

    def _file(self, name: str) -> Path:
        root = self.image_root.resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise DataError(f"{name}: leaves data_root {root}; only files inside it are opened")
        return path

    def _usable(self, task: int) -> Usable:
        spec = self._site.tasks[task]
        path, judge = text_only(self._file(spec.train)), self._judge

        def check(positions: Sequence[int], records: Sequence[Record]) -> Verdict:
            learnt = [self._learnt(record, spec) for record in records]
            origin = [*stamps(path), spec.suffix, self._turns]
            return judge.train(origin, positions, learnt) if judge else Verdict()

        def read() -> tuple[Usable, Sequence[str]]:
            usable = read_usable(path, self._verdicts(spec), self._site.max_bad_share, check=check)
            return usable, usable.images

        return self._held(self._read, task, stamps(path), read)

    def _held(
        self, held: dict[int, Held[T]], task: int, files: list[object], read: Callable[[], tuple[T, Sequence[str]]]
    ) -> T:
        """What was read of a task before, or now where these files or its images are no longer the same.

        Args:
            read: returns it with the images that it depends on.
        """
        look = ImageVerdicts(self._file(self._site.tasks[task].images), None)
        known = held.get(task)
        if known is None or known.files != files or known.stamp != look.stamp(known.images):
            value, images = read()
            held[task] = Held(value, files, images, look.stamp(images))
        return held[task].value

    def records(self, client: int, tasks: list[int]) -> list[Record]:
        """Training records of some tasks."""
        return [self._learnt(record, self._site.tasks[task]) for task in tasks for record in self._usable(task).records]

    def _learnt(self, record: Record, spec: SiteTask) -> Record:
        """A record as it is learnt."""
        return _trained(record if self._turns == "all" else record.first(), spec)

    def skipped(self, client: int, tasks: list[int]) -> int:
        """How many of their records cannot be used."""
        return sum(self._usable(task).skipped for task in tasks)

    def origin(self, task: int) -> str:
        """The task's file of training records: tasks of one file share them."""
        return self._site.tasks[task].train

    def judged_by(self, judge: Judge) -> None:
        """From now on pass over records that the worker's model cannot use, and count them as skipped."""
        self._judge = judge

    def test(self, dataset: str) -> list[TestRecord]:
        """The test records of a task, by its number.

        Raises:
            DataError: one of them is broken: leaving some out would change the scores.
        """
        spec = self._site.tasks[int(dataset)]
        path = text_only(self._file(spec.test))
        references = self._file(spec.references) if spec.references else None

        def read() -> tuple[list[TestRecord], Sequence[str]]:
            records = read_test(path, references)
            images = list(dict.fromkeys(image for r in records for image in r.images))
            bad = self._verdicts(spec).problems(images)
            if bad:
                first = next(iter(bad.values()))
                raise DataError(f"{spec.test}: {len(bad)} images of test records cannot be used (first: {first})")
            questions = [_question(r, spec) for r in records]
            self._answerable(spec, questions)
            return questions, images

        return self._held(self._tests, int(dataset), stamps(path, *([references] if references else ())), read)

    def _answerable(self, spec: SiteTask, questions: Sequence[TestRecord]) -> None:
        """Check that the worker's model can answer these questions.

        Raises:
            DataError: not all of them.
        """
        if self._judge is None:
            return
        path = self._file(spec.test)
        verdict = self._judge.test([*stamps(path), spec.suffix], questions, spec.max_new_tokens or LONGEST)
        if verdict.problems:
            first = read_rows(path).sentences(verdict.problems, 1)[0]
            raise DataError(f"{len(verdict.problems)} questions cannot be asked (first: {first})")

    def question_images(self, dataset: str) -> Path:
        """The image root, as of training records."""
        return self.image_root

    def max_new_tokens(self, dataset: str) -> int | None:
        """The task's own limit, if it has one."""
        return self._site.tasks[int(dataset)].max_new_tokens

    def score(self, dataset: str, texts: list[str]) -> float:
        """Score of the answers to a task's test records, by its own scorer."""
        spec = self._site.tasks[int(dataset)]
        result: Result = registry.resolve("scorer", spec.scorer)(texts, self.test(dataset))
        return result.score


def _trained(record: Record, spec: SiteTask) -> Record:
    """A record with the task's suffix, its images named from the data root."""
    return replace(suffixed(record, spec.suffix), images=placed(spec.images, record.images))


def _question(record: TestRecord, spec: SiteTask) -> TestRecord:
    """A question with the task's suffix, its images named from the data root."""
    text = with_suffix(record.instruction.strip(), spec.suffix)
    return replace(record, instruction=text, images=placed(spec.images, record.images))
