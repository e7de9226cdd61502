"""A round without participants, which secret sampling may draw."""

from contextlib import nullcontext
from types import SimpleNamespace

from fcit.config import Federation, RunConfig
from fcit.methods.base import Method, ServerState
from server.collect import Collector
from server.courier import Courier


def test_a_round_without_participants_asks_no_one_and_is_over():
    federation = Federation.model_validate({"min_updates": 3})
    traffic, given = {"down": 0, "up": 0, "orders": 0}, []
    collector = object.__new__(Collector)
    collector.config = SimpleNamespace(federation=federation)
    collector.handshake = SimpleNamespace(update=lambda: None)
    collector.assigner = SimpleNamespace(assign=given.append)
    collector.journal = SimpleNamespace(timed=lambda name: nullcontext())
    collector.state, collector.orders = ServerState(), SimpleNamespace(method=Method(RunConfig()))
    collector.progress = SimpleNamespace(stage=0, round=0)
    courier = object.__new__(Courier)
    courier.federation, courier.traffic = federation, traffic
    collector.courier = courier
    assert collector.gather([]).accepted == {}
    assert given == [[]]  # the method may open the subspace of the stage all the same
    assert traffic["orders"] == 0
