"""Continual-learning methods as whole runs: cut in the middle and resumed, the same bits; what they send and keep."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from fcit import config as configuration
from fcit import registry
from fcit.errors import ConfigError
from fcit.methods.base import Method
from fcit.models import estimate
from fcit.models.shapes import shape_of
from fcit.runs.create import create
from fcit.runs.folder import RunDir
from fcit.runs.reader import load_run
from tests.helpers.runs import SMALL, Copies, bits

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

#: Methods whose runs are looked at round by round; the others have one round a stage.
TWO_ROUNDS = ("ewc", "keeplora", "l2p", "lwf", "mlora", "moelora", "olora", "replay")
#: Settings without which a run would take long.
SETTINGS = {"mrlora": {"records": 2, "router_epochs": 1}, "dop": {"steps": 5}}
#: All that clients train, and that is no reference.
TRAINED = [n for n in sorted(registry.METHODS) if (m := registry.resolve("method", n)).trains and not m.pooled]
#: Events of a run of two rounds a stage: those of the first stage, and one of the second.
IN_THE_SECOND_STAGE = 4, "round", "scored"
#: Methods of which one round a stage is enough: merged, and sent on.
MERGED = ("clmoe", "dop", "hide", "modalprompt", "opcm", "prism", "sacuir", "same", "sefe")
#: Where a run is cut, by method; updates of two clients are wanted each time.
CUTS = {
    **dict.fromkeys(("ewc", "l2p", "lwf", "replay"), IN_THE_SECOND_STAGE),
    # the events of the first stage, and the second's "round", before its checkpoint
    **dict.fromkeys(MERGED, (3, "round", "scored")),
    "keeplora": (9, "client"),  # what was measured in the second stage is taken in, round 0 has one update
    "mrlora": (5, "client"),  # the second stage's own round is over, the router's has one update
}


def cut_of(run: Path) -> Path:
    """Where the copy of a run amid it is."""
    return run.with_name(f"{run.name}-cut")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Finished runs by method, each made once; beside it lies what a process would have left that is killed amid it."""
    folder, made = tmp_path_factory.mktemp("methods"), {}

    def get(method: str) -> Path:
        if method not in made:
            # few clients where it matters that some come back
            clients = 40 if method == "replay" else 100
            rounds = 2 if method in TWO_ROUNDS else 1
            federation = {"rounds": rounds, "clients": clients, "clients_per_round": 2, "min_updates": 2, "beta": 100.0}
            part = {"name": method, **SETTINGS.get(method, {})}
            raw = {**SMALL, "name": method, "method": part, "federation": federation, "evaluation": {"samples": 6}}
            raw["data"] = {"max_records": 8 * clients}
            if method in ("l2p", "lwf"):  # whose bytes are compared, for the model as it is shipped
                raw["backbone"] = {"threads": 1}
            config = folder / f"{method}.yaml"
            config.write_text(yaml.safe_dump({**raw, "output": str(folder / "runs")}))
            run = create(configuration.load(config))
            copies = Copies(run.path, cut_of(run.path), *CUTS[method]) if method in CUTS else None
            made[method] = serve(run, copies).path
        return made[method]

    return get


def orders(run: Path) -> list[dict]:
    return [e for e in RunDir(run).read_events() if e["event"] == "round"]


def serve(run: RunDir, watcher: Copies | None = None) -> RunDir:
    """Run a folder from where it stands."""
    from clients.app import app
    from fcit.federation.engines.inline import InlineGrid
    from server.app import run as serve

    config = configuration.load_resolved(run.config)
    serve(run.path, InlineGrid(app, config.federation.clients, config, run.memory), watcher)
    return run


def cut(whole: Path, folder: Path) -> RunDir:
    """What a killed process has left of the run of a method, for one that has evaluated nothing yet."""
    from clients.worker.worker import _backbone, worker

    worker.cache_clear()
    _backbone.cache_clear()
    return RunDir(shutil.copytree(cut_of(whole), folder / "cut"))


@pytest.mark.parametrize("method", CUTS)
def test_cut_and_resumed_gives_the_same_bits(run_of, method, tmp_path):
    whole = run_of(method)
    assert json.loads((whole / "results.json").read_text())["traffic"]["rejected"] == 0
    run = cut(whole, tmp_path)
    assert not run.results.exists()
    seen = list(run.read_events())
    serve(run)
    assert bits(run.path) == bits(whole)
    if CUTS[method][-1] == "client":
        assert len([event for event in run.read_events() if event["event"] == "reused"]) == 1
    if method == "keeplora":
        assert [event["stage"] for event in seen if event["event"] == "measured"] == [0, 1]


def test_a_client_that_lost_what_it_was_sent_gets_it_again(run_of, tmp_path):
    whole = run_of("lwf")
    run = cut(whole, tmp_path)
    for folder in run.memory.glob("*/constants"):
        shutil.rmtree(folder)
    state = next(iter(sorted(run.state.iterdir(), reverse=True))) / "state.json"
    raw = json.loads(state.read_text())
    everybody = {str(client): ["teacher-0"] for client in range(100)}
    state.write_text(json.dumps({**raw, "progress": {**raw["progress"], "constants": everybody}}))
    serve(run)
    assert bits(run.path) == bits(whole)
    kinds = [event["event"] for event in run.read_events()]
    # The round that was cut had its updates already; in the next one both clients lack the teacher, once.
    assert kinds.count("reused") == 1
    assert kinds.count("rejected") == 2
    assert kinds.count("retry") == 1


@pytest.mark.parametrize("name", TRAINED)
def test_what_clients_keep_is_reported(run_of, name):
    run = load_run(run_of(name))
    cost, method = run.results["cost"], registry.resolve("method", name)(run.config)
    sends = type(method).constants is not Method.constants and name != "modalprompt"  # with one prompt a question
    keeps = method.remembers or sends
    assert (cost["client_memory_bytes"] > 0) == keeps
    shape = shape_of(run.config.backbone, run.config.adapter.targets)
    held, small = method.held(shape, stages=2), 20_000  # what is far smaller than adapters is not declared
    assert cost["client_memory_bytes"] <= sum(held.client.values()) + small * keeps
    server = estimate.server_memory(run.config, shape, len(run.subspaces))
    kept = [size for what, size in server.items() if what == "subspaces and projector" or what in held.server]
    assert cost["server_bytes"] <= sum(kept) + small
    assert cost["client_rounds"] == 2 * (method.rounds(0) + method.rounds(1))
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
