"""How far answers follow the form that their instructions demand, and what they score once their form is mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fcit import registry
from fcit.data.records import TestRecord
from fcit.data.spec import DatasetSpec
from fcit.evaluation.forms import AnswerForm, of_instruction
from fcit.evaluation.scorers import Result, Scorer, form_of


@dataclass(frozen=True)
class Followed:
    """The form of a data set's answers.

    Attributes:
        demanded: number of questions by the form that they demand; questions that demand none are left out.
        kept: number of answers to them that have their form.
        content: score of the normalised answers by the data set's own rule, never below its score.
    """

    demanded: dict[str, int]
    kept: int
    content: float

    @property
    def share(self) -> float | None:
        """Answers that have the form demanded, 0..100; None where no question demands one."""
        count = sum(self.demanded.values())
        return 100.0 * self.kept / count if count else None


def demanded(spec: DatasetSpec, record: TestRecord, scorer: Scorer | None = None) -> str | None:
    """The form that a question demands: the data set's ``form``, else its scorer's, else by the question's wording.

    Args:
        scorer: the rule that judges the answers, if it is another than the data set's own.
    """
    judge = scorer or registry.resolve("scorer", spec.scorer)
    return spec.form or form_of(judge) or of_instruction(record.instruction)


@dataclass(frozen=True)
class Demand:
    """What the questions of a data set demand.

    Attributes:
        demanded: number of questions by the form that they demand.
        without: number of questions that demand none.
        otherwise: number of right answers that do not look like the form that their question demands.
    """

    demanded: dict[str, int]
    without: int
    otherwise: int

    def __str__(self) -> str:
        counts = {**self.demanded, **({"none": self.without} if self.without else {})}
        parts = ", ".join(f"{form} ({count:,})" for form, count in counts.items())
        otherwise = f"; right answers that look otherwise: {self.otherwise:,}" if self.otherwise else ""
        return f"{parts} of {sum(counts.values()):,} questions{otherwise}"


def demand(spec: DatasetSpec, records: Sequence[TestRecord]) -> Demand:
    """What the questions of a data set demand, and whether their right answers look so."""
    names, forms = _forms(spec, records)
    truths = [
        ((record.box if name == "box" else "") or record.answer).strip()
        for name, record in zip(names, records, strict=True)
    ]
    otherwise = sum(
        form is not None and not (truth and form.shaped(truth, record))
        for form, truth, record in zip(forms, truths, records, strict=True)
    )
    return Demand(_counted(names), names.count(None), otherwise)


def _forms(
    spec: DatasetSpec, records: Sequence[TestRecord], scorer: Scorer | None = None
) -> tuple[list[str | None], list[AnswerForm | None]]:
    """The form that each question demands, by name and itself."""
    names = [demanded(spec, record, scorer) for record in records]
    forms: dict[str | None, AnswerForm] = {name: registry.resolve("form", name)() for name in set(names) if name}
    return names, [forms.get(name) for name in names]


def _counted(names: list[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(name for name in names if name).items()))


def followed(
    spec: DatasetSpec, texts: Sequence[str], records: Sequence[TestRecord], strict: Result, scorer: Scorer | None = None
) -> Followed:
    """The form of answers; they are scored a second time if normalising has changed one.

    Args:
        records: the questions, in the order of ``texts``.
        strict: what the rule gives to the texts as they are.
        scorer: the rule, if it is another than the data set's own.
    """
    judge = scorer or registry.resolve("scorer", spec.scorer)
    names, forms = _forms(spec, records, judge)
    asked = list(zip(forms, texts, records, strict=True))
    kept = sum(form is not None and form.has(text, record) for form, text, record in asked)
    normalised = [text if form is None else form.normalised(text, record) for form, text, record in asked]
    return Followed(_counted(names), kept, _content(judge, list(texts), normalised, records, strict))


def _content(
    scorer: Scorer, texts: list[str], normalised: list[str], records: Sequence[TestRecord], strict: Result
) -> float:
    """The score of normalised answers; an answer whose mark normalising would lower stays as it is."""
    if normalised == texts:
        return strict.score
    again = scorer(normalised, records)
    if strict.marks is None or again.marks is None:
        return max(strict.score, again.score)
    better = [
        new if after >= before else old
        for old, before, new, after in zip(texts, strict.marks, normalised, again.marks, strict=True)
    ]
    return float(again.score if better == normalised else scorer(better, records).score)
