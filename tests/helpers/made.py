"""A finished run made by hand: random subspaces and random identity tokens, without a federation."""

from pathlib import Path

import numpy as np
import torch

from fcit import config as configuration
from fcit import registry, seeding
from fcit.data.records import Record, TestRecord
from fcit.export import format
from fcit.io.files import write_json
from fcit.methods.base import Factory
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.layout import is_projector
from fcit.models.saving import save_subspace
from server.routing_file import speaks_as

QUESTION = "What color is the cube?\nAnswer the question using a single word or phrase."


class Made:
    """A finished run's folder without the run: random subspaces, random identity tokens."""

    def __init__(self, path: Path, raw: dict, count: int = 3) -> None:
        self.path = path
        self.config = configuration.parse(raw)
        self.method = registry.resolve("method", self.config.method["name"])(self.config)
        self.backbone = Backbone(self.config.backbone)
        self.adapters = Adapters(self.backbone, self.config.adapter, self.method.layout)
        rng = seeding.generator(5, "made")
        projector = self.adapters.base_projector()
        own = {n: t for n, t in self.adapters.read().items() if not is_projector(n)}
        if self.config.adapter.projector == "per_subspace":
            own, projector = {**own, **projector}, {}
        make = Factory(0, {n: t.shape for n, t in own.items()}, given=own)
        self.shared = {n: noisy(t, rng) for n, t in projector.items()}
        self.subspaces = {str(i): {n: noisy(t, rng) for n, t in make(str(i)).items()} for i in range(count)}
        self.tokens = rng.normal(size=(count, self.backbone.identity.width())).astype(np.float32)
        self.write()

    def write(self) -> None:
        (self.path / "adapters").mkdir(parents=True)
        (self.path / "config.yaml").write_text(configuration.dump(self.config))
        write_json(self.path / "matrix.json", {"datasets": ["x"], "scores": [{"x": 1.0}]})
        write_json(self.path / "results.json", {"method": self.method.name, "subspace_names": list(self.subspaces)})
        for name, tensors in self.subspaces.items():
            folder = self.path / "adapters" / name
            save_subspace(folder, {**self.shared, **tensors}, self.config.adapter, self.config.backbone)
        names, policy = list(self.subspaces), self.config.adapter.projector
        routing = format.Routing(
            format=1,
            method=speaks_as(self.method),
            subspaces=names,
            knowledge={"names": names},
            projector=format.projector_policy(list(self.subspaces.values()), self.shared, policy),
            adapter=self.config.adapter,
            backbone=self.config.backbone,
            hashes=self.backbone.hashes,
            max_new_tokens=8,
            batch_size=4,
            stage=1,
        )
        format.write(self.path / "adapters", routing, {"tokens": self.tokens})

    def alone(self, name: str, picture: Path) -> tuple[torch.Tensor, list[str]]:
        """Logits of a training example and the answer, with one subspace, as a run computes them."""
        projector = {**self.adapters.base_projector(), **self.shared}
        self.adapters.load_mixture([self.subspaces[name]], projector)
        with self.adapters.mixed(np.ones((1, 1), np.float32)):
            return said(self.backbone, picture)


def noisy(tensor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (tensor + rng.normal(0, 0.05, tensor.shape)).astype(np.float32)


def said(backbone: Backbone, picture: Path) -> tuple[torch.Tensor, list[str]]:
    features = backbone.vision_features(picture.parent, [picture.name])
    encoder = backbone.encoder_below(picture.parent)
    learnt = encoder.encode(Record.single(picture.name, QUESTION, "yes"))
    with torch.no_grad():
        logits, _ = backbone.answer_logits([learnt], features)
    return logits, backbone.generate([encoder.encode(TestRecord("", (picture.name,), QUESTION, ""))], features, 8)


def raw(method: str = "disco", projector: str = "shared", backbone: dict = {}) -> dict:  # noqa: B006
    return {
        "method": method,
        "adapter": {"projector": projector},
        "backbone": {**backbone, "feature_cache": "off"},
    }
