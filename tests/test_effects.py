"""What a setting can change is stated beside it, once."""

from typing import Annotated, Any

from pydantic import Field

from fcit.bench import plan
from fcit.bench.leaderboard import differing_settings
from fcit.bench.plan import same_run
from fcit.config import RunConfig, Section, parse, settings
from fcit.config.effects import BITS, WORK, Effect, effects


def test_every_setting_has_one_effect():
    keys = {key for key, _, _ in settings()}
    assert set(effects(RunConfig)) == keys


def test_a_field_takes_the_effect_of_its_section_unless_it_has_its_own():
    class Inner(Section):
        threads: Annotated[int, BITS] = 1
        address: str = ""

    class Outer(Section):
        inner: Annotated[Inner, WORK] = Field(default_factory=lambda: Inner.model_validate({}))
        lr: float = 1.0

    expected = {"inner.threads": Effect.BITS, "inner.address": Effect.WORK, "lr": Effect.RESULTS}
    assert effects(Outer) == expected


def changed(key: str, value: Any) -> RunConfig:
    section, _, name = key.partition(".")
    return parse({section: {name: value}} if name else {section: value})


def test_comparisons_follow_it():
    default = parse({})
    assert differing_settings(changed("training.lr", 0.5), default) == ["training.lr 0.5, not 0.003"]
    for key, value in {"federation.pause": 1.0, "backbone.threads": 2, "output": "elsewhere", "seed": 3}.items():
        assert differing_settings(changed(key, value), default) == [], key
    assert same_run(changed("output", "elsewhere")) == same_run(default)
    assert same_run(changed("federation.pause", 1.0)) != same_run(default)


def test_a_run_is_the_same_whatever_is_only_recorded_at_any_depth(monkeypatch):
    monkeypatch.setattr(plan, "RECORDED", frozenset({"federation.pause"}))
    assert same_run(changed("federation.pause", 1.0)) == same_run(parse({}))
    assert same_run(changed("federation.timeout", 1.0)) != same_run(parse({}))
