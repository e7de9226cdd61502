"""`fcit doctor --config`: what fits is shown, what cannot is refused with what would."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
import yaml

from fcit import config as configuration
from fcit import registry
from fcit.cli import main
from fcit.data.benchmark import open_benchmark
from fcit.doctor import timing
from fcit.doctor.command import Data, Estimates
from fcit.doctor.devices import core_rate, device_of, peak_of
from fcit.models import estimate
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.estimate import Lengths
from fcit.models.layout import is_projector
from fcit.models.shapes import shape_of
from tests.helpers.runs import BACKBONE

LARGE = {
    "name": "large",
    "benchmark": "fcit-mini-short",
    "backbone": {
        "model": "llava-hf/llava-1.5-7b-hf",
        "identity": "openai/clip-vit-large-patch14-336",
        "dtype": "bfloat16",
        "device": "cuda",
    },
    "training": {"batch_size": 128, "micro_batch": "auto", "checkpointing": True},
    "evaluation": {"batch_size": 8},
}


@pytest.fixture
def doctor(tmp_path, capsys):
    """Call it on a configuration; returns (exit code, stdout, stderr)."""

    def call(raw: dict, *arguments: str) -> tuple[int, str, str]:
        file = tmp_path / "c.yaml"
        file.write_text(yaml.safe_dump(raw))
        code = main(["doctor", "--config", str(file), *arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_a_7b_model_with_micro_batches_fits_into_24_gb(doctor):
    code, out, err = doctor(LARGE, "--gpu-gb", "24", "--no-probe")
    assert code == 0, err
    assert "fits on a GPU of 24 GB" in out
    assert "known values of llava-hf/llava-1.5-7b-hf" in out
    parts = ("language model", "keys and values", "optimiser", "sums in float64", "frozen features", "the whole run")
    for part in parts:
        assert part in out
    assert "assumed 50% of 71 TFLOP/s" in out


@pytest.mark.parametrize(("gigabytes", "questions"), [("24", 12), ("80", 96)])
def test_as_many_questions_at_a_time_as_fit(doctor, gigabytes, questions):
    code, out, err = doctor(LARGE, "evaluation.batch_size=auto", "--gpu-gb", gigabytes, "--no-probe")
    assert code == 0, err
    assert f"answering, {questions} at a time" in out


@pytest.mark.parametrize(
    ("gigabytes", "overrides", "helps"),
    [
        ("24", ["training.micro_batch=null"], "training.micro_batch=auto"),
        ("24", ["training.micro_batch=64"], "training.micro_batch=auto"),
        ("16", [], "backbone.quantization=4bit"),
        ("24", ["backbone.dtype=float32"], "backbone.dtype=bfloat16"),
        ("48", ["federation.engine=ray", "ray.num_gpus=0.25", "ray.workers=4"], "ray.num_gpus=1"),
        ("40", ["evaluation.batch_size=512"], "evaluation.batch_size=64"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_would(doctor, gigabytes, overrides, helps):
    code, _, err = doctor(LARGE, *overrides, "--gpu-gb", gigabytes)
    assert code == 2
    assert "needs" in err
    assert f"GPU of {gigabytes} GB" in err
    advice = re.search(r"what would fit: (.*)", err)
    assert advice is not None
    assert helps in advice[1]
    # and it is true
    first = next(option for option in advice[1].split("; or ") if helps in option).split()
    assert doctor(LARGE, *overrides, *first, "--gpu-gb", gigabytes, "--no-probe")[0] == 0


def test_what_nothing_can_save_is_said_so(doctor):
    code, _, err = doctor(LARGE, "--gpu-gb", "3")
    assert code == 2
    assert "a larger GPU or a smaller model" in err


def test_the_built_in_model_is_timed_here(doctor):
    raw = {"name": "tiny", "benchmark": "fcit-mini-short", "federation": {"rounds": 1, "clients_per_round": 1}}
    code, out, err = doctor({**raw, "training": {"batch_size": 2}, "evaluation": {"batch_size": 2}})
    assert code == 0, err
    assert "measured here" in out
    assert "records at a time" in out
    assert re.search(r"training on [\d,]+ records, 1 worker", out)


def test_a_gpu_that_others_use_is_no_traceback(doctor, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")

    monkeypatch.setattr("fcit.doctor.timing.measured", full)
    raw = {"name": "tiny", "benchmark": "fcit-mini-short", "training": {"batch_size": 2}}
    code, _, err = doctor(raw)
    assert code == 2
    assert "memory ran out when a step was timed (CUDA out of memory. Tried to allocate 2.00 GiB.)" in err
    assert "--no-probe" in err


def test_an_unknown_model_names_the_download(doctor):
    raw = {**LARGE, "backbone": {**LARGE["backbone"], "model": "someone/else"}}
    code, _, err = doctor(raw, "--gpu-gb", "24")
    assert code == 2
    assert "hf download someone/else" in err


def test_devices_by_name():
    assert peak_of("NVIDIA H200") == (989.0, 4.8)
    assert peak_of("NVIDIA GH200 480GB") == (989.0, 4.0)
    assert peak_of("NVIDIA A100-SXM4-80GB") == (312.0, 1.9)
    assert peak_of("NVIDIA L40S") == (362.0, 0.86)
    assert peak_of("NVIDIA L4") == (121.0, 0.3)
    assert peak_of("Own") is None
    assert device_of("cuda", 24, 0).memory == 24 * 2**30
    assert not device_of("cuda", 24, 0).here
    assert device_of("cpu", None, 2).here
    assert device_of("cpu", None, 2).peak == 2 * core_rate()
    assert 1e9 < core_rate() < 1e13  # FLOP/s


def test_the_runs_own_texts_are_timed(monkeypatch):
    """Not texts of 110 tokens and answers of 32: the mini world's are several times shorter, and so was the run."""
    config = configuration.parse(
        {
            "benchmark": "fcit-mini-short",
            "federation": {"rounds": 3, "clients_per_round": 2},
            "evaluation": {"batch_size": 4},
            "training": {"batch_size": 4},
        }
    )
    benchmark = open_benchmark(config)
    benchmark.prepare()
    work = timing.counted(benchmark, config)
    shards = [[len(benchmark.shard(k, task)) for k in range(50)] for task in range(4)]
    # 3 rounds of 2 of 50 clients in each of four stages
    assert work.records == pytest.approx(sum(3 * 2 * sum(sizes) / 50 for sizes in shards))
    # the tests of 1, 2, 3 and 4 tasks
    assert work.questions == sum(len(benchmark.test(n)) * (4 - i) for i, n in enumerate(benchmark.evaluation(3)))
    generated, trained = [], []
    generate, loss = Backbone.generate, Backbone.loss
    monkeypatch.setattr(Backbone, "generate", lambda s, q, f, n: generated.append(n) or generate(s, q, f, n))
    monkeypatch.setattr(Backbone, "loss", lambda s, e, f: trained.extend(len(x.targets) for x in e) or loss(s, e, f))
    speed = timing.measured(config, Lengths(), 4, 4, work)
    assert speed.record > 0
    assert speed.question > 0
    assert speed.image > 0
    assert "own texts" in speed.known
    assert max(trained) < 16
    assert max(generated) < 16


