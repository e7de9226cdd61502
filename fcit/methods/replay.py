"""Experience replay: clients keep a few records and mix them into later batches.

Reservoir: Vitter, "Random sampling with a reservoir" (1985), as in Chaudhry et al., "On tiny episodic
memories in continual learning" (arXiv 1902.10486). Not comparable with methods that store no records;
listed separately in tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from fcit.config import Section
from fcit.data.collate import Encoded, images_of
from fcit.io.trees import Tensors
from fcit.methods.base import Method, Session
from fcit.methods.views import Held
from fcit.models.patches import together

if TYPE_CHECKING:
    from fcit.models.shapes import Shape


class Replay(Method):
    """One adapter; to each batch are added records of shards that the client learnt before.

    loss = CE(batch and m = ratio * |batch| stored records), one mean over the answer tokens of both. If a batch passes
    through the model in parts (``training.micro_batch``), m are divided among them.

    The buffer is a uniform sample of all records the client was trained on: record number i replaces a random one
    with probability buffer / i. It never leaves the client. If few clients are sampled per round, most buffers
    cover few tasks. Other code that stops writing when the buffer is full keeps the first records instead. The
    buffer holds tokens and names of images; the images stay in the client's data.
    """

    class Options(Section):
        """Keys under ``method:``."""

        buffer: int = Field(50, ge=1, description="records a client keeps")
        ratio: float = Field(0.5, gt=0, description="stored records per new record of a batch")

    name = "replay"
    family = "replay"
    summary = "clients keep a reservoir of records and mix them into new batches"
    mixes_ranks = True
    group = "replay"
    remembers = True

    def held(self, shape: Shape, stages: int) -> Held:
        """Tokens are written as digits."""
        return Held(client={"kept records": 8.0 * self.options.buffer * self.config.backbone.max_length})

    def prepare(self, session: Session) -> None:
        kept = session.memory.setdefault("kept", [])
        old = [_example(*entry[1:]) for entry in kept if entry[0] != session.shard]
        session.notes["old"], session.notes["draw"] = old, session.generator("replay")
        session.notes["shown"] = torch.zeros((), dtype=torch.int64)  # records of the step so far

    def loss(self, session, examples, features):
        old, draw = session.notes["old"], session.notes["draw"]
        shown, whole = session.notes["shown"], max(len(session.step), len(examples))
        before, after = int(shown), int(shown) + len(examples)
        shown.fill_(after % whole)
        wanted = max(1, round(self.options.ratio * whole))
        count = min(len(old), wanted * after // whole - wanted * before // whole)
        if not count:
            return super().loss(session, examples, features)
        chosen = [old[i] for i in draw.choice(len(old), size=count, replace=False)]
        more = session.backbone.vision_features(session.image_root, images_of(chosen))
        return super().loss(session, [*examples, *chosen], together([features, more]))

    def finish(self, session: Session) -> Tensors:
        kept, shards = session.memory["kept"], session.memory.setdefault("shards", [])
        if session.shard in shards:  # the same records again, in a later round
            return {}
        shards.append(session.shard)
        draw = session.generator("reservoir")
        seen = session.memory.get("seen", 0)
        for example in session.examples:
            seen += 1
            place = len(kept) if len(kept) < self.options.buffer else int(draw.integers(seen))
            entry = [
                session.shard,
                list(example.tokens),
                [list(span) for span in example.answers],
                list(example.images),
            ]
            kept[place : place + 1] = [entry] if place < self.options.buffer else kept[place : place + 1]
        session.memory["seen"] = seen
        return {}


def _example(tokens: list[int], answers: list[Any], images: Any) -> Encoded:
    """A stored record; memories of earlier versions hold prompt, answer and one image."""
    if isinstance(images, str):
        return Encoded((*tokens, *answers), ((len(tokens), len(tokens) + len(answers)),), (images,))
    return Encoded(tuple(tokens), tuple((start, end) for start, end in answers), tuple(images))
