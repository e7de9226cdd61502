"""Truths that no prediction can match: answers that score 0 against themselves, captions that a rule cannot read."""

from __future__ import annotations

from collections.abc import Sequence

from fcit import registry
from fcit.data.benchmark import Benchmark
from fcit.data.checks import before_run
from fcit.data.checks.before_run import WARNED
from fcit.data.records import TestRecord
from fcit.errors import FCITError
from fcit.evaluation.captions import references
from fcit.evaluation.scorers import corpus_of, form_of, of_captions
from fcit.evaluation.wording import tokens, without_blanks
from fcit.io import bounded


def unreachable(scorer: str, records: Sequence[TestRecord]) -> dict[int, str]:
    """Which records score 0 by a rule even where the prediction is their own answer, and why, by position.

    Those whose answer is empty are among them: some rules give every prediction its point, others none but an empty
    one. A prediction has no blanks at its ends, as generators and rules strip it. For captions: which have no reference
    with a word in it. A rule of the user's own is not tried: it may score the corpus as a whole, or be slow.

    Args:
        scorer: its name in the registry.
    """
    if registry.is_own(scorer):
        return {}
    records = list(records)
    judge = registry.resolve("scorer", scorer)
    if of_captions(judge):
        return {
            n: f"none of its {len(references(record))} reference captions has a word in it"
            for n, record in enumerate(records)
            if not any(map(tokens, references(record)))
        }
    boxed = form_of(judge) == "box"
    truths = [(record.box if boxed else "") or record.answer for record in records]
    texts = [truth.strip() for truth in truths]
    if not records:
        return {}
    empty = "its right answer is empty, so that its score says nothing of the model"
    problems = {n: empty for n, text in enumerate(texts) if not text and not records[n].references}
    try:
        marks = judge(texts, records).marks or ()
        return problems | {n: _why(scorer, truths[n]) for n, mark in enumerate(marks) if mark == 0}
    except FCITError:  # about at least one record: each is scored on its own to find which
        for n, (text, record) in enumerate(zip(texts, records, strict=True)):
            try:
                if judge([text], [record]).score == 0:
                    problems[n] = _why(scorer, truths[n])
            except FCITError as error:
                problems[n] = str(error)
        return problems


def warnings(benchmark: Benchmark) -> list[str]:
    """What lowers the score of every model: truths that none can match, captions that a rule cannot cut into words."""
    sentences: list[str] = []
    names = [name for stage in range(benchmark.stage_count) for name in benchmark.evaluation(stage)]
    for name in dict.fromkeys([*names, *benchmark.held_out]):
        owner, records = benchmark.owner(name), benchmark.test(name)
        scorer = owner.datasets[name].scorer
        problems = unreachable(scorer, records)
        corpus = corpus_of(registry.resolve("scorer", scorer))
        if corpus is not None and corpus.by_blanks:
            problems = {**untokenisable(records), **problems}
        if problems:
            sentences += before_run.sentences(owner, name, problems, WARNED)
    return sentences


def _why(scorer: str, answer: str) -> str:
    """Why an answer scores 0 against itself."""
    if scorer.startswith(("dcl-", "coin-ocrvqa")) and "Unanswerable" in answer:
        reason = '"Unanswerable" is never right'
    elif answer != answer.strip():
        reason = "it begins or ends with blanks, which no prediction does"
    elif scorer == "dcl-choice":
        reason = "blanks and full stops are taken out of the prediction and not out of the answer"
    elif scorer == "box-iou-official":
        reason = "without its last digit the box is half as large, or none"
    else:
        reason = "not even word for word"
    return f"its own answer {bounded.shown(answer)} scores 0 by the rule {scorer!r}: {reason}"


def untokenisable(records: Sequence[TestRecord]) -> dict[int, str]:
    """Which captions a rule that knows words by blanks (``caption7``) cannot cut into words, and why, by position.

    Its tokenizer, Stanford's PTB, knows words by the blanks between them: a Chinese, Japanese, Thai or Lao sentence
    is one word to it, of Khmer and Myanmar it drops the vowel signs. Only a caption that is right to the last
    character scores then. Our rule ``caption`` takes single characters.
    """
    problems = {}
    for n, record in enumerate(records):
        stretch = next(filter(None, map(without_blanks, references(record))), "")
        if stretch:
            problems[n] = (
                f"the official tokenizer takes {bounded.shown(stretch)} as one word: it knows words by blanks; "
                "`scorer: caption`, our rule, takes single characters there"
            )
    return problems
