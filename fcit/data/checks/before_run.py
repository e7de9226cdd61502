"""Before a run: does every file of a benchmark exist, and can every record of it be learnt or asked?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fcit.data import subset
from fcit.data.dataset import SHOWN, Usable
from fcit.data.formats import files
from fcit.data.partition import beyond
from fcit.data.records import TestRecord, picked, placed
from fcit.errors import ConfigError, DataError
from fcit.io import bounded

if TYPE_CHECKING:
    from fcit.data.benchmark import Benchmark

WARNED = 3  # records of a test set that are described in warnings


def missing(benchmark: Benchmark, names: Sequence[str]) -> list[str]:
    """Files and folders of these data sets that do not exist."""
    if not bounded.is_dir(benchmark.root):
        spec = benchmark.spec
        fill = f"; `fcit data download {benchmark.config.benchmark} --root ...` fills one" if spec.sources else ""
        return [f"the folder {benchmark.root}; name the one that holds {spec.instructions!r} and {spec.images!r}{fill}"]
    absent = []
    for name in names:
        for key, file in benchmark.spec.files(name, benchmark.config.evaluation.split).items():
            path = benchmark.files.located(file)
            if not files.exists(path):
                absent.append(f"{path}, named by datasets.{name}.{key} of the benchmark")
    if not bounded.is_dir(benchmark.image_root) and any(_has_images(benchmark, name) for name in names):
        absent.append(f"the image folder {benchmark.image_root}, named by `images` of the benchmark")
    return absent


def _has_images(benchmark: Benchmark, name: str) -> bool:
    """Whether a data set's records name images in files; those embedded in tables are unpacked."""
    train = benchmark.datasets[name].train
    if files.place_of(benchmark.files.located(train or benchmark.files.split(name)[0])).is_table:
        return False
    try:
        records = benchmark.files.train_file(name).records if train else benchmark.files.questions(name)
        return any(record is not None and record.images for record in records)
    except DataError:
        return True  # not known, so the missing folder is reported


def check(benchmark: Benchmark, names: Sequence[str]) -> None:
    """Read every record of these data sets, and tokenise it where there is a judge; warnings go to the benchmark's.

    Raises:
        ConfigError: everything that is broken, together.
    """
    problems = [problem for name in names for problem in _problems(benchmark, name)]
    benchmark.warnings += [
        f"data set {name!r} of the benchmark is in none of its tasks: it is neither learnt nor asked"
        for name in benchmark.spec.untrained
    ]
    benchmark.warnings += _delivered(benchmark, names)
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ConfigError([*problems[:SHOWN], *more])


def _problems(benchmark: Benchmark, name: str) -> list[str]:
    """Training records of a data set that cannot be used, if they are too many, and every such test record."""
    spec = benchmark.datasets[name]
    problems = _untrainable(benchmark, name) if spec.train else []
    test, references = benchmark.files.split(name)
    try:
        questions = benchmark.files.questions(name)
    except DataError as error:
        wanted = "references" if benchmark.config.evaluation.split == "test" else "val_references"
        hint = f"; right captions may stand in a COCO file of their own: datasets.{name}.{wanted}"
        return [*problems, f"{error}{hint if spec.scorer.startswith('caption') and not references else ''}"]
    # A question that were passed over would change the score, so every one of them must be usable.
    images = (image for question in questions for image in placed(spec.asked_images, question.images))
    bad = benchmark.files.image_verdicts.problems(images) if benchmark.files.image_verdicts else {}
    problems += [f"{benchmark.files.located(test)}: {reason}" for reason in bad.values()]
    return problems + _unanswerable(benchmark, name, questions)


def _untrainable(benchmark: Benchmark, name: str) -> list[str]:
    """Training records of a data set that cannot be used, if they are too many."""
    spec, form = benchmark.datasets[name], benchmark.files.form(name)
    try:
        path, file = benchmark.files.located(spec.train), benchmark.files.train_file(name)
        benchmark.formats[name] = file.format
        origin = (spec.suffix, form.key(path))
        check = benchmark.checker(path, lambda record: benchmark.learnt(spec.for_training(record)), *origin)
        used = benchmark.files.used(name, len(file.records))
        usable = Usable(file, benchmark.files.image_verdicts, spec.images, used, check)
        benchmark.verdicts[name, "train"] = usable.verdict
        return usable.excess(benchmark.config.max_bad_share)
    except DataError as error:
        return [str(error)]


