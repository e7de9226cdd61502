"""Configurations: what they say, what is refused, and how that is told."""

import re
from pathlib import Path

import pytest
import yaml

from fcit import config
from fcit.config.kinds import epochs_of
from fcit.data.benchmark import open_benchmark
from fcit.errors import ConfigError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return _write


DISCO = {
    "threshold": 0.9,
    "temperature": 0.05,
    "mix": "softmax",
    "token": "text",
    "empty_slots": 0,
    "min_records": 4,
    "negligible": 0.0,
}


def problems(raw: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.parse(raw)
    return caught.value.problems


def test_held_out_benchmarks_are_names_or_mappings(tmp_path):
    (tmp_path / "own.yaml").touch()
    entries = ["mini-general", "own.yaml", {"benchmark": "fcit-mini-all", "only": ["aokvqa"], "data_root": "d"}]
    given = config.resolve({"evaluation": {"held_out": entries}}, tmp_path, "config").evaluation.held_out
    own, root = str(tmp_path / "own.yaml"), str(tmp_path / "d")
    assert [(e.benchmark, e.only, e.data_root) for e in given] == [
        ("mini-general", None, None),
        (own, None, None),
        ("fcit-mini-all", ["aokvqa"], root),
    ]
    assert config.parse_text(config.dump(config.parse({"evaluation": {"held_out": entries}})), "order")


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"held_out": ["general"]}, "evaluation.held_out.0.benchmark: unknown name 'general'; did you mean 'mini-gen"),
        (
            {"held_out": [{"benchmark": "mini-general", "only": ["x"]}]},
            "evaluation.held_out.0.only: 'mini-general' has ",
        ),
        ({"held_out": ["fcit-mini-all"]}, "both have a data set 'imagenet-r', and what is held out is not trained"),
        (
            {"held_out": ["mini-general", "mini-general"]},
            "evaluation.held_out.1: 'mini-general' and 'mini-general' both",
        ),
        ({"held_out": ["mllm-dcl"]}, "evaluation.held_out.0.data_root: benchmark 'mllm-dcl' reads files; say where"),
        ({"held_out_when": [2, 9]}, "evaluation.held_out_when: [2, 9] names stage 9"),
    ],
)
def test_what_cannot_be_held_out(evaluation, said):
    from fcit.data.benchmark import open_benchmark

    with pytest.raises(ConfigError) as caught:
        open_benchmark(config.parse({"benchmark": "fcit-mini-task", "evaluation": evaluation}))
    assert said in str(caught.value)


def test_questions_alone_are_not_trained():
    from fcit.data.benchmark import open_benchmark

    with pytest.raises(ConfigError, match=r"'mini-general' has questions and no tasks .* evaluation.held_out="):
        open_benchmark(config.parse({"benchmark": "mini-general"}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": {"unseen": True, "when": "final"}}, "evaluation.unseen: true asks"),
        ({"stream": "site", "evaluation": {"unseen": True}}, "evaluation.unseen: true is about tasks of later stages"),
        ({"stream": "site", "evaluation": {"held_out": ["mini-general"]}}, "evaluation.held_out: [mini-general] is"),
        ({"evaluation": {"held_out": [{"name": "mini-general"}]}}, "evaluation.held_out.0.benchmark: must be given"),
        (
            {"evaluation": {"held_out": [{"benchmark": "x", "only": []}]}},
            "evaluation.held_out.0.only: list should have",
        ),
    ],
)
def test_evaluations_that_cannot_be(changes, said):
    assert any(text.startswith(said) for text in problems(changes)), problems(changes)


def test_defaults_are_the_published_setting():
    run = config.parse({})
    assert (run.federation.clients, run.federation.clients_per_round, run.federation.rounds) == (50, 5, 10)
    assert (run.adapter.rank, run.adapter.alpha) == (8, 16.0)
    # what was not said is written out, so that a run folder's configuration is whole
    assert run.method == {"name": "disco", **DISCO}
    assert run.fedopt == {"name": "fedavg"}


