"""What simulated time does not go with is a sentence that names the way out."""

import pytest
import yaml

from fcit import config as configuration
from fcit.config import async_checks, device_checks
from fcit.errors import ConfigError
from fcit.simulation import simulate

DP = {"client_dp": "on", "noise_multiplier": 1.0, "clip": 1.0}


def problems(**raw) -> str:
    with pytest.raises(ConfigError) as caught:
        configuration.parse(raw)
    return "\n".join(caught.value.problems)


def late(**raw) -> dict:
    """An asynchronous run with these settings."""
    federation = {"mode": "async", **raw.pop("federation", {})}
    return {"method": "finetune", "devices": {"profile": "uniform"}, "federation": federation, **raw}


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"federation": {"over_select": 1.3}}, "needs a clock by which some clients are first"),
        ({"devices": {"profile": "tablet"}}, "must be none, uniform, lognormal, phone, hospital or a file"),
        ({"devices": {"profile": "phone"}, "stream": "site"}, "profile: none"),
        ({"devices": {"profile": "uniform"}, "setting": "centralised"}, "setting: 'centralised'"),
        ({"devices": {"profile": "phone"}, "federation": {"sampling": "official"}}, "choose sampling: seeded"),
        ({"devices": {"profile": "phone"}, "privacy": DP}, "choose uniform or lognormal"),
        (
            {"devices": {"profile": "uniform"}, "privacy": DP, "federation": {"over_select": 2}},
            "does not account for; choose over_select: 1",
        ),
        (
            {
                "devices": {"profile": "uniform"},
                "privacy": {"secure_aggregation": "on"},
                "federation": {"over_select": 2},
            },
            "privacy.dropout is the room for late ones",
        ),
        (
            {"devices": {"profile": "uniform"}, "method": "joint", "federation": {"over_select": 2}},
            "pools all data at one participant; choose over_select: 1",
        ),
        ({"asynchronous": {"concurrency": 3}}, "asynchronous.concurrency: 3 has no effect with federation.mode: sync"),
        (late(devices={}, setting="centralised"), "is about several clients"),
        (late(asynchronous={"rule": "fedasync", "buffer": 3}), "leave it out, or choose rule: fedbuff"),
        (
            late(asynchronous={"buffer": 30, "concurrency": 30}),
            "are of different clients, and federation.clients is 50",
        ),
        (late(federation={"min_updates": 6}), "can never be reached with asynchronous.buffer: 5"),
        (late(federation={"over_select": 2}), "is about rounds that wait"),
        (late(federation={"sampling": "official"}), "the clock decides who is next; choose sampling: seeded"),
        (late(factors="svd"), "choose factors: frozen_a or separate"),
        (late(privacy={"secure_aggregation": "on"}), "updates of different rounds come together"),
        (late(privacy=DP), "privacy.client_dp: 'on' accounts for clients that the seed gives every round"),
        (late(method="joint"), "there are none; choose mode: sync"),
        *(
            (late(method=name), "gives some rounds of a stage another meaning")
            for name in ("ewc", "keeplora", "mrlora")
        ),
        (late(fedopt="scaffold"), "corrects clients by what the server knew"),
        (late(fedopt="fedadam", asynchronous={"rule": "fedasync"}), "choose fedopt: fedavg or fedprox"),
        (late(robust="median", asynchronous={"buffer": 2}), "asynchronous.buffer is 2; raise it to 3"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused(raw, sentence):
    assert sentence in problems(**raw)


def test_without_a_clock_updates_come_from_sites_alone(tmp_path, fcit):
    raw = late(devices={})
    deployed = configuration.parse(raw)
    assert device_checks.deployed(deployed) is None
    assert "needs a clock by which updates come one after the other" in (async_checks.simulated(deployed) or "")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"choose a devices\.profile"):
        simulate(file)
    code, _, err = fcit("run", file, "--dry-run")
    assert code == 2
    assert "choose a devices.profile" in err


def test_a_table_of_traces_is_relative_to_its_configuration(tmp_path):
    config = configuration.resolve({"devices": {"profile": "traces.csv"}}, tmp_path, "config")
    assert config.devices.profile == str(tmp_path / "traces.csv")


@pytest.mark.parametrize(
    "method", ["disco", "finetune", "replay", "l2p", "hide", {"name": "mrlora", "router": "tokens"}]
)
def test_methods_whose_rounds_are_alike_run_asynchronously(method):
    assert configuration.parse(late(method=method)).federation.mode == "async"
