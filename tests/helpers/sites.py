"""A site on this machine: a SITE.yaml with data of its own, and orders straight into the ClientApp."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flwr.app import Context, Message, RecordDict
from PIL import ExifTags, Image, PngImagePlugin

from clients.app import app
from fcit import config as configuration
from fcit.federation import codec
from fcit.federation.engines.inline import InlineGrid
from fcit.federation.messages import DescribeOrder, ProbeOrder, TrainOrder

RECORDS = 12  # of the one client


def picture(path: Path, seed: int, words: str) -> None:
    """A small image whose metadata hold the words: a PNG text chunk or EXIF."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    if path.suffix == ".png":
        chunk = PngImagePlugin.PngInfo()
        chunk.add_text("Description", words)
        image.save(path, pnginfo=chunk)
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = words
        image.save(path, exif=exif)


def train_row(image: str, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": image, "image": image, "conversations": turns}


def make(folder: Path, words: str = "secret", **settings: Any) -> Path:
    """A site with a benchmark file of its own, one task; every text, name and image holds ``words``."""
    images = folder / "data" / "datasets" / words
    images.mkdir(parents=True)
    (folder / "data" / "instructions").mkdir()
    rows = []
    for n in range(RECORDS):
        name = f"{words}/{words}-{n}.{'png' if n % 2 else 'jpg'}"
        picture(folder / "data" / "datasets" / name, n, words)
        rows.append(train_row(name, f"Is {words} number {n}?", f"{words} {n}"))
    test = [{"question_id": n, "image": r["image"], "text": words, "answer": words} for n, r in enumerate(rows[:2])]
    (folder / "data" / "instructions" / "train.json").write_text(json.dumps(rows))
    (folder / "data" / "instructions" / "test.json").write_text(json.dumps(test))
    spec = {
        "name": words,
        "datasets": {words: {"train": "train.json", "test": "test.json"}},
        "tasks": [[words]],
        "partition": {"reserve": RECORDS},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(spec))
    raw = {"name": "0", "benchmark": "own.yaml", "data_root": "data", "home": "home", **settings}
    path = folder / "SITE.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def ordered(**changes: Any) -> str:
    """What the server's configuration says: one client, a benchmark file that lies at the server."""
    raw = {
        "benchmark": "server.yaml",
        "data_root": "/server/data",
        "method": "finetune",
        "training": {"batch_size": 5},
        "federation": {"clients": 1, "clients_per_round": 1, "rounds": 2},
        "backbone": {"threads": 1},
        **changes,
    }
    return configuration.dump(configuration.parse(raw))


class Site(InlineGrid):
    """Carries orders to one site; what the ClientApp raises is raised."""

    def __init__(self, file: Path) -> None:
        super().__init__(app, 1)
        self.file, self.home = file, file.parent / "home"

    def send(self, kind: str, order: Any) -> Message:
        content = order if isinstance(order, RecordDict) else codec.encode(order)
        message = Message(content, dst_node_id=1000, message_type=kind)
        self._number(message)
        config = {"site": str(self.file)}
        context = Context(run_id=1, node_id=1000, node_config=config, state=RecordDict(), run_config={})
        return app(message, context)

    def refused(self, kind: str, order: Any) -> str:
        """The one word that comes back instead of an answer."""
        reply = self.send(kind, order)
        assert reply.has_error(), reply.content
        return str(reply.error.reason).split()[0]

    @property
    def log(self) -> str:
        return (self.home / "logs" / "site.log").read_text()


def probe_order(config: str | None = None, **changes: Any) -> ProbeOrder:
    return ProbeOrder(**{"config": config or ordered(), "run": "run-1", **changes})


def describe_order(config: str | None = None, **changes: Any) -> DescribeOrder:
    plain = {"config": config or ordered(), "client": 0, "shard": "s", "tasks": [0], "run": "run-1"}
    return DescribeOrder(**{**plain, **changes})


def train_order(tensors: dict[str, np.ndarray], config: str | None = None, **changes: Any) -> TrainOrder:
    plain = {
        "config": config or ordered(),
        "stage": 0,
        "round": 0,
        "client": 0,
        "shard": "s",
        "tasks": [0],
        "subspace": "0",
        "tensors": tensors,
        "run": "run-1",
    }
    return TrainOrder(**{**plain, **changes})


def start(probe: Any) -> dict[str, np.ndarray]:
    """Tensors of a first training: what the probe says, A small and B zero."""
    rng = np.random.default_rng(0)
    lora = {n: rng.normal(0, 0.01, s) if ".lora_A." in n else np.zeros(s) for n, s in probe.shapes.items()}
    return {**{n: t.astype(np.float32) for n, t in lora.items()}, **probe.tensors}
