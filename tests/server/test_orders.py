"""Constants on both sides of the wire: what an order brings, names and lets go, and what its client then keeps."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from clients.worker.memory import ClientMemory
from fcit import config as configuration
from fcit import registry
from fcit.errors import MemoryLost
from fcit.federation.messages import CONSTANT, TrainOrder
from fcit.io.trees import under
from fcit.methods.base import ServerState
from fcit.models.layout import A, B
from server.checkpoint import Progress
from server.orders import Orders
from server.participants import Slot
from server.ranks import Ranks
from server.timeline import Done

LAYER = "layers.0.q_proj"


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


class Played:
    """A server's state and one client's memory, without a model."""

    def __init__(self, folder, **raw) -> None:
        config = configuration.parse(raw)
        method = registry.resolve("method", config.method["name"])(config)
        fedopt = registry.resolve("fedopt", config.fedopt["name"])(config)
        self.orders = Orders(config, SimpleNamespace(), method, fedopt)  # type: ignore[arg-type]  (asked for nothing)
        self.memory, self.progress = ClientMemory(folder), Progress()
        self.state = ServerState()
        for name in ("0", "1"):
            self.state.subspaces[name] = {f"{LAYER}.{A}.weight": f32(2, 4), f"{LAYER}.{B}.weight": f32(4, 2)}
            self.state.assigned[0, name] = name

    def order(self, subspace: str = "0", counts: bool = True) -> TrainOrder:
        """An order that the client carries out; the server notes it if its update ``counts``."""
        order = self.orders.train(self.state, self.progress, Slot(0, subspace, (0,)))
        kept = self.memory.constants(0, order.constants, under(order.tensors, CONSTANT), order.keep)
        assert sorted(kept) == order.constants
        if counts:
            self.progress.constants["0"] = order.constants
        return order

    def stages(self, count: int) -> Iterator[int]:
        """Stages, one after the other, in which the method trains subspace "0" alone."""
        del self.state.subspaces["1"]
        for stage in range(count):
            self.state.stage = self.progress.stage = stage
            yield stage
            self.orders.method.end_stage(self.state, stage)

    @property
    def files(self) -> list[str]:
        return sorted(file.stem for file in (self.memory.root / "0" / "constants").glob("*"))


def test_with_one_round_a_stage_memory_does_not_grow(tmp_path):
    played, sizes = Played(tmp_path, method="lwf"), []
    for _ in played.stages(8):
        played.order()
        sizes.append(played.memory.size(0))
    assert sizes[0] == 0
    assert len(set(sizes[1:])) == 1
    assert played.files == ["teacher-6"]


def test_a_client_that_was_absent_lets_go_of_what_it_had(tmp_path):
    played = Played(tmp_path, method="lwf")
    for stage in played.stages(7):
        if stage in (1, 5):
            played.order()
    assert played.files == ["teacher-4"]


def test_orders_that_never_counted_leave_nothing_behind(tmp_path):
    played = Played(tmp_path, method="lwf")
    for stage in played.stages(7):
        played.order(counts=stage in (1, 6))
    assert played.files == ["teacher-5"]


def test_earlier_subspaces_are_kept_as_long_as_they_are_named(tmp_path):
    played = Played(tmp_path, method="olora")
    for stage in range(4):
        played.state.stage = stage
        played.state.subspaces[str(stage)] = played.state.subspaces["0"]
        played.state.assigned[0, str(stage)] = str(stage)
        brought = under(played.order(str(stage)).tensors, CONSTANT)
        assert {name.partition("/")[0] for name in brought} == ({f"frozen-{stage - 1}"} if stage else set())
    assert played.files == ["frozen-0", "frozen-1", "frozen-2"]


@pytest.mark.parametrize("counts", [True, False])
def test_pieces_of_another_subspace_stay_until_the_server_knows(tmp_path, counts):
    """The update of the order in between is rejected: the server goes on with what it knew before."""
    played = Played(tmp_path, method="finetune", factors="flora")
    first = played.order("0")
    assert played.order("1", counts).keep == first.constants
    again = played.order("0")
    assert again.constants == first.constants
    assert bool(under(again.tensors, CONSTANT)) == counts
    assert played.files == ([*first.constants, "factors.1.0"] if counts else first.constants)


def test_pieces_of_a_stage_that_is_over_are_removed(tmp_path):
    played = Played(tmp_path, method="finetune", factors="fedex")
    piece = [[name, tensor] for name, tensor in played.state.subspaces["0"].items()]
    played.state.factors["0"] = {"pieces": [[0, piece]], "count": 1}
    played.order()
    assert played.files == ["factors.0.0"]
    played.state.factors["0"]["pieces"] = []
    played.order()
    assert played.files == []


def test_a_client_that_lost_a_group_says_so(tmp_path):
    played = Played(tmp_path, method="lwf")
    for stage in played.stages(2):
        if stage == 1:
            played.progress.constants["0"] = ["teacher-0"]
            with pytest.raises(MemoryLost, match="client 0"):
                played.order()


@pytest.mark.parametrize(("ranks", "numbers"), [(None, 2 * 4 + 4 * 2), (1, 1 * 4 + 4 * 1)])
def test_what_stays_with_a_client_is_trained_as_well(tmp_path, ranks, numbers):
    """One layer of rank 2: whether B travels or not, both factors are trained, at the client's rank."""
    for factors in ("separate", "fedsa"):
        played = Played(tmp_path, factors=factors, adapter={"rank": 2, "ranks": ranks})
        played.orders._ranks = Ranks(played.orders.config, played.progress)
        order = played.order()
        assert Done.of(order).numbers + played.orders.at_home(played.state, "0", 0) == numbers