def test_a_server_update_takes_as_many_updates_as_its_buffer_holds():
    """25 of one client each are 5 rounds of 5."""
    records = []
    for more in ({"federation": {"rounds": 5}}, {"federation": {"rounds": 25, "mode": "async"}}):
        late = {"devices": {"profile": "lognormal"}, "asynchronous": {"rule": "fedasync"}} if len(records) else {}
        benchmark = open_benchmark(config := configuration.parse({"benchmark": "fcit-mini-short", **more, **late}))
        benchmark.prepare()
        records.append(timing.counted(benchmark, config).records)
    assert records[1] == pytest.approx(records[0])


def test_a_method_that_does_not_train_is_not_charged_for_it():
    config = configuration.parse({"benchmark": "fcit-mini-short", "method": "zero_shot"})
    benchmark = open_benchmark(config)
    benchmark.prepare()
    assert timing.counted(benchmark, config).records == 0


def test_extra_rounds_are_counted():
    """In three of four stages two clients train for 5 epochs on at most 2, 3 and 4 times 7 records."""
    options = {"name": "mrlora", "records": 7, "router_epochs": 5}
    parts = []
    for method in (options, {"name": "mrlora", "router": "tokens"}):
        config = configuration.parse(
            {"benchmark": "fcit-mini-short", "method": method, "federation": {"clients_per_round": 2}}
        )
        benchmark = open_benchmark(config)
        benchmark.prepare()
        parts.append(timing.counted(benchmark, config).records)
    assert parts[0] - parts[1] == pytest.approx(2 * 5 * 7 * (2 + 3 + 4))


def test_clients_that_answer_for_themselves_are_each_timed():
    """Four clients answer all four data sets after every one of four stages, the untouched model once before."""
    config = configuration.parse(
        {
            "benchmark": "fcit-mini-short",
            "method": "finetune",
            "factors": "fedsa",
            "evaluation": {"clients": 4, "unseen": True},
        }
    )
    benchmark = open_benchmark(config)
    benchmark.prepare()
    tests = sum(len(benchmark.test(name)) for name in benchmark.evaluation(3))
    assert timing.counted(benchmark, config).questions == (1 + 4 * 4) * tests


