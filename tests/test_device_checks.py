"""What simulated time does not go with is a sentence that names the way out."""

import pytest

from fcit import config as configuration
from fcit.errors import ConfigError

DP = {"client_dp": "on", "noise_multiplier": 1.0, "clip": 1.0}


def problems(**raw) -> str:
    with pytest.raises(ConfigError) as caught:
        configuration.parse(raw)
    return "\n".join(caught.value.problems)


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
    ],
)
def test_a_combination_that_makes_no_sense_is_refused(raw, sentence):
    assert sentence in problems(**raw)


def test_a_table_of_traces_is_relative_to_its_configuration(tmp_path):
    config = configuration.resolve({"devices": {"profile": "traces.csv"}}, tmp_path, "config")
    assert config.devices.profile == str(tmp_path / "traces.csv")
