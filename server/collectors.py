"""What collects the updates of a run's rounds, put together from the parts of its loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fcit.federation.messages import Probe
from fcit.methods.base import Factory
from fcit.models.layout import is_projector
from server.assigner import Assigner
from server.asynchronous import AsyncCollector
from server.collect import Collector
from server.dispatch import Dispatcher
from server.gather import Gathering
from server.late import LateSpill
from server.secure import SecureCollector
from server.sums import Sums

if TYPE_CHECKING:
    from server.loop import Loop


def collector(loop: Loop, probe: Probe) -> Gathering:
    """The collector of a run; new subspaces have the shapes that the probe names."""
    shapes = {name: tuple(shape) for name, shape in probe.shapes.items()}
    projector = {n: t for n, t in probe.tensors.items() if is_projector(n)}
    given = {n: t for n, t in probe.tensors.items() if n not in projector}
    if loop.config.adapter.projector == "per_subspace":
        # Every subspace starts from the backbone's projector and trains its own.
        given, shapes, projector = given | projector, shapes | {n: t.shape for n, t in projector.items()}, {}
    if loop.fresh:
        loop.state.shared = dict(projector)
    common: dict[str, Any] = {
        "config": loop.config,
        "stream": loop.stream,
        "state": loop.state,
        "progress": loop.progress,
        "orders": loop.orders,
        "courier": loop.courier,
        "journal": loop.journal,
    }
    factory = Factory(loop.config.seed, shapes, projector, given=given)
    assigner = Assigner(**common, method=loop.method, factory=factory, identity_width=probe.identity_width)
    parts = {
        **common,
        "run": loop.run,
        "handshake": loop.handshake,
        "assigner": assigner,
        "stop": loop.stop,
        "clock": loop.clock,
    }
    if isinstance(loop.updates, Sums):
        return SecureCollector(**parts, sums=loop.updates, clip=loop.clip)
    if isinstance(loop.updates, LateSpill):
        keys = "config", "stream", "state", "progress", "orders", "clock"
        dispatcher = Dispatcher(**{key: parts[key] for key in keys}, assign=assigner.assign)
        return AsyncCollector(**parts, validator=loop.validator, spill=loop.updates, dispatcher=dispatcher)
    return Collector(**parts, validator=loop.validator, spill=loop.updates)
