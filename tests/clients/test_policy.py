"""What a site does of an ordered configuration."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from clients.site import policy
from fcit import config as configuration
from fcit.config import site as sites
from fcit.config.site import Site
from fcit.errors import ConfigError, Refused
from fcit.federation.messages import EvaluateOrder, ProbeOrder, TrainOrder


def site(folder: Path, **settings) -> Site:
    path = folder / "SITE.yaml"
    path.write_text(yaml.safe_dump({"name": "0", **settings}))
    return sites.load(path)


def text(**changes) -> str:
    """As a server would write it, without its own checks."""
    return yaml.safe_dump({"benchmark": "fcit-mini-short", "method": "finetune", **changes})


def done(order: str, at: Site) -> configuration.RunConfig:
    return configuration.parse(yaml.safe_load(policy.limited(order, at)))


@pytest.fixture
def evil(tmp_path, monkeypatch) -> Path:
    """A file and module that leave a mark when they are imported."""
    mark = tmp_path / "imported"
    (tmp_path / "evil_part.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return mark


@pytest.mark.parametrize("name", ["{}/evil_part.py:Evil", "evil_part:Evil"])
@pytest.mark.parametrize("key", ["method", "fedopt", "benchmark", "trackers"])
@pytest.mark.parametrize("form", ["short", "long"])
def test_code_in_an_order_is_refused_before_it_is_looked_at(tmp_path, evil, key, name, form):
    name = name.format(tmp_path)
    if form == "long":
        value = {"method": {"name": name, "x": 1}, "fedopt": {"name": name}, "trackers": ["tensorboard", name]}
    else:
        value = {"trackers": name}
    with pytest.raises(Refused, match=f"^{key}: .*names code; a site runs only fcit's own: "):
        policy.limited(text(**{key: value.get(key, name)}), site(tmp_path))
    assert not evil.exists()


def test_a_family_of_models_is_fcits_own(tmp_path, evil):
    with pytest.raises(Refused, match=r"^backbone.family: .*names code; a site runs only fcit's own: auto, generic$"):
        policy.limited(text(backbone={"family": "evil_part:Evil"}), site(tmp_path))
    assert not evil.exists()


def test_a_trainer_of_the_runs_is_fcits_own_and_one_of_the_sites_is_allowed_by_the_run(tmp_path, evil):
    named = text(training={"trainer": "evil_part:make"})
    with pytest.raises(Refused, match=r"^training.trainer: .*names code; a site runs only fcit's own: hf$"):
        policy.limited(named, site(tmp_path))
    assert not evil.exists()
    assert done(text(training={"trainer": "hf"}), site(tmp_path)).training.trainer == "hf"
    (tmp_path / "mine.py").write_text("def make(task):\n    return None\n")
    mine = site(tmp_path, trainer="./mine.py:make")
    with pytest.raises(Refused, match=r"trainer: SITE.yaml says .*mine.py:make, the run has sites.trainer: false"):
        policy.limited(text(), mine)
    assert done(text(sites={"trainer": True}), mine).training.trainer == f"{tmp_path / 'mine.py'}:make"


def test_paths_in_an_order_are_not_opened(tmp_path):
    for folder in ("model", "clip"):
        (tmp_path / folder).mkdir()
    own = {"name": "own", "datasets": {"a": {"train": "train.json", "test": "test.json"}}, "tasks": [["a"]]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    mine = site(tmp_path, model="model", identity="clip", benchmark="own.yaml", data_root="data")
    ordered = text(
        benchmark="/server/bench.yaml",
        data_root="/server/data",
        output="/server/runs",
        tensorboard=True,
        backbone={"model": "/server/llava", "identity": "/server/clip"},
    )
    config = done(ordered, mine)
    assert config.benchmark == str(tmp_path / "own.yaml")
    assert config.data_root == str(tmp_path / "data")
    assert config.backbone.model == str(tmp_path / "model")
    assert config.backbone.identity == str(tmp_path / "clip")
    assert "/server" not in configuration.dump(config)
    assert not config.tensorboard


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"benchmark": "/server/bench.yaml"}, "benchmark: '/server/bench.yaml' is not shipped"),
        ({"benchmark": "../benchmarks/fcit-mini-short"}, "benchmark: .* is not shipped"),
        ({"backbone": {"model": "llava-hf/llava-1.5-7b-hf"}}, "backbone.model: 'llava-hf/llava-1.5-7b-hf' is not"),
        ({"backbone": {"model": "/server/llava"}}, "backbone.model: '/server/llava' is not shipped"),
        ({"backbone": {"identity": "/server/clip"}}, "backbone.identity: '/server/clip' is ordered"),
        ({"stream": "site"}, "stream: the run has 'site', SITE.yaml says 'benchmark'"),
    ],
)
def test_what_a_site_has_no_file_for_is_refused(tmp_path, order, said):
    with pytest.raises(Refused, match=said):
        policy.limited(text(**order), site(tmp_path))


def test_a_model_of_the_sites_own_needs_its_identity_encoder(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(Refused, match="identity"):
        policy.limited(text(), site(tmp_path, model="model"))
    with pytest.raises(ConfigError, match="no such folder"):
        policy.limited(text(), site(tmp_path, model="model", identity="nowhere"))


def test_a_shipped_benchmark_is_taken_by_its_name(tmp_path):
    assert done(text(), site(tmp_path, benchmark="own.yaml")).benchmark == "fcit-mini-short"


def test_held_out_benchmarks_are_shipped_ones_with_the_files_of_the_site(tmp_path):
    entries = [{"benchmark": "mini-general", "data_root": "/etc"}, {"benchmark": "fcit-task", "data_root": "/etc"}]
    order = text(evaluation={"held_out": entries})
    held_out = done(order, site(tmp_path, data_root="data")).evaluation.held_out
    assert [entry.data_root for entry in held_out] == [None, str(tmp_path / "data")]
    with pytest.raises(Refused, match=r"^evaluation.held_out: '/etc/own.yaml' is not shipped \("):
        policy.limited(text(evaluation={"held_out": ["/etc/own.yaml"]}), site(tmp_path))


def test_a_site_can_demand_that_updates_are_masked(tmp_path):
    mine = site(tmp_path, secure_aggregation="required")
    with pytest.raises(Refused, match=r"^secure_aggregation: SITE\.yaml says required, and the run has privacy"):
        policy.limited(text(), mine)
    assert done(text(privacy={"secure_aggregation": "on"}), mine).privacy.secure
    assert not done(text(), site(tmp_path)).privacy.secure


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ({"neighbours": 4}, r"the run has privacy\.neighbours: 4, with which"),
        ({"min_group": 3}, r"min_group: SITE\.yaml says 4, and the run has privacy\.min_group: 3"),
    ],
)
def test_a_site_that_demands_masks_says_among_how_many(tmp_path, privacy, said):
    mine = site(tmp_path, secure_aggregation="required", min_group=4)
    wanted = {"secure_aggregation": "on", "min_group": 4}
    with pytest.raises(Refused, match=said):
        policy.limited(text(privacy={**wanted, **privacy}), mine)
    assert done(text(privacy=wanted), mine).privacy.min_group == 4


def test_among_how_many_says_nothing_without_the_demand(tmp_path):
    with pytest.raises(ConfigError, match="min_group: 4 has no effect without secure_aggregation: required"):
        site(tmp_path, min_group=4)


def test_an_order_cannot_ask_for_sums_of_fewer_than_three(tmp_path):
    with pytest.raises(ConfigError, match=r"privacy\.min_group: .*greater than or equal to 3, got 2"):
        policy.limited(text(privacy={"secure_aggregation": "on", "min_group": 2}), site(tmp_path))


@pytest.mark.parametrize(
    ("settings", "sites_section", "said"),
    [
        ({"dtype": "bfloat16"}, {}, "dtype: SITE.yaml says bfloat16, the run is float32 and allows float32"),
        ({"micro_batch": 4}, {"micro_batch": False}, "micro_batch: SITE.yaml says 4"),
        ({"checkpointing": True}, {"checkpointing": False}, "checkpointing: SITE.yaml says true"),
    ],
)
def test_what_the_run_does_not_allow_is_refused_with_both_values(tmp_path, settings, sites_section, said):
    with pytest.raises(Refused, match=said):
        policy.limited(text(sites=sites_section), site(tmp_path, **settings))
    # and a site that says nothing goes along with everything
    assert done(text(sites=sites_section), site(tmp_path))


def test_a_site_chooses_how_it_computes(tmp_path):
    mine = site(tmp_path, dtype="bfloat16", device="cuda:1", threads=3, micro_batch=2, max_bad_share=0.2)
    config = done(text(sites={"dtypes": ["bfloat16"]}, backbone={"threads": 8}), mine)
    assert (config.backbone.dtype, config.backbone.device, config.backbone.threads) == ("bfloat16", "cuda:1", 3)
    assert config.max_bad_share == 0.2
    assert policy.terms(mine).how(config) == {"dtype": "bfloat16", "micro_batch": 2, "checkpointing": False}
    # as ordered where the site says nothing
    assert done(text(backbone={"dtype": "float16", "threads": 8}), site(tmp_path)).backbone.threads == 8
    # a plain simulation has nothing to tell, one that saves memory has
    assert policy.Terms().how(configuration.parse({})) == {}
    saving = configuration.parse({"training": {"micro_batch": "auto", "checkpointing": True}})
    assert policy.Terms().how(saving) == {"micro_batch": "auto", "checkpointing": True}


def test_an_order_starts_no_compiler_and_no_number_of_threads_at_a_site(tmp_path):
    order = text(training={"compile": "on"}, evaluation={"compile": "on"}, backbone={"loader_threads": 64})
    config = done(order, site(tmp_path))
    assert config.training.compile == config.evaluation.compile == "auto"
    assert config.backbone.loader_threads is None


def test_a_site_overrides_how_the_run_saves_memory(tmp_path):
    run = text(training={"micro_batch": "auto", "checkpointing": True})
    asked = done(run, site(tmp_path)).training
    assert (asked.micro_batch, asked.checkpointing) == ("auto", True)
    mine = done(run, site(tmp_path, micro_batch=2, checkpointing=False)).training
    assert (mine.micro_batch, mine.checkpointing) == (2, False)
    # what the run says itself is no choice of the site's
    same = text(training={"micro_batch": "auto"}, sites={"micro_batch": False})
    assert done(same, site(tmp_path, micro_batch="auto")).training.micro_batch == "auto"


@pytest.mark.parametrize("value", [0, -1, True, "some", 2.0])
def test_a_micro_batch_is_a_number_or_auto(tmp_path, value):
    with pytest.raises(ConfigError, match=r"training\.micro_batch: .*must be a whole number from 1 on, auto, or null"):
        done(text(training={"micro_batch": value}), site(tmp_path))


@pytest.mark.parametrize("order", ["- a\n- b", "a: [", "a: &a [*a]", "x: 1", "seed: no"])
def test_what_is_no_configuration_is_said_so(tmp_path, order):
    with pytest.raises(ConfigError):
        policy.limited(order, site(tmp_path))


def test_aliases_that_stand_for_billions_are_not_followed(tmp_path):
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(ConfigError):
        policy.limited(bomb, site(tmp_path))


def test_predictions_stay_where_the_test_records_are_the_sites_own(tmp_path):
    task = {"train": "a.json", "test": "b.json"}
    mine = site(tmp_path, stream="site", tasks=[task])
    with pytest.raises(Refused, match="predictions stay"):
        policy.check_order(
            EvaluateOrder(
                config=text(), dataset="d", first=0, last=1, task="", names=[], knowledge={}, tensors={}, run="r"
            ),
            mine,
        )
    policy.check_order(ProbeOrder(config=text(), run="r"), mine)


PRIVATE = {"record_dp": "on", "record_epsilon": 8}


@pytest.mark.parametrize("limit", [{"max_record_epsilon": 8}, {"min_record_noise": 0.5}])
def test_a_site_that_protects_its_records_does_no_other_orders(tmp_path, limit):
    mine = site(tmp_path, **limit)
    (key, value), *_ = limit.items()
    with pytest.raises(Refused, match=rf"record_dp: 'off' in this run, SITE\.yaml has {key}: {value}"):
        policy.limited(text(), mine)
    with pytest.raises(Refused, match=rf"reproducible_noise: true, with which the server knows the noise; .* {key}"):
        policy.limited(text(privacy={**PRIVATE, "reproducible_noise": True}), mine)
    assert done(text(privacy=PRIVATE), mine).privacy.records


def test_a_site_keeps_one_account_for_all_runs(tmp_path):
    mine = site(tmp_path, home="home", max_record_epsilon=8, record_delta=1e-6, min_record_noise=0.5)
    terms = policy.terms(mine).records
    assert (terms.max_epsilon, terms.delta, terms.min_noise) == (8, 1e-6, 0.5)
    assert terms.account == tmp_path / "home" / "record-privacy.json"


def test_records_are_not_protected_unless_the_site_says_so(tmp_path):
    assert done(text(), site(tmp_path)).privacy.records is False


def test_a_site_tells_that_a_trainer_of_its_own_trains_and_not_where_it_lies(tmp_path):
    mine = site(tmp_path, trainer="./mine.py:make")
    (tmp_path / "mine.py").write_text("def make(task):\n    return None\n")
    assert policy.terms(mine).how(done(text(sites={"trainer": True}), mine))["trainer"] == "make"


@pytest.mark.parametrize(
    ("ordered", "said"),
    [
        ({}, r"rank: SITE.yaml says 4, the run has 8 for this client and sites.min_rank: null"),
        ({"sites": {"min_rank": 6}}, r"rank: SITE.yaml says 4, the run has 8 for this client sites.min_rank: 6"),
        ({"sites": {"min_rank": 2}}, None),
        ({"adapter": {"ranks": 4}}, None),
    ],
)
def test_a_site_affords_a_rank_within_the_runs_bounds(tmp_path, ordered, said):
    mine = site(tmp_path, rank=4)
    assert policy.terms(mine).rank == 4
    if said is None:
        assert done(text(**ordered), mine).adapter.rank == 8  # of what it is asked with
    else:
        with pytest.raises(Refused, match=said):
            policy.limited(text(**ordered), mine)


def test_an_order_of_a_larger_rank_than_affordable_is_refused(tmp_path):
    plain = {"config": text(), "stage": 0, "round": 0, "client": 0, "shard": "s", "tasks": [], "subspace": "0"}
    for rank in (4, 5):
        factors = {"x.lora_A.weight": np.zeros((rank, 3)), "x.lora_B.weight": np.zeros((2, rank))}
        order = TrainOrder(tensors=factors, run="r", **plain)
        if rank == 4:
            policy.check_order(order, site(tmp_path, rank=4))
            continue
        with pytest.raises(Refused, match=r"rank: the order has factors of rank 5, SITE.yaml says 4"):
            policy.check_order(order, site(tmp_path, rank=4))
