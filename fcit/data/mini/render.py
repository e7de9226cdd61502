"""Renders a mini dataset into the official layout: one seed, the same bytes on every machine.

``instructions/<Dataset>/{train,val,test}.json`` and ``datasets/<Dataset>/<split>/<n>.png``; caption
references in COCO format beside them. Images of the splits are disjoint (compared by content).
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from fcit import seeding
from fcit.data.mini import canvas
from fcit.data.mini.abilities import ABILITIES
from fcit.data.mini.drawing import STYLES
from fcit.data.mini.questions import Example
from fcit.data.mini.reworded import REWORDED
from fcit.data.mini.scenes import images
from fcit.data.mini.sources import GENERAL, Source, source_of
from fcit.errors import ConfigError, DataError

VERSION = "mini-1"
AT_ONCE = 64  # images composed together
SPLITS = {"train": 4000, "val": 150, "test": 300}
#: Names of the folders, as in the FCIT release.
FOLDERS = {
    "imagenet-r": "ImageNet-R",
    "arxivqa": "ArxivQA",
    "iconqa": "IconQA",
    "clevr-math": "CLEVR-Math",
    "ocr-vqa": "OCRVQA",
    "flickr30k": "Flickr30k-cap",
    "figureqa": "FigureQA",
    "super-clevr": "super-CLEVR",
    "aokvqa": "AOKVQA",
    "grounding": "Grounding",
    "dvqa": "DVQA",
    "tabmwp": "TabMWP",
    # Two pairs that share their wording (benchmark fcit-mini-alike); not part of FCIT.
    "alike-icons": "alike-icons",
    "alike-bars": "alike-bars",
    "alike-count": "alike-count",
    "alike-price": "alike-price",
    # Of fcit-mini-long and fcit-mini-ability; not part of FCIT.
    **{name: name for name in (*REWORDED, *ABILITIES)},
    GENERAL: "General",
}


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (canvas.PIXELS, canvas.PIXELS), image.tobytes()).save(buffer, format="PNG")
    return buffer.getvalue()


def _examples(origin: Source, rng: np.random.Generator) -> Iterator[Example]:
    """Examples without end whose layouts belong to the source's buckets."""
    while True:
        example = origin.maker(rng)
        if example.scene.bucket in origin.layouts:
            example.scene.decorate(rng)
            yield example


def _drawn(origin: Source, rng: np.random.Generator, seen: set[bytes]) -> Iterator[tuple[Example, bytes]]:
    """The same with their images as PNG, each image new; the generator runs ahead by up to ``AT_ONCE`` examples."""
    endless = _examples(origin, rng)
    while True:
        examples = list(islice(endless, AT_ONCE))
        pictures = STYLES[origin.style](images([example.scene for example in examples]))
        for example, image in zip(examples, pictures, strict=True):
            png = _png(image)
            if png not in seen:
                seen.add(png)
                yield example, png


def _train_row(image: str, example: Example) -> dict[str, object]:
    return {
        "image": image,
        "conversations": [
            {"from": "human", "value": f"<image>\n{example.question}"},
            {"from": "gpt", "value": example.answer},
        ],
    }


def _test_row(number: int, image: str, example: Example) -> dict[str, object]:
    row: dict[str, object] = {"question_id": str(number), "image": image, "text": example.question}
    if example.box is not None:
        return {**row, "answer_bbox": example.answer, "size": [canvas.PIXELS, canvas.PIXELS]}
    return {**row, "answer": example.answer}


def _coco(examples: list[Example]) -> dict[str, object]:
    notes = [(n, caption) for n, e in enumerate(examples, start=1) for caption in e.references]
    return {
        "images": [{"id": n} for n in range(1, len(examples) + 1)],
        "annotations": [{"id": i, "image_id": n, "caption": c} for i, (n, c) in enumerate(notes, start=1)],
    }


def make(name: str, root: Path, seed: int = 0) -> None:
    """Render one dataset under ``root``; nothing that looks complete is left if it is interrupted.

    Raises:
        ConfigError: no mini dataset has this name, or other pictures lie in its place.
    """
    if name not in FOLDERS:
        raise ConfigError(f"no mini dataset {name!r} (there are: {', '.join(FOLDERS)})")
    folder = FOLDERS[name]
    shown = root / "datasets" / folder
    if os.path.lexists(shown) and not _is_ours(shown):
        raise _foreign(shown)
    work = root / f".making-{folder}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        pictures, texts = _drawn_and_written(name, work, seed)
        for part in ("datasets", "instructions"):
            (root / part).mkdir(parents=True, exist_ok=True)
        # The instruction folder goes last: it is what says that the dataset is complete.
        for source, target in ((pictures, shown), (texts, root / "instructions" / folder)):
            shutil.rmtree(target, ignore_errors=True)
            source.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _drawn_and_written(name: str, work: Path, seed: int) -> tuple[Path, Path]:
    """All splits of a data set in a folder of their own; returns where its pictures and its texts are."""
    folder, texts, pictures = FOLDERS[name], work / "instructions", work / "images"
    texts.mkdir(parents=True)
    seen: set[bytes] = set()
    for split, count in SPLITS.items():
        if name == GENERAL and split == "train":
            continue
        rng = seeding.generator(seed, "mini", name, split)
        (pictures / split).mkdir(parents=True)
        rows, examples = [], []
        for number, (example, png) in enumerate(islice(_drawn(source_of(name, split), rng, seen), count)):
            (pictures / split / f"{number:05d}.png").write_bytes(png)
            image = f"{folder}/{split}/{number:05d}.png"
            rows.append(_train_row(image, example) if split == "train" else _test_row(number, image, example))
            examples.append(example)
        (texts / f"{split}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        if split != "train" and examples[0].references:
            (texts / f"{split}_coco_type.json").write_text(json.dumps(_coco(examples), indent=1), encoding="utf-8")
    return pictures, texts


def _is_ours(pictures: Path) -> bool:
    """Whether a folder of pictures can only be what was rendered before an interruption."""
    if pictures.is_symlink() or not pictures.is_dir():
        return False
    splits = list(pictures.iterdir())
    return all(split.name in SPLITS and split.is_dir() and not split.is_symlink() for split in splits) and all(
        re.fullmatch(r"\d{5}\.png", file.name) for split in splits for file in split.iterdir()
    )


def _foreign(folder: Path) -> ConfigError:
    return ConfigError(
        f"data_root, --root: {folder} is there and is not what fcit renders; the built-in data sets need a folder of "
        "their own: leave it out, or name an empty one"
    )


def ensure(name: str, root: Path) -> None:
    """Render a data set unless it exists; safe when several processes do so at once.

    Raises:
        ConfigError: no mini data set has this name, or other files lie in its place.
        DataError: the folder cannot be written.
    """
    from filelock import FileLock

    folder = FOLDERS.get(name, name)
    done, one = root / "instructions" / folder, root / "datasets" / folder / "test" / "00000.png"
    try:
        if not done.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(str(root / f".{name}.lock")):
                if not done.is_dir():
                    make(name, root)
    except OSError as error:
        raise DataError(
            f"{root}: the built-in data set {name!r} cannot be rendered there ({error}); name a folder that can be "
            "written and has room, by FCIT_CACHE, data_root or --root"
        ) from None
    if not (one.is_file() and all((done / f"{split}.json").is_file() for split in ("val", "test"))):
        raise _foreign(done)
