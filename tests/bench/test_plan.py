"""Bench files: sums of products, labels, folders, and every mistake with its line."""

from pathlib import Path

import pytest

from fcit.bench import plan
from fcit.errors import ConfigError

ROOT = Path(__file__).parents[2]


def labels(made: plan.Plan) -> list[str]:
    return [row.label for row in made.rows]


def test_an_axis_is_a_block(planned):
    made = planned(axes={"method": ["finetune", "disco"]}, seeds=[0, 1])
    assert labels(made) == ["finetune", "disco"]
    assert made.baseline == "finetune"
    assert [run.name for run in made.runs] == ["finetune-s0", "disco-s0", "finetune-s1", "disco-s1"]
    run = made.runs[-1]
    assert (run.config.seed, run.config.name, run.config.method["name"]) == (1, "disco-s1", "disco")
    assert run.folder == made.folder / "disco-s1"
    assert run.config.output == str(made.folder)


def test_blocks_add_and_axes_multiply(planned):
    made = planned(
        rows=[
            {"axes": {"method": ["finetune"]}},
            {"axes": {"method": ["disco"], "training.lr": [0.001, 0.002], "adapter.projector": ["shared", "frozen"]}},
            {"axes": {"method": ["zero_shot"]}, "seeds": [0]},
        ],
        seeds=[3, 4],
    )
    assert labels(made) == [
        "finetune",
        "disco / lr=0.001 / projector=shared",
        "disco / lr=0.001 / projector=frozen",
        "disco / lr=0.002 / projector=shared",
        "disco / lr=0.002 / projector=frozen",
        "zero_shot",
    ]
    assert [run.seed for run in made.runs] == [3] * 5 + [0] + [4] * 5
    assert made.runs[4].config.training.lr == 0.002
    assert made.runs[4].config.adapter.projector == "frozen"
    assert made.runs[4].name == "disco-lr-0.002-projector-frozen-s3"


def test_options_and_labels(planned):
    made = planned(
        rows=[
            {"axes": {"method": ["finetune", {"name": "disco", "mix": "argmax"}]}},
            {
                "set": {"training.lr": 0.001},
                "axes": {"method": ["disco"], "method.mix": ["softmax"]},
                "label": "{method}+{method.mix} at {training.lr}",
            },
            {"set": {"method": "disco", "training": {"lr": 0.01}}, "label": "fast"},
        ]
    )
    assert labels(made) == ["finetune", "disco mix=argmax", "disco+softmax at 0.001", "fast"]
    assert [run.config.method.get("mix") for run in made.runs] == [None, "argmax", "softmax", "softmax"]
    assert made.runs[3].config.training.lr == 0.01


def test_a_block_may_name_the_row_that_its_rows_are_compared_with(planned):
    blocks = [
        {"axes": {"method": ["finetune", "disco"], "training.lr": [0.001, 0.002]}},
        {"set": {"adapter.rank": 4}, "axes": {"method": ["disco"]}, "label": "low", "baseline": "{method} / lr=0.001"},
    ]
    made = planned(rows=blocks)
    assert [row.baseline for row in made.rows] == [None] * 4 + ["disco / lr=0.001"]
    assert made.baseline == "finetune / lr=0.001"


def test_set_is_overruled_by_block_and_axis(planned):
    made = planned(
        set={"training.lr": 0.5, "federation.rounds": 7},
        rows=[{"set": {"training.lr": 0.4}}, {"axes": {"training.lr": [0.3]}}],
    )
    assert [run.config.training.lr for run in made.runs] == [0.4, 0.3]
    assert [run.config.federation.rounds for run in made.runs] == [7, 7]


def test_settings_of_the_benchmark_choose_the_table(planned):
    made = planned(
        axes={"setting": ["homogeneous", "heterogeneous"], "method": ["finetune", "disco"]},
        set={"federation.clients_per_round": 5},
        baseline="finetune",
    )
    assert labels(made) == ["finetune", "disco"] * 2
    assert [run.name for run in made.runs] == [
        "finetune-s0",
        "disco-s0",
        "heterogeneous-finetune-s0",
        "heterogeneous-disco-s0",
    ]
    assert [row.table.title for row in made.rows[1:3]] == [
        "fcit-mini-short, homogeneous",
        "fcit-mini-short, heterogeneous",
    ]


def test_one_thread_unless_somebody_says_otherwise(planned):
    assert planned(axes={"method": ["disco"]}).runs[0].config.backbone.threads == 1
    assert planned(axes={"method": ["disco"]}, set={"backbone.threads": 0}).runs[0].config.backbone.threads == 0
    cuda = planned(axes={"method": ["disco"]}, set={"backbone.device": "cuda"})
    assert cuda.runs[0].config.backbone.threads == 0


