"""Tables of questions and images, as the Hugging Face hub has them."""

import hashlib
import io
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as Picture
from PIL import Image

from fcit.data.formats.columns import Columns


def picture(color: tuple[int, int, int] = (200, 10, 10), form: str = "PNG", side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, form)
    return file.getvalue()


def embedded(content: bytes, path: str | None = None) -> dict:
    return {"bytes": content, "path": path}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def mapped(**names: str) -> Columns:
    return Columns.model_validate(names)


#: Three questions about pictures, in columns of other names.
VQA = Features(
    {"query": Value("string"), "label": ClassLabel(names=["red", "blue"]), "picture": Picture(), "qid": Value("int64")}
)
ROWS = {
    "query": ["Which color?", "<image>\nAnd now?", " Which one is it? "],
    "label": [0, 1, 0],
    "picture": [embedded(picture(), "a.jpg"), embedded(picture((0, 0, 9), "JPEG"), None), embedded(picture())],
    "qid": [10, 11, 12],
}
NAMES = mapped(question="query", answer="label", image="picture", id="qid")


def vqa() -> Dataset:
    return Dataset.from_dict(ROWS, features=VQA)


def parquet(folder: Path) -> str:
    vqa().to_parquet(folder / "vqa.parquet")
    return "vqa.parquet"


def saved(folder: Path) -> str:
    vqa().save_to_disk(folder / "saved")
    return "saved"


def split(folder: Path) -> str:
    DatasetDict({"train": vqa(), "validation": vqa().select([0])}).save_to_disk(folder / "both")
    return "both#train"


def sharded(folder: Path) -> str:
    for n, rows in enumerate(([0], [1, 2])):
        vqa().select(rows).to_parquet(folder / f"train-0000{n}-of-00002.parquet")
    return "train-*.parquet"
