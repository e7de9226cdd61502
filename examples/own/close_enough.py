"""A scorer of one's own: half a mark for an answer that begins right."""

from fcit.evaluation.scorers import Result


def close_enough(answers, records):
    """1 for the answer, 0.5 for its first letter; mean in percent."""
    marks = [
        1.0 if text.strip().lower() == r.answer.lower() else 0.5 * (text.strip()[:1].lower() == r.answer[:1].lower())
        for text, r in zip(answers, records, strict=True)
    ]
    return Result(100 * sum(marks) / len(marks), marks)
