"""A client that comes back with records of an earlier stage trains the subspace of the stage that it is back in."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from fcit import config as configuration
from fcit import registry
from fcit.methods.base import Factory, ServerState
from fcit.models.layout import A, B
from server.assigner import Assigner
from server.checkpoint import Progress
from server.courier import NOBODY
from server.gather import Gathering
from server.orders import Orders
from server.participants import Slot
from server.secure import SecureCollector

LAYER = "layers.0.q_proj"
SHAPES = {f"{LAYER}.{A}.weight": (2, 4), f"{LAYER}.{B}.weight": (4, 2)}
HERE, BACK = Slot(3, "b", (1,)), Slot(7, "a", (0,))  # the second one had its shard in stage 0


class Asking(Gathering):
    """Notes whom it asks in each attempt; no one answers before the second, or at all."""

    def _adopt(self, orders):
        return {}

    def _ask(self, orders, attempt):
        self.asked.append({pair: order.subspace for pair, order in orders.items()})
        return orders if attempt else {}


def begun(name, least=2, kind=Asking):
    """Stage 1 of a run whose clients 3 and 7 trained in stage 0; client 7 is absent until it is asked for again."""
    config = configuration.parse({"method": name, "federation": {"min_updates": least, "on_too_few": "wait"}})
    method, state, progress = registry.resolve("method", name)(config), ServerState(), Progress()
    state.labels = [("A", "charts"), ("B", "maps")]
    factory = Factory(0, SHAPES, {})
    orders = Orders(config, SimpleNamespace(), method, registry.resolve("fedopt", "fedavg")(config))
    for stage in range(2):
        state.stage = progress.stage = stage
        method.assign(state, [HERE.pair, BACK.pair] if stage == 0 else [HERE.pair], {}, factory)
    away = {7}
    journal = SimpleNamespace(round_event=lambda *_, **__: None, timed=lambda _: nullcontext())
    courier = SimpleNamespace(node=lambda client: NOBODY if client in away else client)
    parts = {"config": config, "stream": None, "state": state, "progress": progress, "orders": orders}
    parts |= {"courier": courier, "journal": journal}
    assigner = Assigner(method=method, factory=factory, identity_width=2, **parts)
    stop = SimpleNamespace(pause=lambda _: away.clear())
    handshake = SimpleNamespace(update=lambda: None)
    more = {"sums": None, "clip": lambda: None} if kind is SecureCollector else {}
    collector = kind(run=None, handshake=handshake, assigner=assigner, stop=stop, **parts, **more)
    collector.asked = []
    return collector


@pytest.mark.parametrize("name", ["olora", "mlora", "proglora", "keeplora", "mrlora"])
def test_a_repeated_round_moves_a_client_that_was_absent(name):
    collector = begun(name)
    gathered = collector.gather([HERE, BACK])
    assert collector.asked == [{HERE.pair: "1"}, {HERE.pair: "1", BACK.pair: "1"}]
    assert all(order.subspace == "1" for order in gathered.accepted.values())


def test_a_client_that_stays_away_has_no_subspace_of_the_stage():
    collector = begun("olora", least=1)
    collector.stop.pause = lambda _: None
    gathered = collector.gather([HERE, BACK])
    assert gathered.slots == [HERE, BACK]
    settled = [collector.orders.method.settled(collector.state, slot.pair) for slot in gathered.slots]
    assert settled == [True, False]


def test_the_router_has_its_own_clients():
    """Extra rounds of mrlora: a shard of the stage's rounds has to be given the router."""
    collector = begun("mrlora")
    method, state = collector.orders.method, collector.state
    state.round = method.config.federation.rounds
    assert not method.settled(state, HERE.pair)
    method.assign(state, [(3, "extra-1")], {}, Factory(0, SHAPES, {}))
    assert method.settled(state, (3, "extra-1"))


def test_a_client_that_is_not_moved_yet_may_join_any_sum():
    """As many as a group needs, half of them away with a shard of stage 0: it is still possible."""
    collector = begun("olora", kind=SecureCollector)
    slots = [Slot(client, f"s{client}", (client % 2,)) for client in range(collector.config.privacy.min_group)]
    collector.state.assigned = {slot.pair: str(slot.tasks[0]) for slot in slots}
    assert not collector._exhausted(slots, 0, 2)
