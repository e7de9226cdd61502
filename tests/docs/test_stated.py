"""What pages list and count is what code and results have."""

import json
import re
from pathlib import Path

import pytest

from fcit import registry
from fcit.bench import folders, plan, published
from fcit.config import RunConfig, parse
from fcit.errors import ConfigError
from fcit.fedopt.base import FedOpt
from fcit.methods.base import Method
from tests.docs.pages import DOCS, ROOT, blocks

RESULTS = ROOT / "tests" / "evidence" / "results"
OTHERS = ("ucit", "mllm-dcl", "mllm-acl")


def page(name: str) -> str:
    """A page on one line."""
    return " ".join((DOCS / name).read_text(encoding="utf-8").split())


def named(text: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`]+)`", text))


def row(name: str, first: str) -> str:
    """The line of a table of a page that begins with ``first``."""
    lines = (DOCS / name).read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith(f"| {first}")]
    return line


def refused(values: list[str], **settings: object) -> set[str]:
    """The rules for factors that do not go with these settings."""
    found = set()
    for name in values:
        try:
            parse({"method": "finetune", "factors": name, **settings})
        except ConfigError:
            found.add(name)
    return found


def test_seconds_on_links_are_the_measured_ones():
    measured = json.loads((RESULTS / "link.json").read_text())["rates"]
    row = r"^\| (?:(\d+) ([MG])bit/s|no limit).*? \| ([\d.]+) (min|s) \| (?:(\d+) %)? ?\| ([\d.]+) \| ([\d.]+) \|$"
    shown = re.findall(row, _text("operation.md"), re.M)
    assert len(shown) == len(measured) == 5
    for number, unit, time, of, share, ours, plain in shown:
        one = measured[f"{number}{unit.lower()}bit" if number else "no limit"]
        seconds = one["seconds_for_130_mb"] / (60 if of == "min" else 1)
        assert [time, ours, plain] == [
            f"{value:.{len(text.partition('.')[2])}f}"
            for text, value in ((time, seconds), (ours, one["mb_per_second"]), (plain, one["https_mb_per_second"]))
        ], one
        assert (
            (share == "") if one["share_of_the_rate"] is None else int(share) == round(100 * one["share_of_the_rate"])
        )


def test_the_page_on_runs_names_all_whose_clients_keep_something():
    text = page("runs.md")
    kept = re.search(r"Methods and optimisers with which they do are (.*?); of the rules for factors (.*?); and ", text)
    methods = {}
    for name in registry.METHODS:
        methods[name] = registry.resolve("method", name)(RunConfig.model_validate({"method": name}))
    keeping = {n for n, m in methods.items() if m.remembers or type(m).constants is not Method.constants}
    keeping |= {n for n in registry.FEDOPTS if registry.resolve("fedopt", n).remembers}
    assert named(kept[1]) - {"choose", "remembers = True", "constants"} == keeping
    rules = {n: registry.resolve("factors", n) for n in registry.FACTORS}
    assert named(kept[2]) == {n for n, rule in rules.items() if rule.remembers or rule.keeps}


def test_the_page_on_runs_names_the_configurations_with_values_of_others():
    pattern = r"each value with its source: (.*?) for all three, and for the first two (.*?)\. "
    for_all, for_two = re.search(pattern, page("runs.md")).groups()
    files = {name: {file.stem for file in (ROOT / "configs" / name).glob("*.yaml")} for name in OTHERS}
    assert files["mllm-acl"] == named(for_all)
    assert files["ucit"] == files["mllm-dcl"] == named(for_all) | named(for_two)


def test_pages_name_the_rules_for_factors_that_are_refused():
    rules = list(registry.FACTORS)
    private = {"privacy": {"record_dp": "on", "record_epsilon": 8}}
    assert named(row("privacy.md", "`fedopt`, `factors`, `robust`").split("|")[2]) == {
        f"factors: {name}" if name == "hetlora" else name for name in refused(rules, **private)
    }
    pattern = r"Under (`factors: [^,]*`, .*?), which make new factors in every round, nothing is kept"
    thin = re.search(pattern, page("methods.md"))
    assert {name.removeprefix("factors: ") for name in named(thin[1])} == refused(rules, federation={"top_k": 0.1})
    assert {row("own-trainer.md", f"`factors: {name}`") for name in refused(rules, training={"trainer": "hf"})}


