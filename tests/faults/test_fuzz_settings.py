"""Odd configurations and site files: one sentence of ours, never a traceback."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fcit import config as configuration
from fcit.bench import file as bench_file
from fcit.config import RunConfig, site
from fcit.data.spec import read_spec
from fcit.errors import ConfigError
from fcit.io import bounded
from tests.helpers.cases import check_each
from tests.helpers.odd import MANY, nested, peak, texts, values


def laughs(merge: bool = False) -> str:
    """Ten lines of aliases that stand for ten thousand million values."""
    lines = ["l0: &l0 {lol: lol}"]
    for n in range(1, 11):
        inner = ", ".join([f"*l{n - 1}"] * 10)
        lines.append(f"l{n}: &l{n} {{<<: [{inner}]}}" if merge else f"l{n}: &l{n} [{inner}]")
    return "\n".join(lines)


ODD_YAML = [
    laughs(),
    laughs(merge=True),
    "method: &a {name: disco, x: *a}",
    "a: &a [*a]",
    nested(700),
    "a: " + nested(200),
    "- " * 3000,
    "? " * 3000,
    "a: 2024-99-99",
    "seed: !!int x",
    "seed: 0x_",
    "seed: !!int ''",
    "seed: !!float ''",
    "seed: !!bool x",
    "x: !!timestamp x",
    "seed: " + "9" * 5000,
    "seed: 0x" + "f" * 9000,
    "? [a]\n: b",
    "? {a: b}\n: c",
    "!!python/object/apply:os.abort []",
    "!!set {a, b}",
    "null: 1",
    "1: 2",
    "2024-01-01: 2",
    "true: 1",
    "",
    "[]",
    "5",
    "--- a\n--- b",
    "%YAML 9.9\n--- a",
    "a: b: c",
    "\0",
    "\ufeffseed: 1",
    "x: =",
    "<<: 3",
    "extends: [1]",
    'extends: "\\0"',
    "extends: " + "x" * 5000,
    "method: {1: 2}",
    "method: {name: [1]}",
    "method: []",
    "federation: []",
    'benchmark: "a\\0.yaml"',
    "benchmark: " + "x" * 5000 + ".yaml",
    "data_root: ~nobody-at-all/x",
    "seed: .nan",
    "training: {lr: .inf}",
    'data_root: "\\ud800"',
    'output: "a\\0b"',
    "trackers: [[1]]",
    "x: " + "y" * 300_000,
    "name: !!binary aGVsbG8=",
    "method: ./nothing.py:X",
    "federation: {clients: 1e400}",
    "max_bad_share: 1.0",
    "a." * 5000 + "b",
]


def loaded(work) -> object:
    try:
        return work()
    except ConfigError as error:
        assert len(str(error)) < 20_000
        return None


def test_configurations_that_are_odd(tmp_path):
    path = tmp_path / "run.yaml"

    def check(text: str) -> None:
        path.write_bytes(text.encode("utf-8"))
        for reader in (configuration.load, site.load, lambda p: bench_file.read(p), lambda p: read_spec(str(p))):
            loaded(lambda reader=reader: reader(path))

    check_each(ODD_YAML, check)


@pytest.mark.parametrize("merge", [False, True])
def test_a_few_lines_of_aliases_stay_a_few_lines(tmp_path, merge):
    path = tmp_path / "run.yaml"
    path.write_text(laughs(merge))
    for reader in (configuration.load, site.load, lambda p: bench_file.read(p), lambda p: read_spec(str(p))):
        held = peak(lambda reader=reader: loaded(lambda: reader(path)))
        assert held < 2_000_000
    with pytest.raises(ConfigError, match="more than 50,000 values"):
        configuration.load(path)


def test_overrides_that_are_odd():
    places = ("{}", "seed={}", "method={}", "data_root={}", "{}=1", "training.{}=1")

    def check(override: str) -> None:
        loaded(lambda: configuration.resolve({}, Path.cwd(), "config", [override]))

    check_each([place.replace("{}", text) for text in ODD_YAML for place in places], check)


keys = st.sampled_from([*RunConfig.model_fields, "extends"]) | texts
sections = st.dictionaries(
    keys, values | st.dictionaries(st.sampled_from(["clients", "lr", "name", "rank"]) | texts, values), max_size=4
)


@settings(MANY, max_examples=30)
@given(sections)
def test_any_mapping_as_a_configuration(raw):
    config = loaded(lambda: configuration.resolve(raw, Path.cwd(), "config"))
    if config is not None:
        assert configuration.parse(bounded.parse_yaml(configuration.dump(config))) == config


@MANY
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_file_as_a_configuration(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    for reader in (configuration.load, site.load, lambda p: bench_file.read(p), lambda p: read_spec(str(p))):
        loaded(lambda reader=reader: reader(path))


@MANY
@given(st.dictionaries(st.sampled_from(sorted(site.Site.model_fields)) | texts, values, max_size=4))
def test_any_mapping_as_a_site(tmp_path, raw):
    path = tmp_path / "SITE.yaml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=False))
    loaded(lambda: site.load(path))


def test_files_without_end_are_not_read_as_configurations(tmp_path):
    for reader in (configuration.load, site.load, lambda p: read_spec(str(p))):
        (tmp_path / "run.yaml").unlink(missing_ok=True)
        (tmp_path / "run.yaml").symlink_to("/dev/zero")
        assert loaded(lambda reader=reader: reader(tmp_path / "run.yaml")) is None
        (tmp_path / "run.yaml").unlink()
        (tmp_path / "run.yaml").write_text("a" * (bounded.YAML_LENGTH + 1))
        assert loaded(lambda reader=reader: reader(tmp_path / "run.yaml")) is None
