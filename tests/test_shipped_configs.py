"""The configurations of the published benchmark: they parse, say how they are run, and hold the official values."""

from pathlib import Path

import pytest

from fcit import config
from fcit.data.spec import read_spec
from fcit.doctor.fitting import within
from fcit.models import estimate
from fcit.models.estimate import ANSWER, Lengths
from fcit.models.shapes import shape_of
from tests.helpers.cases import check_each

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("configs/fcit/*.yaml"), *ROOT.glob("configs/24gb/*.yaml")])
NAMES = [str(f.relative_to(ROOT)) for f in FILES]
GIVEN = ["data_root=/data/fcit"]


def test_there_are_all_settings():
    names = {
        f"configs/fcit/{k}-{s}-{m}.yaml" for k in ("task", "cap") for s in ("hom", "het") for m in ("finetune", "disco")
    }
    assert names <= set(NAMES)
    assert {"configs/24gb/disco.yaml", "configs/24gb/finetune.yaml"} <= set(NAMES)


def test_a_configuration_says_its_command_and_what_it_is():
    check_each(NAMES, says_its_command_and_what_it_is)


def says_its_command_and_what_it_is(name: str) -> None:
    assert (ROOT / name).read_text().splitlines()[0] == f"# fcit run {name} data_root=/data/fcit"
    run = config.load(ROOT / name, GIVEN)
    kind, *rest = Path(name).stem.split("-")
    if "24gb" not in name:
        assert run.name == Path(name).stem
        assert run.benchmark == f"fcit-{kind}"
        assert run.setting == {"hom": "homogeneous", "het": "heterogeneous"}[rest[0]]
        spec = read_spec(run.benchmark)
        assert len(spec.tasks) == {"task": 8, "cap": 4}[kind]
        assert spec.heterogeneous
        assert run.evaluation.samples is None
        assert run.data.max_records is None  # no reduced numbers
    else:
        assert run.name == f"24gb-{kind}"
        assert run.evaluation.samples
        assert run.data.max_records
    assert run.method["name"] == Path(name).stem.split("-")[-1]


def test_the_official_values():
    check_each(NAMES, has_the_official_values)


def has_the_official_values(name: str) -> None:
    run = config.load(ROOT / name, GIVEN)
    f, a, t, b = run.federation, run.adapter, run.training, run.backbone
    assert (f.clients, f.clients_per_round, f.rounds, f.sampling, f.beta) == (50, 5, 10, "official", 1.0)
    assert (a.rank, a.alpha, a.dropout, a.projector) == (8, 16, 0.05, "shared")
    assert (t.lr, t.epochs, t.warmup_ratio, t.schedule, t.weight_decay) == (2e-4, 1, 0.03, "trainer", 0)
    assert t.max_grad_norm is None  # the official DeepSpeed configuration clips nothing
    assert t.batch_size == (64 if "/cap-" in name else 128)
    assert (t.micro_batch, t.checkpointing) == ("auto", "auto")
    assert (b.dtype, b.conversation, b.pad_to_square, b.max_length) == ("bfloat16", "vicuna_v1", True, 2048)
    assert run.evaluation.max_new_tokens == 128
    assert run.fedopt["name"] == "fedavg"
    if run.method["name"] == "disco":
        assert (run.method["threshold"], run.method["temperature"], run.method["token"]) == (0.9, 0.05, "text")


def test_two_methods_differ_in_the_method_only():
    for setting in ("task-hom", "task-het", "cap-hom", "cap-het"):
        both = [config.load(ROOT / f"configs/fcit/{setting}-{m}.yaml", GIVEN) for m in ("disco", "finetune")]
        same = [run.model_dump(exclude={"name", "method"}) for run in both]
        assert same[0] == same[1]


MODELS = sorted(str(f.relative_to(ROOT)) for f in ROOT.glob("configs/models/*.yaml"))
#: Words of the largest image that is let through, by hand from the published configuration, and all parameters.
LARGEST = {"qwen3-vl-4b": (512, 4.44e9), "internvl3-2b": (7 * 256, 2.09e9)}


def test_newer_models_have_a_configuration_each():
    assert [Path(name).stem.removesuffix("-disco") for name in MODELS] == sorted(LARGEST)


def test_newer_models_run_the_published_benchmark_on_24_gb():
    check_each(MODELS, is_the_published_run_and_fits)


def is_the_published_run_and_fits(name: str) -> None:
    """Sizes by the published configuration on torch's meta device: neither weights nor hub are needed."""
    assert (ROOT / name).read_text().splitlines()[0] == f"# fcit run {name} data_root=/data/fcit"
    run = config.load(ROOT / name, GIVEN)
    official = config.load(ROOT / "configs/fcit/task-hom-disco.yaml", GIVEN)
    assert run.name == Path(name).stem
    parts = {"name", "backbone", "evaluation"}
    assert run.model_dump(exclude=parts) == official.model_dump(exclude=parts)
    assert (run.backbone.image_size, run.backbone.conversation) == ("native", "template")
    shape = shape_of(run.backbone, run.adapter.targets)
    words, parameters = LARGEST[run.name.removesuffix("-disco")]
    assert shape.language + shape.projector + shape.vision.parameters == pytest.approx(parameters, rel=0.005)
    assert len(shape.adapted) == 3 * shape.layers
    # The longest record and the largest image that a run takes; eight subspaces at the end.
    lengths = Lengths(run.backbone.max_length - words - ANSWER, ANSWER, words)
    room = 24 * 2**30
    decided = estimate.planned(estimate.with_batches(run, shape, 8, room, lengths), shape, 8, within(room), lengths)
    assert estimate.largest_micro(decided, shape, 8, within(room), lengths) >= 4
    assert decided.evaluation.at_once >= 16