def test_a_bare_name_is_short_for_a_part():
    run = config.parse({"method": "finetune", "fedopt": "fedavg"})
    assert run.method == {"name": "finetune"}
    assert run.fedopt == {"name": "fedavg"}


def test_overrides(write):
    file = write("a.yaml", "method: {name: disco, threshold: 0.8}\n")
    run = config.load(file, ["seed=3", "training.lr=1e-3", "method.temperature=0.1", "federation.beta=0.5"])
    assert (run.seed, run.training.lr, run.federation.beta) == (3, 0.001, 0.5)
    assert run.method == {"name": "disco", **DISCO, "threshold": 0.8, "temperature": 0.1}


def test_another_method_drops_the_options_of_the_first(write):
    file = write("a.yaml", "method: {name: disco, threshold: 0.8}\n")
    assert config.load(file, ["method=finetune"]).method == {"name": "finetune"}


def test_override_without_equals_sign(write):
    with pytest.raises(ConfigError, match="must look like key=value"):
        config.load(write("a.yaml", "seed: 1\n"), ["seed"])


def test_unknown_key_suggests_the_nearest():
    (text,) = problems({"federation": {"client": 10}})
    assert text.startswith("federation.client: unknown key")
    assert "'clients'" in text


def test_a_key_without_its_section_is_told_with_it():
    (text,) = problems({"lr": 0.1})
    assert text.startswith("lr: unknown key; did you mean 'training.lr'?")


def test_keys_of_a_section_that_may_be_left_out():
    (text,) = problems({"evaluation": {"personal": {"clientz": 3}}})
    assert text.startswith("evaluation.personal.clientz: unknown key; did you mean 'clients'? (allowed: alone, clients")


@pytest.mark.parametrize("value", ["big", 5])
def test_a_key_of_several_kinds_is_named_as_it_is_written(value):
    """Not ``backbone.image_size.constrained-int``, and other mistakes are told beside."""
    found = problems({"backbone": {"image_size": value}, "federation": {"clients": 1}})
    assert len(found) == 2
    assert re.fullmatch(rf"backbone\.image_size: input .* or input should be 'native', got {value!r}", found[0])
    assert found[1].startswith("federation.clients_per_round: 5 is more than")


def test_targets_are_a_regular_expression():
    (text,) = problems({"adapter": {"targets": "layers.[0"}})
    assert text.startswith("adapter.targets: must be a regular expression (unterminated character set")


def test_a_benchmark_is_no_configuration(write):
    file = write("mine.yaml", "name: mine\ndatasets: {}\ntasks: []\n")
    with pytest.raises(ConfigError, match=r"is a benchmark.*benchmark=.*mine\.yaml"):
        config.load(file)


def test_wrong_type_shows_the_value():
    (text,) = problems({"training": {"lr": "fast"}})
    assert text.startswith("training.lr:")
    assert "'fast'" in text


def test_unknown_method_names_the_nearest():
    (text,) = problems({"method": "disko"})
    assert "'disko'" in text
    assert "did you mean 'disco'" in text


def test_method_options_are_checked():
    (text,) = problems({"method": {"name": "disco", "treshold": 0.9}})
    assert text.startswith("method.treshold: unknown key")
    assert "'threshold'" in text
    (text,) = problems({"method": {"name": "disco", "temperature": 0}})
    assert text.startswith("method.temperature:")


def test_mistakes_are_reported_together():
    found = problems({"seed": -1, "training": {"lr": 0}, "sede": 1, "method": "disko"})
    assert len(found) == 4
    for key in ("seed:", "training.lr:", "sede:", "method:"):
        assert any(text.startswith(key) for text in found)


def test_mistakes_of_different_kinds_are_reported_together():
    found = problems({"seed": -1, "method": {"name": "disco", "treshold": 0.9}, "federation": {"clients": 4}})
    assert len(found) == 3


