import pytest

from fcit.federation.messages import ProbeOrder
from fcit.io.files import write_json
from fcit.runs.folder import RunDir
from server import dispatch
from server.handshake import Handshake
from server.stop import Stop
from tests.helpers.grids import FakeGrid, courier


@pytest.fixture
def events() -> list[dict]:
    return []


@pytest.fixture
def hands(tmp_path, events):
    def make(grid: FakeGrid, stop: Stop | None = None, **federation) -> Handshake:
        run = RunDir(tmp_path)
        if not run.environment.is_file():
            write_json(run.environment, {})
        made = courier(grid, events, stop=stop, **{"on_too_few": "stop", **federation})
        return Handshake(made, ProbeOrder(config=""), run, made.federation)

    return make


def first_that_suit(rng, clients, count, suits):
    return [client for client in range(clients) if suits(client)][:count]


@pytest.fixture
def lowest_first(monkeypatch):
    """Whoever is free and has the lowest number is next."""
    monkeypatch.setattr(dispatch, "suitable", first_that_suit)
