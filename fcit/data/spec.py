"""The YAML file of a benchmark: datasets, tasks, stages and how records are divided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fcit import registry
from fcit.config import Section
from fcit.config.checks import sentences
from fcit.data.formats.columns import Columns
from fcit.data.formats.files import TABLES, Form
from fcit.data.records import Record, TestRecord, placed, suffixed, with_suffix
from fcit.data.shipped import HELD_OUT, file_of, shipped
from fcit.errors import ConfigError
from fcit.io import bounded


class AnswerSuffix(Section):
    """A text added to a question, chosen by its right answer, as an official generator does.

    Answers are compared as they stand: "yes" and "Yes " are not "Yes" (``answer in ['Yes', 'No']`` in model_fin.py of
    MLLM-CL).
    """

    cases: dict[str, str] = Field(description="right answer, exactly -> text")
    otherwise: str = Field(description="text for every other right answer")

    def of(self, answer: str) -> str:
        """The text for a right answer."""
        return self.cases.get(answer, self.otherwise)


class DatasetSpec(Section):
    """One instruction-tuning set. Paths are relative to the benchmark's folder of instructions.

    They name a text or Parquet file, a saved data set (``folder#split``) or one of the hub (``hub:owner/name#split``).
    """

    train: str = Field(description="file of training records", examples=["flowers/train.json"])
    test: str = Field(description="file of test questions", examples=["flowers/test.json"])
    val: str | None = Field(
        None, description="questions asked under `evaluation.split: val`", examples=["flowers/val.json"]
    )
    references: str | None = Field(
        None,
        description="several right answers per test question: a COCO captions file, or TextVQA's annotations",
        examples=["flowers/coco.json"],
    )
    val_references: str | None = Field(
        None, description="the same for the questions of `val`", examples=["flowers/val_coco.json"]
    )
    scorer: str = Field(
        "exact", description="how answers are judged (`fcit list scorer`), or `./mine.py:my_scorer`", examples=["exact"]
    )
    also: list[str] = Field(
        default_factory=list,
        description="scorers reported beside, e.g. an official rule",
        examples=["[substring-official]"],
    )
    form: str | None = Field(
        None,
        description="the form of answers that its questions demand (`fcit list form`); default: the scorer's, else by "
        "the wording of each question",
        examples=["letter"],
    )
    suffix: str = Field("", description="line added to every instruction that does not end with it")
    test_suffix: str | AnswerSuffix = Field(
        "", description="text added to every test instruction as it stands, a leading space included"
    )
    images: str = Field("", description="folder under the image root that its image names are relative to")
    test_images: str | None = Field(
        None, description="the same for its questions, of `test` and `val`; default: `images`"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="tokens of the longest answer, unless `evaluation.max_new_tokens` is set; default: 24"
    )
    format: str | None = Field(
        None,
        description="of its instruction files (`fcit list format`); default: guessed by their names or first record, "
        "and shown",
    )
    columns: Columns | None = Field(
        None, description="what the columns of Parquet, saved and hub data sets are; default: as they are called"
    )

    @property
    def asked_images(self) -> str:
        """The folder under the image root that the image names of its questions are relative to."""
        return self.images if self.test_images is None else self.test_images

    def reading(self, images: Path, asked: bool = False) -> Form:
        """How its training files are read, or with ``asked`` its questions; ``images`` is the image root."""
        return Form(self.format, self.columns, images / (self.asked_images if asked else self.images))

    @field_validator("format")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in registry.FORMATS:
            known = list(registry.FORMATS)
            raise ValueError(f"unknown format{registry.nearest(value, known)} (known: {', '.join(known)})")
        return value

    @field_validator("form")
    @classmethod
    def _known_form(cls, value: str | None) -> str | None:
        if value is not None and value not in registry.ANSWER_FORMS:
            raise ValueError(registry.unknown("form", value))
        return value

    @model_validator(mode="after")
    def _has_columns(self) -> DatasetSpec:
        if self.columns is not None and self.format is not None and self.format not in TABLES:
            raise ValueError(f"columns are those of Parquet, saved and hub data sets, and format is {self.format!r}")
        return self

    def for_training(self, record: Record) -> Record:
        """A training record as it is learnt: suffix after every question, images named from the image root."""
        return replace(suffixed(record, self.suffix), images=placed(self.images, record.images))

    def for_testing(self, record: TestRecord, blanks: bool = False) -> TestRecord:
        """A test record as it is put to the model; ``blanks``: those at the ends of its question are kept."""
        extra = self.test_suffix
        text = with_suffix(record.instruction if blanks else record.instruction.strip(), self.suffix)
        text += extra.of(record.answer) if isinstance(extra, AnswerSuffix) else extra
        return replace(record, instruction=text, images=placed(self.asked_images, record.images))


class Source(Section):
    """Where a part of the data is to be had."""

    what: str = Field(description="in words")
    hub: str | None = Field(None, description="data set repository on the Hugging Face hub")
    files: list[str] = Field(default_factory=list, description="patterns of its files; default: all")
    page: str | None = Field(None, description="where a person downloads it")
    to: str = Field(description="target folder under the data root")
    anchors: list[str] = Field(
        default_factory=list,
        description="folders inside archives from whose name on paths are kept; what has none goes below the "
        "archive's own folder of such a name, or below the archive's name",
    )

    @model_validator(mode="after")
    def _one(self) -> Source:
        if (self.hub is None) == (self.page is None):
            raise ValueError(f"the source of {self.what!r} needs either hub or page")
        return self


class PartitionSpec(Section):
    """Where partitioned records lie, and how they are made when they do not."""

    folder: str = Field("partitioned_data", description="under the data root; holds <beta>/Task<n>/client_<i>.json")
    min_size: int = Field(
        1, ge=0, description="records that every client must end up with; shares are drawn again until they have them"
    )
    reserve: int = Field(0, ge=0, description="records every client gets before the rest is drawn")


class Label(Section):
    """What a model that chooses among tasks reads of one."""

    letter: str = Field(pattern="^[A-Z]$", description="what it answers with to choose this task", examples=["A"])
    description: str = Field(min_length=1, description="what the task is about", examples=["kinds of flowers"])


class BenchmarkSpec(Section):
    """The YAML file of a benchmark."""

    name: str = Field(
        min_length=1, description="names cached partitions and stands in messages and reports", examples=["mine"]
    )
    source: Literal["files", "mini"] = Field(
        "files", description="files: read from the data root; mini: rendered on first use"
    )
    description: str = Field("", description="in words, for `fcit list`")
    instructions: str | Annotated[list[str], Field(min_length=1)] = Field(
        "instructions", description="folder of instruction files under the data root; of several, the first there is"
    )
    images: str | Annotated[list[str], Field(min_length=1)] = Field(
        "datasets", description="folder under the data root that image names are relative to; of several, the first"
    )
    question_blanks: Literal["stripped", "kept"] = Field(
        "stripped", description="blanks at the ends of test questions; kept: as the official generators put them"
    )
    sources: list[Source] = Field(default_factory=list, description="for `fcit data download`")
    datasets: dict[str, DatasetSpec] = Field(
        description="the data sets by name",
        examples=["{flowers: {train: flowers/train.json, test: flowers/test.json, scorer: exact}}"],
    )
    tasks: list[list[str]] = Field(
        min_length=1,
        description="data sets of each task; tasks are numbered from 0",
        examples=["[[flowers], [receipts]]"],
    )
    labels: list[Label] = Field(
        default_factory=list,
        description="letter and description of each task, in their order, for methods whose model chooses among tasks; "
        "default: letters by the order of stages, the names of the data sets and the line that ends their instructions",
        examples=["[{letter: A, description: kinds of flowers}, {letter: B, description: text of receipts}]"],
    )
    homogeneous: list[int] | None = Field(
        None,
        description="`setting: homogeneous`: the task of each stage, by number; default: all in order",
        examples=["[1, 0]"],
    )
    heterogeneous: list[list[int]] | None = Field(
        None,
        description="`setting: heterogeneous`: for each stage the task of every participation slot, by number, "
        "as many slots as `federation.clients_per_round`",
        examples=["[[0, 1, 1], [1, 0, 0]]"],
    )
    rounds: int | None = Field(None, ge=1, description="rounds per stage this benchmark is meant for")
    partition: PartitionSpec = Field(
        default_factory=lambda: PartitionSpec.model_validate({}),
        description="how records are divided among clients",
        examples=["{reserve: 1}"],
    )

    def folder(self, root: Path, of: Literal["instructions", "images"]) -> Path:
        """One of the two folders, under a data root: the first that exists, else the first."""
        named = getattr(self, of)
        folders = [root / name for name in ([named] if isinstance(named, str) else named)]
        return next((folder for folder in folders if bounded.is_dir(folder)), folders[0])

    def split(self, name: str, split: str) -> tuple[str, str | None]:
        """Files that a dataset is scored on in ``test`` or ``val``: questions and, for captions, references.

        Raises:
            ConfigError: the dataset has no such split.
        """
        dataset = self.datasets[name]
        if split == "test":
            return dataset.test, dataset.references
        if dataset.val is None:
            raise ConfigError(
                f"evaluation.split: 'val' needs the key datasets.{name}.val in the benchmark file, e.g. "
                f"`val: {Path(dataset.test).with_name('val.json')}`; or use evaluation.split: test"
            )
        return dataset.val, dataset.val_references

    @property
    def untrained(self) -> list[str]:
        """Data sets that are in no task, where there are tasks: nothing of them is learnt or asked."""
        named = {name for task in self.tasks for name in task}
        return [name for name in self.datasets if name not in named] if named else []

    def files(self, name: str, split: str) -> dict[str, str]:
        """The files that a run needs of a dataset, by the key that names them. Raises as :meth:`split`."""
        keys = ("test", "references") if split == "test" else ("val", "val_references")
        named = {"train": self.datasets[name].train, **dict(zip(keys, self.split(name, split), strict=True))}
        return {key: file for key, file in named.items() if file}

    def slots(self, wanted: int, where: str) -> list[list[int]]:
        """The tasks of the ``wanted`` participation slots of every heterogeneous stage.

        Args:
            where: the benchmark as the user names it.

        Raises:
            ConfigError: the file has none, or they are of another number; with a line that would do.
        """
        count, owner = len(self.tasks), where if where.endswith((".yaml", ".yml")) else f"benchmark {self.name!r}"
        stages = [[(stage + slot) % count for slot in range(wanted)] for stage in range(min(count, 2))]
        if not self.heterogeneous:
            raise ConfigError(
                f"setting: 'heterogeneous' needs the key `heterogeneous` in {owner}: for each stage the task (0 to "
                f"{count - 1}) of every slot, as many as federation.clients_per_round, e.g. `heterogeneous: {stages}`; "
                "or use setting: homogeneous"
            )
        for number, stage in enumerate(self.heterogeneous):
            if len(stage) != wanted:
                raise ConfigError(
                    f"setting: heterogeneous stage {number + 1} of {owner} has {len(stage)} slots, "
                    f"federation.clients_per_round is {wanted}; set federation.clients_per_round={len(stage)}, or name "
                    f"{wanted} tasks in every stage of the key `heterogeneous`"
                )
        return self.heterogeneous

    @model_validator(mode="after")
    def _consistent(self) -> BenchmarkSpec:
        for number, task in enumerate(self.tasks):
            if not task:
                raise ValueError(f"tasks[{number}] is empty; name its data sets, e.g. `tasks: [[flowers], [receipts]]`")
            for name in task:
                if name not in self.datasets:
                    hint = registry.nearest(name, list(self.datasets))
                    raise ValueError(f"tasks[{number}] names the unknown dataset {name!r}{hint}")
        letters = [label.letter for label in self.labels]
        if self.labels and (len(letters) != len(self.tasks) or len(set(letters)) < len(letters)):
            raise ValueError(
                f"labels: the letters {', '.join(letters)} are for {len(self.tasks)} tasks; give one label for each "
                "task, each with another letter, or leave labels out"
            )
        for stage in [[t] for t in self.homogeneous or []] + (self.heterogeneous or []):
            for task_id in stage:
                if not 0 <= task_id < len(self.tasks):
                    raise ValueError(
                        f"homogeneous and heterogeneous name task {task_id}; tasks are 0..{len(self.tasks) - 1}"
                    )
        for name, dataset in self.datasets.items():
            for scorer in [dataset.scorer, *dataset.also]:
                problem = registry.problem("scorer", scorer)
                if problem is not None:
                    raise ValueError(f"datasets.{name}.{problem}")
        return self


class QuestionsSpec(BenchmarkSpec):
    """The YAML file of questions alone, for ``evaluation.held_out``: no tasks, and no data set has ``train``."""

    tasks: list[list[str]] = Field(default_factory=list, max_length=0, description="none")

    @classmethod
    def is_one(cls, raw: Any) -> bool:
        """Whether a file is one of questions alone."""
        datasets = raw.get("datasets") if isinstance(raw, dict) and not raw.get("tasks") else None
        return isinstance(datasets, dict) and all(isinstance(d, dict) and "train" not in d for d in datasets.values())

    @model_validator(mode="before")
    @classmethod
    def _untrained(cls, raw: Any) -> Any:
        return {**raw, "datasets": {name: {**spec, "train": ""} for name, spec in raw["datasets"].items()}}


def read_spec(name: str) -> BenchmarkSpec:
    """Read a shipped benchmark by name or a YAML file by path; a :class:`QuestionsSpec` where it has nothing to train.

    Raises:
        ConfigError: unknown name, unreadable file or mistakes in it.
    """
    path = file_of(name)
    if not bounded.is_file(path):
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            known = [*shipped(), *shipped(HELD_OUT)]
            hint = registry.nearest(name, known)
            raise ConfigError(
                f"benchmark: unknown name {name!r}{hint} (shipped: {', '.join(known)}; or a path to a YAML file)"
            )
        if not bounded.is_file(path):
            raise ConfigError(
                f"benchmark: no such file {name!r}, neither in {Path.cwd()} nor beside the configuration; "
                "`fcit list benchmark` lists those that are shipped"
            )
    raw = bounded.read_yaml(path)
    if isinstance(raw, dict) and "benchmark" in raw and "datasets" not in raw:
        raise ConfigError(
            f"is the configuration of a run, not a benchmark; `fcit data check --config {path}` checks its data",
            str(path),
        )
    kind = QuestionsSpec if QuestionsSpec.is_one(raw) else BenchmarkSpec
    try:
        return kind.model_validate(_anchored(raw, path.parent))
    except ValidationError as error:
        raise ConfigError(sentences(error, kind), str(path)) from None


def _anchored(raw: Any, folder: Path) -> Any:
    """Scorers of the user's own by full path: they are named relative to the benchmark file."""
    datasets = raw.get("datasets") if isinstance(raw, dict) else None
    for dataset in datasets.values() if isinstance(datasets, dict) else ():
        if isinstance(dataset, dict):
            if isinstance(dataset.get("scorer"), str):
                dataset["scorer"] = registry.anchored(dataset["scorer"], folder)
            if isinstance(dataset.get("also"), list):
                dataset["also"] = [registry.anchored(str(name), folder) for name in dataset["also"]]
    return raw