def test_mistakes_in_file_and_overrides_are_reported_together(write):
    with pytest.raises(ConfigError) as caught:
        config.load(write("a.yaml", "sede: 1\n"), ["training.lr=-1", "nonsense"])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "lr", float("inf")),
        ("federation", "beta", float("inf")),
        ("federation", "clients", True),
        ("training", "lr", float("nan")),
        ("federation", "rounds", 2.5),
        ("backbone", "device", "cudax"),
        ("training", "max_grad_norm", True),
        ("training", "max_grad_norm", 0),
        ("evaluation", "max_new_tokens", True),
    ],
)
def test_values_that_make_no_sense(section, key, value):
    rest = {"clients_per_round": 1} if section == "federation" else {}
    (text,) = problems({section: {**rest, key: value}})
    assert text.startswith(f"{section}.{key}:")


@pytest.mark.parametrize(
    ("federation", "key"),
    [
        ({"clients": 10, "sampling": "official"}, "federation.sampling"),
        ({"clients": 4, "clients_per_round": 5}, "federation.clients_per_round"),
        ({"clients_per_round": 5, "min_updates": 6}, "federation.min_updates"),
        ({"engine": "inlin"}, "federation.engine"),
    ],
)
def test_contradictions(federation, key):
    (text,) = problems({"federation": federation})
    assert text.startswith(key)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"robust": "median"}, "federation.top_k: 0.1 leaves a number out .*choose robust: norm_clip or none"),
        ({"robust": "trimmed_mean"}, "federation.top_k: 0.1 leaves a number out of most updates"),
        ({"factors": "svd"}, "federation.top_k: 0.1 owes the server .*choose factors: separate, alternate or frozen_a"),
    ],
)
def test_what_sparse_updates_do_not_go_with(changes, words):
    (text,) = problems({"federation": {"top_k": 0.1}, "method": "finetune", **changes})
    assert re.match(words, text)
    assert config.parse({"federation": {"wire": "int8"}, "method": "finetune", **changes}).federation.top_k is None


def test_centralised_is_one_client_and_one_round():
    federation = config.parse({"setting": "centralised"}).federation
    assert (federation.clients, federation.clients_per_round, federation.rounds) == (1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"federation": {"clients": 50}}, "setting: 'centralised' has one participant, .* federation.clients=1 "),
        ({"robust": "median"}, "robust: 'median' is about several clients"),
        ({"factors": "svd"}, "factors: 'svd' is about several clients"),
        ({"fedopt": "fedadam"}, "fedopt: 'fedadam' is about several clients"),
        ({"stream": "site"}, "stream: 'site' is about several clients"),
        ({"privacy": {"client_dp": "on", "epsilon": 8}}, "privacy.client_dp: 'on' hides one client among several"),
    ],
)
def test_what_a_centralised_run_has_not(changes, words):
    assert any(re.match(words, text) for text in problems({"setting": "centralised", **changes}))


@pytest.mark.parametrize("epochs", [0, [], [1, 0], True, [True], 1.5, "2", None])
def test_epochs_are_a_number_or_one_for_each_task(epochs):
    (text,) = problems({"training": {"epochs": epochs}})
    assert text.startswith("training.epochs: must be a whole number from 1 on, or a list")


def test_epochs_of_a_task():
    assert epochs_of(2, [5]) == 2
    assert epochs_of([1, 3, 1], [1]) == 3


@pytest.mark.parametrize("changes", [{"method": "joint"}, {"stream": "site"}])
def test_epochs_of_single_tasks_need_single_tasks(changes):
    texts = problems({"training": {"epochs": [1, 2]}, **changes})
    assert any(text.startswith("training.epochs: [1, 2] is about") for text in texts)


@pytest.mark.parametrize(
    ("when", "stages"), [("stage", [1, 2, 3, 4]), ("final", [4]), ([2], [2, 4]), ([3, 1, 4], [1, 3, 4])]
)
def test_the_last_stage_is_always_evaluated(when, stages):
    assert config.parse({"evaluation": {"when": when}}).evaluation.stages(4) == stages


@pytest.mark.parametrize("when", ["last", [], [0], [True], [1.5], ["1"], 3, None, [10**5000]])
def test_when_is_a_word_or_numbers_of_stages(when):
    (text,) = problems({"evaluation": {"when": when}})
    assert text.startswith("evaluation.when: ")
    assert "stage, final or a list of stage numbers" in text