CENTRALISED = sorted(file for name in ("ucit", "mllm-dcl", "mllm-acl") for file in ROOT.glob(f"configs/{name}/*.yaml"))
DOMAINS = [1, 3, 1, 2, 1]
#: Hyper-parameters of MCITlib (v1; KeepLoRA, replay, SMoLoRA and the ability part: v3; SAME: the rank of its own
#: experts): rank, batch, rate and epochs.
VALUES = {
    ("ucit", "finetune"): (16, 64, 2e-4, 1),
    ("ucit", "olora"): (96 // 6, 64, 2e-4, 1),
    ("ucit", "moelora"): (18, 64, 2e-4, 1),
    ("ucit", "disco"): (96 // 6, 64, 2e-4, 1),
    ("ucit", "hide"): (96 // 6, 64, 2e-4, 1),
    ("ucit", "sefe"): (16, 64, 2e-4, 1),
    ("ucit", "modalprompt"): (16, 8 * 24, 2e-4, 10),
    ("ucit", "clmoe"): (96, 64, 2e-4, 1),
    ("ucit", "keeplora"): (16, 64, 2e-4, 1),
    ("ucit", "replay"): (16, 64, 2e-4, 1),
    ("ucit", "same"): (48, 64, 2e-4, 1),
    ("ucit", "mrlora"): (32, 64, 2e-4, 1),
    ("ucit", "smolora"): (96, 64, 2e-4, 1),
    ("ucit", "proglora"): (96 // 6, 64, 2e-4, 1),
    ("mllm-dcl", "finetune"): (32, 64, 2e-5, DOMAINS),
    ("mllm-dcl", "olora"): (160 // 5, 64, 2e-5, DOMAINS),
    ("mllm-dcl", "moelora"): (35, 64, 2e-5, DOMAINS),
    ("mllm-dcl", "disco"): (160 // 5, 64, 2e-5, DOMAINS),
    ("mllm-dcl", "hide"): (160 // 5, 64, 2e-5, DOMAINS),
    ("mllm-dcl", "sefe"): (32, 64, 2e-5, DOMAINS),
    ("mllm-dcl", "modalprompt"): (32, 8 * 24, 2e-4, 10),
    ("mllm-dcl", "clmoe"): (160, 64, 2e-5, DOMAINS),
    ("mllm-dcl", "keeplora"): (32, 8 * 2 * 2, 2e-4, DOMAINS),
    ("mllm-dcl", "replay"): (32, 4 * 2 * 2, 2e-4, DOMAINS),
    ("mllm-dcl", "same"): (40, 64, 2e-5, DOMAINS),
    ("mllm-dcl", "mrlora"): (32, 64, 2e-5, DOMAINS),
    ("mllm-dcl", "smolora"): (256, 4 * 2 * 2, 2e-4, DOMAINS),
    ("mllm-dcl", "proglora"): (160 // 5, 64, 2e-5, DOMAINS),
    ("mllm-acl", "finetune"): (32, 4 * 2 * 2, 2e-4, [1, 1, 1, 3]),
    ("mllm-acl", "olora"): (128 // 4, 4 * 2 * 2, 2e-4, [1, 1, 1, 3]),
    ("mllm-acl", "moelora"): (32, 4 * 2 * 2, 2e-4, [1, 1, 1, 3]),
    ("mllm-acl", "disco"): (128 // 4, 4 * 2 * 2, 2e-4, [1, 1, 1, 3]),
}
#: And of their methods, where they are not the rank.
OPTIONS = {
    "mrlora": {"router": "generate", "records": 20, "router_epochs": 30, "router_lr": 2e-4, "start": "backbone"},
    "hide": {"fusion": "cross", "temperature": 0.1},
    "sefe": {"keys": 0.02, "strength": 2500},
    "modalprompt": {"choose": 1, "pull": 1.0},
    "smolora": {"experts": 8},
    "proglora": {"hidden": 100},
    "keeplora": {"principal": 0.6, "protect": 0.99, "samples": 0.2},
}


def test_every_centralised_configuration_has_its_values():
    assert {(file.parent.name, file.stem) for file in CENTRALISED} == set(VALUES)


def test_the_centralised_values():
    check_each([str(f.relative_to(ROOT)) for f in CENTRALISED], has_the_centralised_values)


def has_the_centralised_values(name: str) -> None:
    benchmark, method = Path(name).parent.name, Path(name).stem
    command = (ROOT / name).read_text().splitlines()[0].removeprefix("# fcit run ").split()
    run = config.load(ROOT / command[0], command[1:])
    rank, batch, rate, epochs = VALUES[benchmark, method]
    assert command[0] == name
    assert run.name == f"{benchmark}-{method}"
    assert (run.benchmark, run.setting, run.method["name"]) == (benchmark, "centralised", method)
    assert (run.adapter.rank, run.adapter.alpha) == (rank, 2 * rank)
    assert (run.training.batch_size, run.training.lr, run.training.epochs) == (batch, rate, epochs)
    assert {key: run.method[key] for key in OPTIONS.get(method, {})} == OPTIONS.get(method, {})


def test_parts_of_a_whole_are_as_many_as_tasks():
    for benchmark, tasks, prompt, kept in (("ucit", 6, 10, 120), ("mllm-dcl", 5, 20, 100)):
        methods = {
            m: config.load(ROOT / f"configs/{benchmark}/{m}.yaml", GIVEN).method for b, m in VALUES if b == benchmark
        }
        assert methods["clmoe"]["experts"] == methods["moelora"]["experts"] == tasks
        assert methods["modalprompt"]["length"] == prompt
        assert methods["replay"]["buffer"] == kept == 20 * tasks