class Plain(FedOpt):
    """Takes half of the step."""

    summary = "half of the step"

    def step(self, old, mean, memory):
        return {name: (old[name] + mean[name]) / 2 for name in mean}


class Whole(Plain):
    """Not made for half a subspace."""

    halves = False


class Summing(Plain):
    """Its clients return something."""

    def absorb(self, sums, memory):
        memory["sums"] = sums


class Remembering(Plain):
    """Its clients keep something."""

    remembers = True


class Stepping(Plain):
    """Its clients do something within their steps."""

    def on_step(self, session):
        """Nothing."""


ASYNC = {"federation": {"mode": "async"}, "devices": {"profile": "lognormal"}}
#: Of the table in own-optimiser.md: a class, the beginning of its line, settings by how the line names them.
LINES = [
    (
        Plain,
        "`averages = False`",
        {
            "factors: svd": {"factors": "svd"},
            "hlora": {"factors": "hlora"},
            "flora": {"factors": "flora"},
            "fedex": {"factors": "fedex"},
            "asynchronous.rule: fedasync": {**ASYNC, "asynchronous": {"rule": "fedasync"}},
        },
    ),
    (Whole, "`halves = False`", {"factors: alternate": {"factors": "alternate"}}),
    (
        Summing,
        "`absorb` of its own",
        {
            "factors: hetlora": {"factors": "hetlora"},
            "fedsa": {"factors": "fedsa"},
            "adapter.ranks": {"adapter": {"ranks": {2: 0.5, 8: 0.5}}},
            "robust:": {"robust": "median"},
            "federation.mode: async": ASYNC,
            "privacy.client_dp": {"privacy": {"client_dp": "on", "epsilon": 8}},
            "secure_aggregation": {"privacy": {"secure_aggregation": "on"}},
        },
    ),
    (
        Remembering,
        "`remembers = True`",
        {"federation.mode: async": ASYNC, "refactors": {"method": "opcm"}},
    ),
    (Stepping, "`on_gradients` or `on_step`", {"training.trainer": {"training": {"trainer": "hf"}}}),
]


@pytest.mark.parametrize(("kind", "line", "settings"), LINES, ids=[kind.__name__ for kind, *_ in LINES])
def test_the_page_on_optimisers_names_what_is_refused_with_them(kind, line, settings):
    """Each of these goes with plain fine-tuning, and not with what its line in the table names."""
    own = f"{__name__}:{kind.__name__}"
    parse({"method": "finetune", "fedopt": own})
    if kind is Plain:  # every other setting of the table, and thin wires
        fine = [given for _, _, values in LINES[1:] for given in values.values()]
        for given in [*fine, ASYNC, {"federation": {"wire": "int8", "top_k": 0.1}}]:
            parse({"method": "finetune", "fedopt": own, **given})
        for name in registry.METHODS:
            parse({"method": name, "fedopt": own})
        with pytest.raises(ConfigError, match="setting: 'centralised'"):
            parse({"method": "finetune", "fedopt": own, "setting": "centralised"})
    names = named(row("own-optimiser.md", line).split("|")[2])
    for name, given in settings.items():
        assert name in names
        with pytest.raises(ConfigError):
            parse({"method": "finetune", "fedopt": own, **given})


def test_the_bench_beside_published_rows_takes_them_over(tmp_path, monkeypatch):
    [block] = [block for block in blocks(DOCS / "benches.md") if block.title == "my-ranks.yaml"]
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "examples"):
        Path(name).symlink_to(ROOT / name)
    Path(block.title).write_text(block.body)
    made = plan.load(Path(block.title))
    published._unpack(Path("examples/benches/mini-ranks") / published.FILE, made.folder, {"config.yaml"})
    taken = [run for run in made.runs if (run.folder / "config.yaml").is_file()]
    assert {run.row.label for run in taken} == {row.label for row in made.rows} - {"finetune / Momentum / one"}
    assert [run.name for run in taken if folders.foreign(run) is not None] == []
    assert made.baseline in {run.row.label for run in taken}


def _text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")
