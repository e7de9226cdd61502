"""Every federated optimiser and way of averaging factors on whole runs: two stages, two tasks in each round."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

import fcit
from fcit.data.stream import open_stream
from fcit.doctor import plan
from fcit.errors import ConfigError, StopRequested
from fcit.federation.engines.inline import InlineGrid
from fcit.models import estimate
from fcit.models.shapes import shape_of
from fcit.runs.create import create
from fcit.runs.folder import RunDir
from fcit.runs.reader import Run
from server import checkpoint
from tests.helpers.runs import SMALL, Copies, bits

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

BENCHMARK = {
    "name": "pair",
    "source": "mini",
    "tasks": [["ocr-vqa"], ["figureqa"]],
    "heterogeneous": [[0, 0, 1], [1, 1, 0]],
    "datasets": {
        "ocr-vqa": {"train": "OCRVQA/train.json", "test": "OCRVQA/test.json", "scorer": "exact"},
        "figureqa": {"train": "FigureQA/train.json", "test": "FigureQA/test.json", "scorer": "substring"},
    },
}
CLIENTS = 40
#: With this seed the second stage calls a client of the first again, for the other task.
QUICK = {
    **SMALL,
    "seed": 1,
    "setting": "heterogeneous",
    "data": {"max_records": 8 * CLIENTS},
    "training": {"batch_size": 4},  # two steps: the trainer's first one moves nothing
    "evaluation": {"samples": 4},
    "federation": {"rounds": 2, "clients": CLIENTS, "clients_per_round": 3, "beta": 100.0},
}
RUNS = [
    ("fedavg", "separate"),
    ("fedavg", "svd"),
    ("fedprox", "alternate"),
    ("fedavgm", "frozen_a"),
    ("fedadam", "alternate"),
    ("fedyogi", "separate"),
    ("fedadagrad", "frozen_a"),
    ("scaffold", "separate"),
    ("fedavg", "flora"),
]
#: Settings that some of them have beside.
MORE = {
    "flora": [
        "adapter.ranks={2: 0.4, 4: 0.3, 8: 0.3}",
        "privacy.record_dp=on",
        "privacy.record_noise_multiplier=1.0",
        "privacy.reproducible_noise=true",  # else two runs differ
    ]
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fedopt")


@pytest.fixture(scope="module")
def config(folder):
    """A configuration with this optimiser, these factors and more settings."""
    (folder / "pair.yaml").write_text(yaml.safe_dump(BENCHMARK))

    def make(fedopt: str, factors: str, *more: str):
        path = folder / "quick.yaml"
        path.write_text(yaml.safe_dump({**QUICK, "benchmark": "pair.yaml", "output": str(folder)}))
        settings = [f"fedopt={fedopt}", f"factors={factors}", f"name={fedopt}-{factors}", *MORE.get(factors, []), *more]
        return fcit.config.load(path, settings)

    return make


#: Where a run would have been cut: amid the second round.
AMID = 5, "client"


def serve(run: RunDir, watcher=None) -> RunDir:
    """Run a folder from where it stands, without a report."""
    from clients.app import app
    from server.app import run as serve

    serve(run.path, InlineGrid(app, CLIENTS, memory=run.memory), watcher)
    return run


def cut_of(run: Path) -> Path:
    """Where the copy of a run amid its second round is."""
    return run.with_name(f"{run.name}-cut")


@pytest.fixture(scope="module")
def finished(config):
    """A finished run, each made once; beside it lies what a process would have left that is killed amid it."""

    @cache
    def run(fedopt: str, factors: str) -> Run:
        run = create(config(fedopt, factors))
        return Run(serve(run, Copies(run.path, cut_of(run.path), *AMID)).path)

    return run


@pytest.mark.parametrize(("fedopt", "factors"), RUNS)
def test_runs(finished, fedopt, factors):
    run = finished(fedopt, factors)
    assert run.finished
    assert run.results["traffic"]["rejected"] == 0
    assert run.results["subspaces"] == 2
    rounds = run.of("round")
    assert len(rounds) == 4
    for event in rounds:
        errors = event["exactness"]
        assert set(errors) == (set(event["subspaces"]) if factors in ("separate", "svd", "flora") else set())
        # The mean of one client is its own product.
        assert all(error < 1e-6 for name, error in errors.items() if event["subspaces"].count(name) == 1)
        assert not errors or (max(errors.values()) > 1e-3) is (factors != "flora")


def test_every_one_learns_something_else(finished):
    seen = [tuple(bits(finished(*run).path).items()) for run in RUNS]
    assert len(set(seen)) == len(RUNS)


@pytest.mark.parametrize(
    ("fedopt", "factors"), [("fedadam", "alternate"), ("scaffold", "separate"), ("fedavg", "flora")]
)
def test_cut_in_the_middle_of_a_round_and_resumed_gives_the_same_bits(finished, fedopt, factors):
    whole = finished(fedopt, factors)
    cut = RunDir(cut_of(whole.path))
    assert not cut.results.exists()
    assert bits(serve(cut).path) == bits(whole.path)


def test_differential_privacy_resumes_to_the_same_noise(config):
    pytest.importorskip("dp_accounting")
    settings = ["privacy.client_dp=on", "privacy.epsilon=8", "privacy.clip_quantile=0.5", "name=private"]
    settings += ["privacy.record_dp=on", "privacy.record_epsilon=6", "training.batch_size=4"]
    whole = create(config("fedadam", "frozen_a", *settings))
    cut = RunDir(cut_of(whole.path))
    # Else clients who train after the cut would make secrets of their own.
    for client in range(50):
        key = whole.memory / str(client) / "records" / "noise.key"
        key.parent.mkdir(parents=True)
        key.write_bytes(bytes([client]) * 32)
    serve(whole, Copies(whole.path, cut.path, *AMID))
    assert cut.noise_key.is_file()
    serve(cut)
    assert bits(cut.path) == bits(whole.path)
    assert not cut.noise_key.exists()
    results, again = (Run(run.path).results["privacy"] for run in (whole, cut))
    assert results == again
    assert results["epsilon"] <= 8
    # the second stage calls a client of the first again
    assert [after["releases"] for after in results["after_stages"]] == [1, 2]
    assert json.loads((whole.adapters / "routing.json").read_text())["trained_on"] == {}
    assert set(results["by_subspace"]) == {"0", "1", "shared"}
    records, more = (Run(run.path).results["record_privacy"] for run in (whole, cut))
    assert records == more
    assert 5.9 < records["epsilon"] <= 6
    assert [event["record_privacy"]["epsilon"] for event in Run(whole.path).of("round")][-1] == records["epsilon"]
    assert [event["exactness"] for event in Run(whole.path).of("round")] == [{}] * 4


def test_clients_of_different_ranks_are_sent_each_stack_once(finished):
    """Bytes by client and rank; a client that comes back later in a stage is sent what it missed."""
    run = finished("fedavg", "flora")
    rounds = run.of("round")
    ranks = {client: rank for event in rounds for client, rank in event["ranks"].items()}
    assert len(set(ranks.values())) > 1
    for event in rounds:
        up = {event["ranks"][client]: size for client, (_, size) in event["client_bytes"].items()}
        assert [up[rank] for rank in sorted(up)] == sorted(up.values())
        assert sum(down for down, _ in event["client_bytes"].values()) <= event["down"]
    # the second round of a stage brings the stack of the first beside the fresh factors
    of_first, of_second = (min(down for down, _ in event["client_bytes"].values()) for event in rounds[:2])
    assert of_second > of_first
    assert set(run.of("recompressed")[0]["exactness"]) == set(rounds[0]["subspaces"]) | set(rounds[1]["subspaces"])
    assert run.results["cost"]["client_memory_bytes"] > 0
    table = run.results["cost"]["by_rank"]
    assert {int(rank) for rank in table} == set(ranks.values())


def test_pieces_are_foreseen(finished):
    """What a dry run and the doctor say before, of a run whose orders bring stacks and whose clients keep them."""
    run = finished("fedavg", "flora")
    shape, stream = shape_of(run.config.backbone, run.config.adapter.targets), open_stream(run.config)
    stream.prepare()
    planned, bare = (
        sum(stage.down for stage in plan.stages(config, stream, shape))
        for config in (run.config, run.config.model_copy(update={"factors": "separate"}))
    )
    assert planned > 1.2 * bare
    assert planned == pytest.approx(run.results["traffic"]["down"], rel=0.05)
    at_most = estimate.remembered(run.config, shape, 2) / CLIENTS
    assert at_most / 8 < run.results["cost"]["client_memory_bytes"] < at_most


def test_records_of_clients_of_different_ranks_are_private_alike(finished):
    """Equal records and steps, equal epsilon, whatever the rank; and nothing of the losses is told."""
    run = finished("fedavg", "flora")
    ranks = {str(client): rank for event in run.of("round") for client, rank in event["ranks"].items()}
    once: dict[float, set[int]] = {}
    for client, spent in run.results["record_privacy"]["clients"].items():
        if spent["steps"] == 2:
            once.setdefault(spent["epsilon"], set()).add(ranks[client])
    assert max(map(len, once.values())) == len(set(ranks.values())) > 1
    assert {loss for event in run.of("round") for loss in event["loss"].values()} == {None}


def test_scaffold_doubles_the_traffic_both_ways(finished):
    plain, scaffold = (finished(name, "separate").results["cost"] for name in ("fedavg", "scaffold"))
    for way in ("up_per_client_round", "down_per_client_round"):  # heads of messages are not doubled
        assert scaffold[way] - plain[way] == pytest.approx(4 * plain["parameters"]["trainable"], rel=0.02)


def test_what_stays_with_clients_is_trained_all_the_same(finished):
    plain, fedsa = (finished("fedavg", factors).results["cost"] for factors in ("separate", "fedsa"))
    assert fedsa["parameters"]["trainable"] == plain["parameters"]["trainable"]
    assert fedsa["up_per_client_round"] < 0.9 * plain["up_per_client_round"]


def test_scaffolds_clients_remember_a_variate_per_subspace_and_one_for_the_projector(finished):
    run = finished("scaffold", "separate")
    seen: dict[int, set[str]] = {}
    for event in run.of("round"):
        for client, subspace in zip(event["clients"], event["subspaces"], strict=True):
            seen.setdefault(client, set()).add(f"subspace-{subspace}")
    files = sorted((run.path / "client-memory").glob("*/*.json"))  # the newest of a client last
    memories = {int(f.parent.name): json.loads(f.read_text()) for f in files}
    assert {client: set(m["fedopt"]) - {"shared"} for client, m in memories.items()} == seen
    assert all("shared" in m["fedopt"] for m in memories.values())
    assert max(map(len, seen.values())) == 2  # one came back for the other task


def test_half_the_factors_travel_up_and_all_go_down(finished):
    whole = finished("fedavg", "separate").of("round")
    halves = finished("fedprox", "alternate").of("round")
    for full, half in zip(whole, halves, strict=True):
        assert half["up"] < 0.85 * full["up"]  # the projector always travels
        assert half["down"] == pytest.approx(full["down"], rel=0.02)
    assert halves[0]["up"] != halves[1]["up"]  # B, then A, which are not of one size


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["factors=svd", "method=ewc"], r"factors: 'svd' makes no sense with method: 'ewc'; choose factors: alternate"),
        (["factors=svd", "fedopt=fedadam"], r"factors: 'svd' .* fedopt: 'fedadam' .* choose fedopt: fedavg or fedprox"),
        (["factors=alternate", "fedopt=scaffold"], r"factors: 'alternate' .* fedopt: 'scaffold' .* choose"),
        (["method=joint", "fedopt=scaffold"], r"fedopt: 'scaffold' .* method: 'joint' .* choose fedopt: fedavg"),
        (["factors=svd", "method=moelora"], r"factors: 'svd' .* method: 'moelora'; choose factors: alternate, frozen"),
        (["factors=svt"], r"factors: input should be 'separate', 'svd', .* or 'frozen_a', got 'svt'"),
    ],
)
def test_what_does_not_go_together_is_said_at_once(small, overrides, said):
    with pytest.raises(ConfigError, match=said):
        fcit.config.load(small, overrides)


def test_one_of_ones_own_may_say_that_it_averages(small, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from fcit.fedopt.base import FedOpt\n\n"
        "class Mine(FedOpt):\n    averages = True\n\n"
        "class Other(FedOpt):\n    pass\n"
    )
    fcit.config.load(small, ["factors=svd", f"fedopt={tmp_path / 'mine.py'}:Mine"])
    with pytest.raises(ConfigError, match="'svd' makes new factors"):
        fcit.config.load(small, ["factors=svd", f"fedopt={tmp_path / 'mine.py'}:Other"])


def test_list_factors(fcit):
    code, out, _ = fcit("list", "factors")
    assert code == 0
    assert all(name in out for name in ("separate", "svd", "alternate", "frozen_a"))


class StopsAfterAStage:
    """A watcher that asks the run to stop after its first stage."""

    def say(self, kind, **values):
        if kind == "stage":
            raise StopRequested("enough")


def test_secure_aggregation_equals_plain_aggregation_to_half_a_step(config):
    """The first round of both, which is a stage; then the masked run goes on to its end."""
    settings = ["method=finetune", "federation.rounds=1", "privacy.quantise_bits=32"]
    states = []
    for word in ("off", "on"):
        run = create(
            config("fedavg", "separate", *settings, f"privacy.secure_aggregation={word}", f"name=masks-{word}")
        )
        with pytest.raises(StopRequested):
            serve(run, StopsAfterAStage())
        states.append(checkpoint.load(run)[0])
    plain, masked = ({**state.shared, **state.subspaces["0"]} for state in states)
    for name, tensor in plain.items():
        # half a step of 2^-31, and float32 before and after
        assert np.abs(masked[name].astype(np.float64) - tensor).max() <= 2**-32 + 2**-22 * np.abs(tensor).max(), name
    whole = Run(serve(run).path)
    assert whole.finished
    assert [event["summed"] for event in whole.of("round")] == [{"0": 3}, {"0": 3}]
    assert whole.results["traffic"]["rejected"] == 0