def _unanswerable(benchmark: Benchmark, name: str, questions: Sequence[TestRecord]) -> list[str]:
    """The questions of a data set that the model cannot be asked; what only lowers the score becomes a warning."""
    if benchmark.judge is None:
        return []
    spec, paths = (
        benchmark.datasets[name],
        [benchmark.files.located(file) for file in benchmark.files.split(name) if file],
    )
    origin = [*files.stamps(*paths), spec.model_dump(mode="json"), benchmark.spec.question_blanks]
    asked = picked(questions, range(len(questions)), lambda question: benchmark.as_asked(name, question))
    limit = benchmark.config.evaluation.longest(spec.max_new_tokens)
    verdict = benchmark.verdicts[name, "test"] = benchmark.judge.test(origin, asked, limit)
    if not verdict.problems and not verdict.warnings:
        return []
    more = len(verdict.warnings) - WARNED
    benchmark.warnings += files.sentences(paths[0], verdict.warnings, WARNED)
    benchmark.warnings += [f"{paths[0]}: ... and {more} more records"] if more > 0 else []
    return files.sentences(paths[0], verdict.problems, SHOWN)


def _delivered(benchmark: Benchmark, names: Sequence[str]) -> list[str]:
    """Warnings about delivered client files; a client whose file cannot be used is left out of its rounds.

    Generated files need no check: they follow from the training files.
    """
    warnings, clients = [], benchmark.config.federation.clients
    delivered = [task for task in range(len(benchmark.tasks)) if benchmark.client_files.is_delivered(task)]
    if delivered and len(delivered) < len(benchmark.tasks):
        drawn = [str(task) for task in range(len(benchmark.tasks)) if task not in delivered]
        warnings.append(
            f"{benchmark.client_files.folder(delivered[0]).parent}: has no client files of task {', '.join(drawn)}, "
            "which are drawn here; complete the partition, or move it away"
        )
    for task in delivered:
        if not set(benchmark.tasks[task]) & set(names):
            continue
        folder = benchmark.client_files.folder(task)
        unused = beyond(folder, clients)
        if unused:
            warnings.append(
                f"{folder}: records of {unused} clients beyond federation.clients ({clients}) are trained by nobody; "
                f"set federation.clients={clients + unused}, or move the partition away, and another is drawn"
            )
        for client in range(clients) if benchmark.judge is not None else ():
            try:
                benchmark.shard(client, task)
                unknown = benchmark.unknown_suffix.get((client, task), 0)
                if unknown:
                    warnings.append(
                        f"client {client}, task {task}: {unknown} records get no suffix, as no training file says which"
                    )
            except DataError as error:
                warnings.append(f"client {client} has nothing to train on in task {task} and is left out: {error}")
    return warnings


def sentences(benchmark: Benchmark, name: str, notes: dict[int, str], most: int) -> list[str]:
    """The first ``most`` notes on a data set's questions, by position in ``test``, with file, line and record."""
    path, evaluation = benchmark.files.located(benchmark.files.split(name)[0]), benchmark.config.evaluation
    chosen = subset.chosen(len(benchmark.files.questions(name)), name, evaluation.samples, evaluation.seed)
    more = len(notes) - most
    return [
        *files.sentences(path, {chosen[n]: note for n, note in notes.items()}, most),
        *([f"{path}: ... and {more} more records"] if more > 0 else []),
    ]


def findings(benchmark: Benchmark, more: Sequence[str] = ()) -> dict[str, Any]:
    """The event ``data``: tokens of each data set and split, guessed formats, warnings and ``more`` of these."""
    tokens: dict[str, dict[str, Any]] = {}
    for (name, split), verdict in benchmark.verdicts.items():
        numbers = {"records": verdict.count, "longest": verdict.longest, "unusable": len(verdict.problems)}
        numbers["mean"] = round(verdict.tokens / max(1, verdict.count - len(verdict.problems)))
        if verdict.dropped:
            numbers |= {"turns_dropped": sum(verdict.dropped.values()), "cut_short": len(verdict.dropped)}
        tokens.setdefault(name, {})[split] = numbers
    guessed = {n: form for n, form in benchmark.formats.items() if benchmark.owner(n).datasets[n].format is None}
    return {"tokens": tokens, "formats": guessed, "warnings": [*benchmark.warnings, *more]}