@pytest.mark.parametrize(("factors", "rounds", "models"), [("separate", 3 + 1, 3), ("flora", 3, 2), ("fedsa", 3, 2)])
def test_models_of_single_clients_are_timed(factors, rounds, models):
    """After two of three stages two clients train alone for three rounds, and once more on the run's model."""
    personal = {"clients": 2, "share": 0.2, "most": 5, "alone": 3}
    config = configuration.parse(
        {"method": "finetune", "factors": factors, "evaluation": {"when": [2, 3], "personal": personal}}
    )
    benchmark = SimpleNamespace(stages=[[0, 0], [1, 1], [1, 2]], tasks=[["a"], ["b"], ["c"]])
    means = {0: (40.0, []), 1: (80.0, []), 2: (8.0, [])}  # records that are trained on, four fifths of a shard
    method = registry.resolve("method", "finetune")(config)
    own = list(timing._personal(benchmark, config, method, means))
    assert [name for _, _, name in own] == ["b", "b", "c"]
    assert [part.records for part, _, _ in own] == [2 * rounds * 80, rounds * 80, rounds * 8]
    assert [count for _, count, _ in own] == [2 * models * 5, models * 5, models * 2]  # 20, or at most 5, and 2
    pooled = registry.resolve("method", "joint")(config)
    assert not list(timing._personal(benchmark, config, pooled, means))


@pytest.mark.parametrize(
    ("method", "count"), [("finetune", 1), ("opcm", 1), ("clmoe", 1), ("olora", 4), ("disco", 4), ("hide", 4)]
)
def test_subspaces_at_the_end(method, count):
    from fcit.doctor.command import _subspaces

    assert _subspaces(configuration.parse({"method": method, "benchmark": "fcit-mini-short"})) == count


@pytest.mark.parametrize(
    ("method", "looks"), [("disco", False), ({"name": "disco", "token": "both"}, True), ("hide", True)]
)
def test_which_methods_look_at_pictures_to_route(method, looks):
    assert estimate.sees(configuration.parse({"method": method})) is looks


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("keeplora", ["main directions of the weights", "protected directions", "earlier subspaces"]),
        ("sefe", ["protected entries", "earlier subspaces"]),
        ("ewc", ["Fisher information and anchor", "what clients keep, on disk"]),
        ("opcm", ["what is merged"]),
        ("finetune", []),
    ],
)
def test_what_a_method_keeps_is_in_the_tables(doctor, method, said):
    code, out, err = doctor({**LARGE, "method": method}, "--gpu-gb", "141", "--no-probe")
    assert code == 0, err
    assert [part for part in said if part not in out] == []
    assert ("what clients keep" in out) == (method not in ("opcm", "finetune"))


def test_the_state_of_a_federated_optimiser_is_counted():
    """SCAFFOLD: a variate of everything at the server and at a client, two copies of the slot in training."""
    sizes = []
    for name in ("fedavg", "scaffold", "fedadam"):
        config = configuration.parse({**LARGE, "fedopt": name})
        shape = shape_of(config.backbone, config.adapter.targets)
        whole = 4 * (3 * shape.adapter(config.adapter.rank) + shape.projector)
        sizes.append(
            (
                sum(estimate.server_memory(config, shape, 3).values()) / whole,
                estimate.remembered(config, shape, 3) / config.federation.clients / whole,
                sum(estimate.memory(config, shape, 3, 1, Lengths()).training.values()) / 4,
            )
        )
    plain, scaffold, adam = sizes
    assert (scaffold[0] - plain[0], scaffold[1] - plain[1]) == pytest.approx((1, 1))
    assert scaffold[2] - plain[2] == pytest.approx(2 * estimate.trained_numbers(config, shape))
    assert (adam[0] - plain[0], adam[1], adam[2]) == pytest.approx((2, 0, plain[2]))


@pytest.mark.parametrize(
    ("changes", "updates"),
    [
        ({"federation": {"wire": "int8", "rounds": 4}}, 1),
        ({"federation": {"top_k": 0.1, "rounds": 4}, "setting": "heterogeneous"}, 4),
        ({"federation": {"wire": "bfloat16"}, "factors": "svd", "method": "finetune"}, 0),
        ({"federation": {"wire": "float32"}}, 0),
    ],
)
def test_what_updates_lack_is_kept_by_clients(changes, updates):
    config = configuration.parse({**LARGE, **changes})
    shape = shape_of(config.backbone, config.adapter.targets)
    kept = estimate.remembered(config, shape, 3) / config.federation.clients
    assert kept == updates * 4 * estimate.trained_numbers(config, shape)