def test_own_parts_are_relative_to_the_bench_file(write, monkeypatch, tmp_path):
    own = ROOT / "examples" / "own" / "momentum.py"
    path = write(axes={"fedopt": ["fedavg", "./momentum.py:Momentum"]})
    (path.parent / "momentum.py").write_text(own.read_text())
    monkeypatch.chdir("/")
    made = plan.load(path)
    assert labels(made) == ["fedavg", "Momentum"]
    assert made.runs[1].config.fedopt["name"] == f"{path.parent / 'momentum.py'}:Momentum"


def test_every_mistake_with_its_line(write):
    text = """\
name: bad
base: base.yaml
set: {setting: homogeneus, training.lrr: 1}
rows:
  - axes:
      method: [finetune,
        discoo]
      metod: [a]
      training.lr: [0.1, -1]
      federation.rounds.deep: [1]
      seed: [1]
    label: "{nothing}"
  - set: {method.mix: hard}
    axes: {method: [finetune]}
"""
    with pytest.raises(ConfigError) as caught:
        plan.load(write(text))
    found = "\n".join(caught.value.problems)
    for expected in (
        "line 3: set: training.lrr: no such setting; did you mean 'training.lr'",
        "line 3: setting: input should be 'homogeneous', 'heterogeneous' or 'centralised', got 'homogeneus'",
        "line 7: method: unknown name 'discoo'; did you mean 'disco'?",
        "line 8: axes: metod: no such setting; did you mean 'method'?",
        "line 9: training.lr: input should be greater than 0, got -1",
        "line 10: axes: federation.rounds.deep: federation.rounds is one value and has no 'deep'",
        "line 11: axes: seed: use seeds:",
        "line 12: label: {nothing} is no axis here (allowed: method, training.lr)",
        "line 13: method.mix: unknown key",
    ):
        assert expected in found, found
    assert len(caught.value.problems) == 9
    assert "bench.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"axes": {"method": ["disco", "disco"]}}, "line 7: label: two rows are called 'disco' (the other: line 6)"),
        (
            {"rows": [{"axes": {"method": ["disco"]}}, {"axes": {"method": ["disco"]}, "label": "again"}]},
            "line 10: 'again', seed 0, is the same run as 'disco' (line 7); leave one out",
        ),
        (
            {"baseline": "finetun", "axes": {"method": ["finetune", "disco"]}},
            "line 4: baseline: no row is called 'finetun'; did you mean 'finetune'? (rows: finetune, disco)",
        ),
        (
            {"rows": [{"axes": {"method": ["finetune"]}}, {"axes": {"method": ["disco"]}, "baseline": "finetun"}]},
            "line 10: baseline: no row is called 'finetun'; did you mean 'finetune'? (rows: finetune, disco)",
        ),
        (
            {"rows": [{"axes": {"method": ["disco"]}, "baseline": "{metod}"}]},
            "line 8: baseline: {metod} is no axis here (allowed: method)",
        ),
        ({"rows": [{"label": "a b"}, {"set": {"training.lr": 0.1}, "label": "a-b"}]}, "would share the folder 'a-b'"),
        ({"axes": {"method": []}}, "axes.method: an axis needs at least one value"),
        ({"axes": {"method": "disco"}}, "line 5: axes.method: input should be a valid list, got 'disco'"),
        ({"axes": {"method": ["disco"]}, "seeds": [1, 1]}, "seeds: [1, 1] names one seed twice"),
        ({"axes": {"method": ["disco"]}, "seeds": [True]}, "seeds.0: input should be a valid integer, got True"),
        ({"axes": {"method": ["disco"]}, "seedz": [1]}, "line 7: seedz: unknown key; did you mean 'seeds' or"),
        ({"rows": [{"axs": {"method": ["disco"]}}]}, "line 5: rows.0.axs: unknown key; did you mean 'axes'?"),
        ({}, "needs rows: (a list of blocks) or axes:"),
        ({"base": "absent.yaml", "axes": {"method": ["disco"]}}, "no such configuration file"),
        ({"axes": {"setting": ["heterogeneous"]}}, "federation.clients_per_round is 3"),
        (
            {"axes": {"evaluation.when": ["stage", [2, 9]]}},
            "line 7: evaluation.when: [2, 9] names stage 9, and benchmark 'fcit-mini-short' has the stages 1 to 4",
        ),
        (
            {"set": {"federation.mode": "async"}, "axes": {"method": ["disco"]}},
            "needs a clock by which updates come one after the other",
        ),
        ({"axes": {"backbone.device": ["cuda:1"]}}, "a bench gives every run its GPU, say 'cuda'"),
    ],
)
def test_single_mistakes(write, keys, expected):
    with pytest.raises(ConfigError) as caught:
        plan.load(write(**keys))
    assert expected in str(caught.value)


