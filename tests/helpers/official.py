"""Small trees in the layout of the published benchmarks: file names, folders and record formats, drawn images.

Formats follow what is public about the data; where the instruction's last line is unknown (AOKVQA, DVQA, FigureQA,
OCR-VQA, TabMWP, super-CLEVR, Grounding, those of CoIN, TriGap and MLLM-CL's abilities) a likely one stands here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcit.data.spec import BenchmarkSpec, read_spec

BETAS = ("0.5", "1.0", "5.0")
WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."

#: Width and height of drawn images: odd, never square.
SIZES = ((37, 21), (19, 43), (51, 23), (27, 61))


def _icon(n: int) -> tuple[str, str]:
    """Open and choice questions in turn; options of a choice are counted from 0."""
    if n % 2:
        return f"How many rows are there?\n{WORD}", str(n % 5)
    return f"What comes next?\n0. circle\n1. square\n2. star\n{LETTER}", str(n % 3)


def _arxiv(n: int) -> tuple[str, str]:
    letter = "ABCD"[n % 4]
    options = "\n".join(f"{o}) curve {i}" if n % 2 else f"curve {i}" for i, o in enumerate("ABCD"))
    return f"Which curve rises?\n{options}\nRationale:Curve {letter} rises.\n{LETTER}", letter


def _finance(n: int) -> tuple[str, str]:
    if n % 2:
        return "Did the price rise?", ("Yes", "No")[n // 2 % 2]
    return "What did the price do? A. rise B. fall C. stay D. vary", "ABCD"[n // 2 % 4]


def _science(n: int) -> tuple[str, str]:
    if n % 5 == 4:
        return "Which states have the highest value?", "Ohio, Utah"
    return f"Which part is shown? (A) leaf (B) root\n{LETTER}", "AB"[n % 2]


#: data set -> (folder of training images, of test images, n -> (instruction, answer))
DATA: dict[str, tuple[str, str, Callable[[int], tuple[str, str]]]] = {
    "imagenet-r": (
        "ImageNet-R/train",
        "ImageNet-R/test",
        lambda n: (f"What is the object in the image?\n{WORD}", ("goldfish", "Hen", "great white shark")[n % 3]),
    ),
    "arxivqa": ("ArxivQA/images", "ArxivQA/images", _arxiv),
    "iconqa": ("IconQA/iconqa_data/iconqa/train", "IconQA/iconqa_data/iconqa/val", _icon),
    "clevr-math": (
        "CLEVR/images/train",
        "CLEVR/images/test",
        lambda n: (f"Subtract all {n % 3} red cubes. How many objects are left?\n{WORD}", str(n % 7)),
    ),
    "ocr-vqa": (
        "OCR-VQA/images",
        "OCR-VQA/images",
        lambda n: (f"Who wrote this book?\n{WORD}", ("Jane Roe", "John Doe")[n % 2]),
    ),
    "flickr30k": (
        "Flickr30k/train",
        "Flickr30k/val",
        lambda n: (
            "What is happening in the image?\nGenerate a brief caption for the image.",
            f"A {('man', 'woman', 'dog')[n % 3]} walks along a road .",
        ),
    ),
    "vizwiz": (
        "VizWiz/train",
        "VizWiz/val",
        lambda n: (
            "What is happening in the image?\nGenerate a brief caption for the image.",
            f"A {('can', 'cup')[n % 2]} stands on a table.",
        ),
    ),
    "figureqa": (
        "FigureQA/images",
        "FigureQA/images",
        lambda n: (f"Is blue the minimum?\n{WORD}", ("yes", "no")[n % 2]),
    ),
    "super-clevr": (
        "super-CLEVR/images",
        "super-CLEVR/images",
        lambda n: (f"What color is the bus?\n{WORD}", ("gray", "2", "yes")[n % 3]),
    ),
    "aokvqa": (
        "COCO2014/train2014",
        "COCO2014/val2014",
        lambda n: (f"What is the man by the bags awaiting?\n{WORD}", ("cab", "train", "skateboarder")[n % 3]),
    ),
    "grounding": (
        "COCO2014/train2014",
        "COCO2014/train2014",
        lambda n: (
            "Please provide the bounding box coordinate of the region this sentence describes: the left cup.",
            f"[0.{n % 4}1, 0.20, 0.{n % 4 + 5}3, 0.61]",
        ),
    ),
    "dvqa": ("DVQA/images", "DVQA/images", lambda n: (f"What is the label of bar {n % 4}?\n{WORD}", f"item {n % 4}")),
    "tabmwp": (
        "TabMWP/tables",
        "TabMWP/tables",
        lambda n: (f"What is the range of the numbers?\n{WORD}", ("12", "1,234", "3/4")[n % 3]),
    ),
    "rs": ("images", "images", lambda n: (f"Is a road present?\n{WORD}", ("yes", "no", "rural area.")[n % 3])),
    "med": ("images", "images", lambda n: ("What is present?", ("liver", "atrophic kidney")[n % 2])),
    "ad": ("images", "images", lambda n: (f"Should the car brake for <c1,CAM_FRONT,[1,2]>?\n{WORD}", "No.")),
    "sci": ("images", "images", _science),
    "fin": ("images", "images", _finance),
}

#: Of data sets that are questions about pictures and nothing more.
PLAIN = (
    *("scienceqa", "textvqa", "imagenet", "gqa", "vqav2"),
    *("docvqa", "okvqa", "chartqa", "pathvqa", "infovqa", "ai2d"),
    *("pmcvqa", "infographicvqa", "roadside", "chemvqa", "floodnetvqa"),
    *("ocr", "math", "vp", "gui"),
)
DATA |= {
    name: (f"images/{name}", f"images/{name}", lambda n: (f"Which of {n + 2} is meant?\n{WORD}", "ABC"[n % 3]))
    for name in PLAIN
}

#: How the names of the science domain's images begin; the official rule depends on it.
SCIENCE = ("AI2D", "TQA", "VQA", "SciVerse", "MapQA")


def official_tree(
    root: Path,
    benchmark: str = "fcit-task",
    records: int = 12,
    tests: int = 6,
    clients: int | None = None,
    betas: tuple[str, ...] = BETAS,
) -> Path:
    """Write a tree that ``benchmark`` reads; returns the data root.

    Args:
        records: training records of each data set.
        tests: test records of each data set.
        clients: write the official partition for so many clients (FCIT has 50); None: none is delivered.
        betas: the folders of the partition.
    """
    spec = read_spec(benchmark)
    made = {name: _write(root, spec, name, records, tests) for name in spec.datasets}
    if clients is not None:
        for beta in betas:
            for task, names in enumerate(spec.tasks):
                _divide(root / spec.partition.folder / beta / f"Task{task + 1}", made, names, clients)
    return root


def _write(root: Path, spec: BenchmarkSpec, name: str, records: int, tests: int) -> list[dict[str, Any]]:
    dataset, (train_folder, test_folder, make) = spec.datasets[name], DATA[name]
    instructions, images = (
        root / (folder if isinstance(folder, str) else folder[0]) for folder in (spec.instructions, spec.images)
    )
    images.mkdir(parents=True, exist_ok=True)
    ending = "png" if name in ("iconqa", "clevr-math", "figureqa", "super-clevr", "tabmwp", "dvqa") else "jpg"

    folders = {"train": dataset.images, "test": dataset.asked_images}

    def image(folder: str, split: str, n: int) -> str:
        begin = SCIENCE[n % 5] if name == "sci" else name.replace("-", "_")
        relative = f"{folder}/{begin}_{split}_{n:06d}.{ending}"
        _draw(images / folders[split] / relative, n + len(name))
        return relative

    train = []
    for n in range(records):
        question, answer = make(n)
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        train.append({"id": f"{name}-{n}", "image": image(train_folder, "train", n), "conversations": turns})
    test = []
    for n in range(tests):
        question, answer = make(n)
        row: dict[str, Any] = {"question_id": str(n), "image": image(test_folder, "test", n), "text": question}
        if name == "grounding":
            row |= {"answer_bbox": answer, "size": list(SIZES[(n + len(name)) % len(SIZES)])}
        elif dataset.references is None:
            row["answer"] = answer
        if name == "ocr":
            row |= {"answer": [answer, f"{answer}{answer}"], "answer_type": "Doc-oriented VQA"}
        elif name == "vp":
            row |= {"task": ("Count", "Relation")[n % 2], "type": "2D"}
        test.append(row)
    _dump(instructions / dataset.train, train)
    _dump(instructions / dataset.test, test)
    if dataset.references is not None:
        made = _people(test, make) if name == "textvqa" else _coco(test, make)
        _dump(instructions / dataset.references, made)
    return train


def _coco(test: list[dict[str, Any]], make: Callable[[int], tuple[str, str]]) -> dict[str, Any]:
    """Caption references: ids count the questions 1..N."""
    captions = [
        {"id": 2 * n + k, "image_id": n + 1, "caption": text}
        for n in range(len(test))
        for k, text in enumerate((make(n)[1], f"Somebody {n} is seen outside"))
    ]
    return {"images": [{"id": n + 1, "file_name": r["image"]} for n, r in enumerate(test)], "annotations": captions}


def _people(test: list[dict[str, Any]], make: Callable[[int], tuple[str, str]]) -> dict[str, Any]:
    """TextVQA's own annotations: ten answers to a question, one of them another."""
    answers = [[make(n)[1]] * 9 + ["something else"] for n in range(len(test))]
    return {"data": [{"question_id": int(r["question_id"]), "answers": a} for r, a in zip(test, answers, strict=True)]}


def _divide(folder: Path, made: dict[str, list[dict[str, Any]]], names: list[str], clients: int) -> None:
    """Client files of one task; its data sets are mixed, and every client gets one record at least."""
    pool = [row for name in names for row in made[name]]
    order = np.random.default_rng(len(pool)).permutation(len(pool)).tolist()
    shares = [order[client::clients] or [order[client % len(pool)]] for client in range(clients)]
    for client, share in enumerate(shares):
        _dump(folder / f"client_{client}.json", [pool[i] for i in share])


def _draw(path: Path, n: int) -> None:
    """A small image: a coloured field with a darker corner."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = SIZES[n % len(SIZES)]
    pixels = np.full((height, width, 3), (40 * n % 256, 90 * n % 256, 30 + 7 * n % 200), dtype=np.uint8)
    pixels[: height // 2, : width // 3] //= 2
    Image.fromarray(pixels).save(path)


def _dump(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")
