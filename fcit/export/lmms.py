"""What a task of lmms-eval calls: question, images and truth of a record, and the score of all answers.

A task that :mod:`fcit.export.tasks` has written names these functions through the ``utils.py`` beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from fcit import registry
from fcit.data.images.opening import open_image
from fcit.data.records import TestRecord

#: What lmms-eval calls the score.
METRIC = "fcit_score"


def row(record: TestRecord, root: Path, rule: str, way: str) -> dict[str, Any]:
    """A question as a row of the task's file; the record is JSON, so that all rows have columns of one type."""
    return {
        "question_id": record.question_id,
        "question": record.instruction,
        "answer": record.answer,
        "images": list(record.images),
        "image_root": str(root.resolve()),
        "pictures": way,
        "rule": rule,
        "record": json.dumps(asdict(record)),
    }


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The images of a question, as the run opened them."""
    return [open_image(Path(doc["image_root"]), name, doc["pictures"]) for name in doc["images"]]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """The question as it was put in the run, format line included; lmms-eval puts the images in front."""
    return str(doc["question"])


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, str]]:
    """What :func:`score` needs of an answer."""
    return {METRIC: {"rule": doc["rule"], "record": doc["record"], "prediction": results[0]}}


def score(items: Sequence[Mapping[str, str]]) -> float:
    """Score (0 to 100) of all answers to a data set, by its own rule."""
    records = [_record(json.loads(item["record"])) for item in items]
    scorer = registry.resolve("scorer", items[0]["rule"])
    return float(scorer([item["prediction"].strip() for item in items], records).score)


def _record(raw: dict[str, Any]) -> TestRecord:
    size = raw["size"]
    raw |= {"images": tuple(raw["images"]), "references": tuple(raw["references"]), "size": size and tuple(size)}
    return TestRecord(**raw)