def test_a_key_given_twice(write):
    text = "name: a\nbase: base.yaml\naxes: {method: [disco]}\naxes: {method: [finetune]}\n"
    with pytest.raises(ConfigError, match="'axes' stands twice, in line 3 and in line 4"):
        plan.load(write(text))


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "bench").glob("*.yaml")), ids=lambda f: f.stem)
def test_shipped_bench_files(file):
    assert plan.load(file).runs


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "bench").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_bench_is_sound(path):
    made = plan.load(path)
    assert made.runs
    assert made.baseline in labels(made)
    # seeds that tune are not seeds that report
    seeds = {run.seed for run in made.runs}
    assert seeds == {100} if path.stem.startswith("sweep") else 100 not in seeds


def shipped(name: str) -> dict[str, plan.Row]:
    """The rows of a shipped bench by label."""
    return {row.label: row for row in plan.load(ROOT / "configs" / "bench" / f"{name}.yaml").rows}


def test_the_equations_of_mini_released_are_runs_of_mini_task_hom():
    ours, known = shipped("mini-released"), shipped("mini-task-hom")
    same = {label for label in ours if label in known and ours[label].slug == known[label].slug}
    assert same == {"moelora", "clmoe blend=0.9", "hide", "smolora", "proglora"}
    for label in same:
        assert plan.same_run(ours[label].config) == plan.same_run(known[label].config)
        assert ours[label].seeds == known[label].seeds


@pytest.mark.parametrize("name", ["mini-task-hom", "mini-task-het", "mini-central", "mini-released"])
def test_benches_of_all_methods_ask_what_is_never_trained(name):
    assert all(row.config.evaluation.held_out for row in shipped(name).values())
    assert all(row.config.evaluation.unseen for row in shipped(name).values()) == (name != "mini-central")


def test_without_a_federation_replay_keeps_what_its_clients_keep_together():
    central, apart = (shipped(name) for name in ("mini-central", "mini-task-hom"))
    row = apart["replay"].config
    (kept,) = [r.config.method["buffer"] for r in central.values() if r.config.method["name"] == "replay"]
    assert kept == row.federation.clients * row.method["buffer"]


def test_a_round_of_mini_wire_trains_as_many_records_as_one_of_mini_fedopt():
    firsts = [next(iter(shipped(name).values())).config for name in ("mini-wire", "mini-fedopt")]
    records = [config.data.max_records or 4000 for config in firsts]  # of each mini data set
    drawn = [config.federation.clients_per_round / config.federation.clients for config in firsts]
    assert records[0] * drawn[0] == records[1] * drawn[1]


# ---------------------------------------------------------------------- more seeds for some rows


def test_a_row_given_twice_with_other_seeds_is_one_row(planned):
    made = planned(
        seeds=[0, 1],
        rows=[
            {"axes": {"method": ["finetune", "disco"]}},
            {"axes": {"method": ["disco"]}, "seeds": [5, 7]},
        ],
    )
    assert labels(made) == ["finetune", "disco"]
    assert [row.seeds for row in made.rows] == [(0, 1), (0, 1, 5, 7)]
    assert [run.name for run in made.runs] == [
        "finetune-s0",
        "disco-s0",
        "finetune-s1",
        "disco-s1",
        "disco-s5",
        "disco-s7",
    ]


def test_a_row_given_twice_with_a_seed_in_common_is_refused(write):
    with pytest.raises(ConfigError, match="both have seed 1: a row may be repeated with other seeds only"):
        plan.load(
            write(
                seeds=[0, 1],
                rows=[
                    {"axes": {"method": ["disco"]}},
                    {"axes": {"method": ["disco"]}, "seeds": [1, 2]},
                ],
            )
        )


def test_a_label_given_twice_for_other_settings_is_refused(write):
    with pytest.raises(ConfigError, match="two rows are called 'x'"):
        plan.load(
            write(
                rows=[
                    {"axes": {"method": ["disco"]}, "label": "x"},
                    {"axes": {"method": ["finetune"]}, "label": "x", "seeds": [9]},
                ]
            )
        )
