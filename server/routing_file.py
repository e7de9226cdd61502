"""The file beside the adapters of a finished run by which they are mixed without server, clients and benchmark."""

from __future__ import annotations

from typing import Any

from fcit import registry
from fcit.config import RunConfig
from fcit.data.stream import Stream
from fcit.export import format
from fcit.export.format import Routing
from fcit.io.files import read_json
from fcit.methods.base import Method, ServerState
from fcit.runs.folder import RunDir
from server.checkpoint import Progress

#: The hooks that decide how a method answers.
_ANSWERING = ("layout", "knowledge", "route", "choose", "answer")


def write(
    run: RunDir, config: RunConfig, stream: Stream, method: Method, state: ServerState, progress: Progress
) -> None:
    """Write ``adapters/routing.json`` and ``adapters/tokens.safetensors``.

    Raises:
        DiskFull: no space left.
    """
    knowledge, tokens = method.knowledge(state)
    if method.needs_task_at_inference:
        knowledge = {**knowledge, "trained": progress.majority}
    lengths = [d.max_new_tokens for d in stream.datasets.values()] or [None]  # sites keep theirs to themselves
    routing = Routing(
        format=1,
        method=speaks_as(method),
        subspaces=list(state.subspaces),
        knowledge=knowledge,
        projector=format.projector_policy(list(state.subspaces.values()), state.shared, config.adapter.projector),
        adapter=config.adapter,
        backbone=config.backbone,
        hashes=dict(read_json(run.environment)["hashes"]),
        max_new_tokens=max(config.evaluation.longest(n) for n in lengths),
        batch_size=config.evaluation.batch_size,
        by_length=config.evaluation.by_length,
        batches_per_order=config.evaluation.batches_per_order,
        pictures=config.data.pictures,
        decoder=config.evaluation.decoder,
        mixture=config.evaluation.mixture,
        stage=len(progress.rows),
        # With client_dp the adapters are what is published, and these counts say who took part.
        trained_on={} if config.privacy.on else _trained_on(stream, progress),
        formats={name: d.suffix for name, d in stream.datasets.items() if d.suffix},
    )
    format.write(run.adapters, routing, tokens)


def speaks_as(method: Method) -> dict[str, Any]:
    """The shipped method that answers as this one does, with its options; a method of one's own as it is.

    A method of one's own that changes only how is trained answers as the shipped one it derives from; plain
    fine-tuning stands for the base class.
    """
    options = {key: value for key, value in method.config.method.items() if key != "name"}
    if not registry.is_own(method.config.method["name"]):
        return dict(method.config.method)
    shipped = [(name, registry.resolve("method", name)) for name in ("finetune", *registry.METHODS)]
    for cls in type(method).__mro__:
        for name, candidate in shipped:
            if candidate is cls or (name == "finetune" and cls is Method):
                same = all(getattr(type(method), hook) is getattr(cls, hook) for hook in _ANSWERING)
                if same:
                    known = candidate.Options.model_fields
                    return {"name": name, **{key: value for key, value in options.items() if key in known}}
    return dict(method.config.method)


def _trained_on(stream: Stream, progress: Progress) -> dict[str, dict[str, int]]:
    """Records by subspace and data set (those of a task together), most first; empty where tasks are the sites' own."""
    counts_of: dict[str, dict[str, int]] = {}
    for number, names in enumerate(stream.tasks):
        for subspace, count in progress.trained.get(f"task-{number}", {}).items():
            counts_of.setdefault(subspace, {})["+".join(names)] = count
    return {name: dict(sorted(counts.items(), key=lambda item: -item[1])) for name, counts in counts_of.items()}