@pytest.mark.parametrize(("factors", "each", "own"), [("flora", 40, 8), ("fedex", 32, 0), ("svd", 0, 0)])
def test_pieces_of_a_stage_are_counted(factors, each, own):
    """Five clients of rank 8 and three rounds: the server has all pieces of a stage, a client those before its last."""
    config = configuration.parse({**LARGE, "method": "finetune", "factors": factors, "federation": {"rounds": 3}})
    shape, what = shape_of(config.backbone, config.adapter.targets), f"pieces of a stage (factors: {factors})"
    assert shape.products(each) == shape.adapter(each)  # far from a layer's full rank
    at_client = 4 * shape.adapter(2 * each + own)
    assert estimate.remembered(config, shape, 1) == at_client * config.federation.clients
    assert estimate.memory(config, shape, 1, 1, Lengths()).training.get(what, 0) == at_client
    assert estimate.server_memory(config, shape, 1).get(what, 0) == 4 * shape.adapter(3 * each + own)


@pytest.mark.parametrize(("factors", "each"), [("separate", 0), ("svd", 1), ("hlora", 1), ("flora", 1), ("fedex", 1)])
def test_factors_that_wait_to_be_multiplied_are_counted(factors, each):
    """The server has them of all five updates of a round at a time; sums are of any number."""
    config = configuration.parse({**LARGE, "method": "finetune", "factors": factors})
    shape = shape_of(config.backbone, config.adapter.targets)
    held = estimate.server_memory(config, shape, 1).get(f"factors of a round's updates (factors: {factors})", 0)
    assert held == each * 4 * shape.adapter(5 * config.adapter.rank)


def test_factors_that_stay_with_clients_are_counted():
    config = configuration.parse({**LARGE, "method": "finetune", "factors": "fedsa"})
    shape = shape_of(config.backbone, config.adapter.targets)
    columns = config.adapter.rank * sum(outer for _, outer in shape.adapted)
    assert estimate.remembered(config, shape, 3) == config.federation.clients * 4 * 3 * columns


def test_data_of_several_runs_are_counted_once(monkeypatch):
    counted = []
    monkeypatch.setattr("fcit.doctor.command._data", lambda config, here: counted.append(config) or Data())
    estimates = Estimates()
    for method in ("finetune", "disco", "ewc", "mrlora"):
        config = configuration.parse({"method": method, "benchmark": "fcit-mini-short"})
        assert estimates.of(config) is None  # without data
    assert [config.method["name"] for config in counted] == ["finetune", "mrlora"]  # whose extra rounds count
    estimates.of(configuration.parse({"benchmark": "fcit-mini-short", "seed": 1}))
    assert len(counted) == 3


def test_a_piece_has_no_more_than_the_rank_of_its_layer():
    shape = shape_of(configuration.parse({}).backbone, configuration.parse({}).adapter.targets)
    assert shape.products(10_000) == sum(min(pair) * sum(pair) for pair in shape.adapted)


def test_token_gates_are_part_of_a_subspace():
    sizes = []
    for method in ({"name": "moelora", "experts": 4}, "finetune"):
        config = configuration.parse({**LARGE, "method": method})
        shape = shape_of(config.backbone, config.adapter.targets)
        sizes.append(estimate.subspace(config, shape))
    assert sizes[0] - sizes[1] == 4 * 32 * (2 * 4096 + 11008)


@pytest.mark.parametrize("method", ["finetune", "moelora", "smolora"])
def test_a_subspace_has_as_many_numbers_as_the_real_one(method):
    config = configuration.parse({"method": method, "backbone": BACKBONE})
    kind = registry.resolve("method", method)(config)
    adapters = Adapters(Backbone(config.backbone), config.adapter, kind.layout)
    real = sum(math.prod(shape) for name, shape in adapters.shapes.items() if not is_projector(name))
    shape = shape_of(config.backbone, config.adapter.targets)
    assert estimate.subspace(config, shape) == real
    assert shape.identity_width == adapters.backbone.identity.width()


def test_what_smolora_keeps_is_a_feature_for_each_task():
    config = configuration.parse({"method": "smolora", "benchmark": "fcit-mini-short"})
    shape = shape_of(config.backbone, config.adapter.targets)
    held = estimate.what_is_held(config, shape)
    assert list(held.server.values()) == [8 * 4 * shape.identity_width]
    assert held.client == {}


def test_the_main_directions_of_a_7b_model_are_gigabytes():
    """gate_proj and up_proj are 11008 x 4096, down_proj is 4096 x 11008: at most 0.6 x 4096 directions of each."""
    config = configuration.parse({**LARGE, "method": "keeplora"})
    held = estimate.what_is_held(config, shape_of(config.backbone, config.adapter.targets))
    assert held.device["main directions of the weights"] == 4 * 32 * 2458 * (2 * 4096 + 11008)


def test_the_site_says_how_many_stages_there_are():
    sites = {"stream": "site", "federation": {"stages": 3}}
    assert [estimate.stages(configuration.parse(raw)) for raw in (sites, {"benchmark": "ucit"})] == [3, 6]