def test_stages_that_a_benchmark_does_not_have():
    run = config.parse({"benchmark": "fcit-mini-short", "evaluation": {"when": [2, 5]}})
    with pytest.raises(ConfigError, match=r"evaluation.when: \[2, 5\] names stage 5, .*'fcit-mini-short' .* 1 to 4"):
        open_benchmark(run)


def test_sites_are_asked_after_stages_they_have_and_all_of_their_questions():
    site = {"stream": "site", "federation": {"stages": 3}, "method": "finetune"}
    assert config.parse({**site, "evaluation": {"when": [2, 3]}}).evaluation.stages(3) == [2, 3]
    found = problems({**site, "evaluation": {"when": [4], "samples": 5}})
    assert [text.partition(":")[0] for text in found] == ["evaluation.when", "evaluation.samples"]
    assert "(federation.stages) has the stages 1 to 3" in found[0]


def test_limit_is_called_samples_now():
    (text,) = problems({"evaluation": {"limit": 4}})
    assert text.startswith("evaluation.limit: unknown key")
    assert "samples" in text
    # run folders from before hold it with nothing asked for
    assert config.parse({"evaluation": {"limit": None}}) == config.parse({})


def test_extends_once(write):
    write("base.yaml", "seed: 1\nmethod: disco\ntraining: {lr: 0.1, epochs: 2}\n")
    file = write("a.yaml", "extends: base.yaml\nmethod: {temperature: 0.1}\ntraining: {lr: 0.2}\n")
    run = config.load(file)
    assert (run.seed, run.training.lr, run.training.epochs) == (1, 0.2, 2)
    assert run.method == {"name": "disco", **DISCO, "temperature": 0.1}


def test_extends_from_home(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("base.yaml", "seed: 3\n")
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "a.yaml"
    file.write_text("extends: ~/base.yaml\n", encoding="utf-8")
    assert config.load(file).seed == 3


def test_extends_twice_is_refused(write):
    write("base.yaml", "seed: 1\n")
    write("middle.yaml", "extends: base.yaml\n")
    with pytest.raises(ConfigError, match="one level"):
        config.load(write("a.yaml", "extends: middle.yaml\n"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "seed: [1\n", "", "a: b: c\n"])
def test_unusable_files(write, text):
    with pytest.raises(ConfigError):
        config.load(write("a.yaml", text))


def test_missing_file_lists_its_neighbours(write, tmp_path):
    write("there.yaml", "seed: 1\n")
    with pytest.raises(ConfigError, match=r"there\.yaml"):
        config.load(tmp_path / "other.yaml")


def test_dump_and_parse_are_inverse():
    run = config.parse({"seed": 7, "method": {"name": "disco", "threshold": 0.85}, "federation": {"beta": 0.5}})
    assert config.parse(yaml.safe_load(config.dump(run))) == run


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_loads(path):
    config.load(path)


def test_a_bare_off_is_the_word_off(tmp_path):
    (tmp_path / "c.yaml").write_text("backbone: {feature_cache: off}\n")
    assert config.load(tmp_path / "c.yaml").backbone.feature_cache == "off"


def test_a_run_goes_on_by_the_rules_it_began_with(tmp_path):
    """An older run folder's DISCO let every client open a subspace; a new configuration does not."""
    file = tmp_path / "config.yaml"
    file.write_text("name: old\nmethod: {name: disco, threshold: 0.9}\n")
    assert config.load_resolved(file).method["min_records"] == 1
    assert config.load(file).method["min_records"] == 4
    file.write_text("name: new\nmethod: {name: disco, min_records: 8}\n")
    assert config.load_resolved(file).method["min_records"] == 8
    # ... and a run from before there was data.turns has learnt first answers only
    assert config.load_resolved(file, going_on=True).data.turns == "first"
    assert config.load_resolved(file).data.turns == "all"


def test_every_setting_says_what_it_means():
    assert [key for key, _, meaning in config.settings() if not meaning] == []
