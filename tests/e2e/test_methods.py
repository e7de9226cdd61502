"""Continual-learning methods as whole runs: cut in the middle and resumed, the same bits; what they send and keep."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fcit.cli import main
from fcit.errors import ConfigError
from fcit.runs.folder import RunDir
from tests.helpers.runs import SMALL, Dies, bits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Finished runs by method, each made once."""
    folder, made = tmp_path_factory.mktemp("methods"), {}

    def get(method: str) -> Path:
        if method not in made:
            # few clients where it matters that some come back
            clients = 40 if method == "replay" else 100
            federation = {"rounds": 2, "clients": clients, "clients_per_round": 2, "min_updates": 2, "beta": 100.0}
            raw = {**SMALL, "name": method, "method": method, "federation": federation, "evaluation": {"samples": 6}}
            raw["data"] = {"max_records": 8 * clients}
            if method in ("l2p", "lwf"):  # whose bytes are compared, for the model as it is shipped
                raw["backbone"] = {"threads": 1}
            config = folder / f"{method}.yaml"
            config.write_text(yaml.safe_dump({**raw, "output": str(folder / "runs")}))
            assert main(["run", str(config)]) == 0
            made[method] = folder / "runs" / f"{method}-1"
        return made[method]

    return get


def orders(run: Path) -> list[dict]:
    return [e for e in RunDir(run).read_events() if e["event"] == "round"]


def resumed(whole: Path, folder: Path, between: Callable[[RunDir], None]) -> RunDir:
    """The same run, cut in the second stage after one of its rounds, and resumed."""
    from clients.app import app
    from clients.worker.worker import _backbone, worker
    from fcit import config as configuration
    from fcit.federation.engines.inline import InlineGrid
    from server.app import run as serve

    config = configuration.load(whole / "config.yaml")
    environment = json.loads((whole / "environment.json").read_text())
    run = RunDir.create(folder, "cut", configuration.dump(config), environment)
    with pytest.raises(KeyboardInterrupt):
        serve(run.path, InlineGrid(app, config.federation.clients, config, run.memory), Dies(4, "round", "scored"))
    between(run)
    worker.cache_clear()  # as in a new process, which has evaluated nothing yet
    _backbone.cache_clear()
    serve(run.path, InlineGrid(app, config.federation.clients, config, run.memory))
    return run


@pytest.mark.parametrize("method", ["ewc", "lwf", "keeplora", "l2p", "replay"])
def test_cut_and_resumed_gives_the_same_bits(run_of, method, tmp_path):
    whole = run_of(method)
    assert json.loads((whole / "results.json").read_text())["traffic"]["rejected"] == 0
    run = resumed(whole, tmp_path, lambda run: None)
    assert bits(run.path) == bits(whole)


def test_a_client_that_lost_what_it_was_sent_gets_it_again(run_of, tmp_path):
    def lose(run: RunDir) -> None:
        for folder in run.memory.glob("*/constants"):
            shutil.rmtree(folder)
        state = next(iter(sorted(run.state.iterdir(), reverse=True))) / "state.json"
        raw = json.loads(state.read_text())
        everybody = {str(client): ["teacher-0"] for client in range(100)}
        state.write_text(json.dumps({**raw, "progress": {**raw["progress"], "constants": everybody}}))

    whole = run_of("lwf")
    run = resumed(whole, tmp_path, lose)
    assert bits(run.path) == bits(whole)
    kinds = [event["event"] for event in run.read_events()]
    # The round that was cut had its updates already; in the next one both clients lack the teacher, once.
    assert kinds.count("reused") == 1
    assert kinds.count("rejected") == 2
    assert kinds.count("retry") == 1


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("lwf", True),
        ("ewc", True),
        ("olora", True),
        ("replay", True),
        ("mlora", False),
        ("moelora", False),
        ("l2p", False),
    ],
)
def test_what_clients_keep_is_reported(run_of, method, kept):
    cost = json.loads((run_of(method) / "results.json").read_text())["cost"]
    assert (cost["client_memory_bytes"] > 0) == kept
    assert cost["client_rounds"] == 8
    assert cost["up_per_client_round"] > 0
    assert cost["seconds_per_sample"] > 0


def test_a_teacher_is_sent_once_a_stage(run_of):
    """A client's second order of a stage is smaller by the teacher: a subspace and a projector."""
    run = run_of("lwf")
    size = json.loads((run / "results.json").read_text())["cost"]["parameters"]["trainable"] * 4
    first_stage = {e["down"] for e in orders(run)[:2]}
    assert max(first_stage) - min(first_stage) < 1000
    met: set[int] = set()
    for event in orders(run)[2:4]:
        new = len(set(event["clients"]) - met)
        met |= set(event["clients"])
        assert event["down"] - max(first_stage) == pytest.approx(new * size, rel=0.05, abs=20_000)


def test_what_is_measured_before_a_stage_is_counted(run_of):
    """Each client of a stage's first round sends two sketches as large as its A, and then trains B alone."""
    run = RunDir(run_of("keeplora"))
    measured = [event for event in run.read_events() if event["event"] == "measured"]
    rounds = [event for event in orders(run.path) if event["round"] == 0]
    assert [event["stage"] for event in measured] == [0, 1]
    assert [event["clients"] for event in measured] == [sorted(event["clients"]) for event in rounds]
    results = json.loads(run.results.read_text())
    assert results["traffic"]["rejected"] == 0
    up = sum(event["up"] for event in [*measured, *orders(run.path)])
    assert results["cost"]["up_per_client_round"] == pytest.approx(up / 8)
    assert min(event["up"] for event in measured) > 0


def test_prompts_are_cheaper_than_adapters(run_of):
    l2p, lwf = (json.loads((run_of(m) / "results.json").read_text())["cost"] for m in ("l2p", "lwf"))
    assert l2p["up_per_client_round"] < lwf["up_per_client_round"]


def test_stages_get_their_own_subspaces(run_of):
    for method in ("olora", "mlora"):
        results = json.loads((run_of(method) / "results.json").read_text())
        assert results["subspace_names"] == ["0", "1"]
        assert [set(e["subspaces"]) for e in orders(run_of(method))] == [{"0"}, {"0"}, {"1"}, {"1"}]


@pytest.mark.parametrize("method", ["lwf", "replay"])
def test_without_a_folder_for_clients_nothing_is_trained(method, tmp_path):
    from clients.app import app
    from fcit import config as configuration
    from fcit.federation.engines.inline import InlineGrid
    from server.app import run as serve

    config = configuration.resolve({**SMALL, "method": method}, tmp_path, "config")
    run = RunDir.create(tmp_path, "nowhere", configuration.dump(config), {})
    with pytest.raises(ConfigError, match="client-memory"):
        serve(run.path, InlineGrid(app, 50))
    assert orders(run.path) == []
