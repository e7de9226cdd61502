"""Before a run: is every file of a benchmark there, and can every record of it be learnt or asked?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fcit.data import formats, subset
from fcit.data.formats import places
from fcit.data.records import TestRecord
from fcit.data.spec import placed
from fcit.data.table import picked
from fcit.data.usable import SHOWN, Usable
from fcit.errors import DataError

if TYPE_CHECKING:
    from fcit.data.benchmark import Benchmark

WARNED = 3  # records of a test set that are warned of in words


def missing(benchmark: Benchmark, names: Sequence[str]) -> list[str]:
    """Files and folders of these data sets that are not there."""
    if not benchmark.root.is_dir():
        return [f"{benchmark.root} (data_root)"]
    found = []
    for name in names:
        for key, file in benchmark.spec.files(name, benchmark.config.evaluation.split).items():
            path = benchmark._located(file)
            if not places.exists(path):
                found.append(f"{path}, named by datasets.{name}.{key} of the benchmark")
    if not benchmark.image_root.is_dir() and any(_pictured(benchmark, name) for name in names):
        found.append(f"the image folder {benchmark.image_root}, named by `images` of the benchmark")
    return found


def _pictured(benchmark: Benchmark, name: str) -> bool:
    """Whether a data set has records with images that should be there: those embedded in tables are unpacked."""
    path = benchmark._located(benchmark.spec.datasets[name].train)
    if places.place_of(path).is_table:
        return False
    try:
        return any(
            record is not None and record.images for record in benchmark._survey(path, benchmark._form(name)).records
        )
    except DataError:
        return True  # as far as anybody knows


def problems(benchmark: Benchmark, name: str) -> list[str]:
    """Training records of a data set that cannot be used, if too many, and every test record that cannot."""
    spec, form = benchmark.spec.datasets[name], benchmark._form(name)
    found: list[str] = []
    try:
        path = benchmark._located(spec.train)
        survey = benchmark._survey(path, form)
        benchmark.formats[name] = survey.format
        origin = (spec.suffix, form.key(path))
        judged = benchmark._judged(path, lambda record: benchmark._turns(spec.trained(record)), *origin)
        kept = benchmark._kept(name, len(survey.records))
        usable = Usable(survey, benchmark._verdicts, spec.images, kept, judged)
        benchmark.verdicts[name, "train"] = usable.verdict
        found += usable.excess(benchmark.config.max_bad_share)
    except DataError as error:
        found.append(str(error))
    test, references = benchmark._split(name)
    path = benchmark._located(test)
    try:
        questions = benchmark._questions(path, benchmark._located(references) if references else None, form)
    except DataError as error:
        wanted = "references" if benchmark.config.evaluation.split == "test" else "val_references"
        hint = f"; right captions may stand in a COCO file of their own: datasets.{name}.{wanted}"
        return [*found, f"{error}{hint if spec.scorer.startswith('caption') and not references else ''}"]
    # Passing over a question would change the score.
    images = (image for question in questions for image in placed(spec.images, question.images))
    bad = benchmark._verdicts.problems(images) if benchmark._verdicts else {}
    found += [f"{path}: {reason}" for reason in bad.values()]
    return found + _unanswerable(benchmark, name, questions)


def _unanswerable(benchmark: Benchmark, name: str, questions: Sequence[TestRecord]) -> list[str]:
    """The questions of a data set that the model cannot be asked; what only costs score is noted."""
    if benchmark.judge is None:
        return []
    spec, (test, references) = benchmark.spec.datasets[name], benchmark._split(name)
    files = [benchmark._located(file) for file in (test, references) if file]
    origin = [*stamps(*files), spec.model_dump(mode="json"), benchmark.spec.question_blanks]
    asked = picked(questions, range(len(questions)), lambda question: benchmark._asked(name, question))
    limit = benchmark.config.evaluation.longest(spec.max_new_tokens)
    verdict = benchmark.verdicts[name, "test"] = benchmark.judge.test(origin, asked, limit)
    if not verdict.problems and not verdict.warnings:
        return []
    more = len(verdict.warnings) - WARNED
    benchmark.warnings += formats.sentences(files[0], verdict.warnings, WARNED)
    benchmark.warnings += [f"{files[0]}: ... and {more} more records"] if more > 0 else []
    return formats.sentences(files[0], verdict.problems, SHOWN)


def delivered(benchmark: Benchmark, names: Sequence[str]) -> list[str]:
    """Clients whose delivered files cannot be used: they are left out of their rounds, and that is told beforehand.

    Generated files follow from the training files, which have been looked at.
    """
    found = []
    for task, datasets in enumerate(benchmark.spec.tasks):
        if benchmark.judge is None or not set(datasets) & set(names) or not benchmark.is_delivered(task):
            continue
        for client in range(benchmark.config.federation.clients):
            try:
                benchmark.shard(client, task)
                unowned = benchmark.unowned.get((client, task), 0)
                if unowned:
                    found.append(
                        f"client {client}, task {task}: {unowned} records get no suffix, as no training file says which"
                    )
            except DataError as error:
                found.append(f"client {client} has nothing to train on in task {task} and is left out: {error}")
    return found


def stamps(*paths: Any) -> list[object]:
    """Names of files as they are now."""
    return [part for path in paths for part in (places.resolved(path), *places.stamp(path))]


def sentences(benchmark: Benchmark, name: str, said: dict[int, str], most: int) -> list[str]:
    """What is said of a data set's questions, by their positions in ``test``, with file, line and record."""
    questions, references = benchmark._split(name)
    path, form = benchmark._located(questions), benchmark._form(name)
    count = len(benchmark._questions(path, benchmark._located(references) if references else None, form))
    asked = benchmark.config.evaluation
    chosen = subset.chosen(count, name, asked.samples, asked.seed)
    found = formats.sentences(path, {chosen[n]: why for n, why in said.items()}, most)
    more = len(said) - most
    return found + ([f"{path}: ... and {more} more records"] if more > 0 else [])


def told(benchmark: Benchmark, more: Sequence[str] = ()) -> dict[str, Any]:
    """What was found of the data, for people: formats, tokens, turns left out, warnings and ``more`` of these."""
    found: dict[str, dict[str, Any]] = {}
    for (name, split), verdict in benchmark.verdicts.items():
        numbers = {"records": verdict.count, "longest": verdict.longest, "unusable": len(verdict.problems)}
        numbers["mean"] = round(verdict.tokens / max(1, verdict.count - len(verdict.problems)))
        if verdict.dropped:
            numbers |= {"turns_dropped": sum(verdict.dropped.values()), "cut_short": len(verdict.dropped)}
        found.setdefault(name, {})[split] = numbers
    guessed = {n: form for n, form in benchmark.formats.items() if benchmark.spec.datasets[n].format is None}
    return {"tokens": found, "formats": guessed, "warnings": [*benchmark.warnings, *more]}
