"""What collects the updates of a run's rounds, put together from the parts of its loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fcit.federation.messages import Probe
from fcit.methods.base import Factory
from fcit.models.layout import is_projector
from server.assigner import Assigner
from server.clock import Clock
from server.collect import Collector
from server.dispatch import Dispatcher, Places
from server.gather import Gathering
from server.late import LateSpill
from server.live import LiveCollector
from server.real_time import RealTime
from server.secure import SecureCollector
from server.simulated import SimulatedCollector
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
        "clock": loop.clock if isinstance(loop.clock, Clock) else None,
    }
    if isinstance(loop.updates, Sums):
        return SecureCollector(**parts, sums=loop.updates, clip=loop.clip)
    if isinstance(loop.updates, LateSpill):
        parts |= {"validator": loop.validator, "spill": loop.updates}
        places: dict[str, Any] = {key: parts[key] for key in ("config", "stream", "state", "progress")}
        if isinstance(loop.clock, RealTime):
            return LiveCollector(**parts, dispatcher=Places(**places, clock=loop.clock), time=loop.clock)
        dispatcher = Dispatcher(**places, orders=loop.orders, clock=parts["clock"], assign=assigner.assign)
        return SimulatedCollector(**parts, dispatcher=dispatcher)
    return Collector(**parts, validator=loop.validator, spill=loop.updates)
