"""MME's release: a folder for each subtask with a text file for each picture, a question, a tab and the answer a line.

Pictures lie beside the texts, or both in folders of their own::

    color/000000006723.txt                     color/000000006723.jpg
    artwork/questions_answers_YN/1014.txt      artwork/images/1014.jpg
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcit.data.formats.conversation import checked_text
from fcit.data.formats.files import Rows, read_text
from fcit.data.records import Record, TestRecord
from fcit.errors import DataError
from fcit.io import bounded

PICTURES = (".jpg", ".png", ".jpeg")
QUESTIONS, IMAGES = "questions_answers_YN", "images"  # folders of the subtasks that have them


def is_row(row: Any) -> bool:
    """Whether a row looks like one of this format."""
    return isinstance(row, dict) and {"subtask", "picture", "line"} == row.keys()


def read_folder(path: Path) -> Rows:
    """The lines of all text files of a release, by subtask and name.

    Raises:
        DataError: there is none, or a picture is missing.
    """
    if not bounded.is_dir(path):
        raise DataError(f"{path}: no such folder; MME is read from its release, a folder with one for each subtask")
    rows = [row for subtask in sorted(path.iterdir()) if bounded.is_dir(subtask) for row in _rows(subtask)]
    return Rows(path, rows, None, "mme")


def _rows(subtask: Path) -> Iterator[dict[str, str]]:
    apart = bounded.is_dir(subtask / QUESTIONS)
    texts, images = (subtask / QUESTIONS, subtask / IMAGES) if apart else (subtask, subtask)
    for text in sorted(texts.glob("*.txt")):
        picture = next((p for end in PICTURES if bounded.is_file(p := images / f"{text.stem}{end}")), None)
        if picture is None:
            raise DataError(f"{text}: no picture {images / text.stem} ({', '.join(PICTURES)})")
        for line in read_text(text, "question").splitlines():
            if line.strip():
                yield {"subtask": subtask.name, "picture": str(picture.relative_to(subtask)), "line": line}


def record(row: Any) -> Record:
    """None: there is nothing to train on.

    Raises:
        ValueError: always.
    """
    raise ValueError("MME has questions and no training records; name it under evaluation.held_out")


def question(row: Any, number: int, captioned: bool = False) -> TestRecord:
    """The question of a line; its id is the subtask and the picture, which two questions share.

    Raises:
        ValueError: the line is not a question, a tab and yes or no.
    """
    text, _, answer = row["line"].partition("\t")
    if answer.strip().lower() not in ("yes", "no"):
        place = f"{row['subtask']}/{row['picture']}"
        raise ValueError(f"{place}: a line is a question, a tab and Yes or No, got {bounded.shown(row['line'])}")
    picture = row["picture"]
    name = f"{row['subtask']}/{Path(picture).name}"
    return TestRecord(name, (f"{row['subtask']}/{picture}",), checked_text(text.strip(), "question"), answer.strip())
