"""What clients send beside what they train is refused wherever something promises to cover all that they send."""

import re

import pytest

from fcit import config as configuration
from fcit import registry
from fcit.contracts.toy import method_of
from fcit.errors import ConfigError

#: Settings that promise something about all that a client sends, and what the refusal says.
PROMISES = {
    "robust": ({"robust": "median"}, "does not see what clients return to method"),
    "client_dp": ({"privacy": {"client_dp": "on", "noise_multiplier": 1.0}}, "does not cover what clients return to"),
    "secure": ({"privacy": {"secure_aggregation": "on"}}, "does not mask what clients return to method"),
    "record_dp": ({"privacy": {"record_dp": "on", "record_noise_multiplier": 1.0}}, "use records otherwise, too"),
}
SENDING = {n for n in registry.METHODS if method_of(n).sends()}
OWN = """
import numpy as np
from fcit.methods.finetune import Finetune

class Mine(Finetune):
    name = "mine"
    by_record = True

    def finish(self, session):
        return {"seen": np.ones(1, np.float32)}

    def extra_shapes(self, state):
        return {"seen": (1,)}
"""


def test_which_methods_send_statistics():
    assert {"clmoe", "ewc", "keeplora", "l2p", "prism", "same"} == SENDING


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("name", sorted(SENDING))
def test_they_are_refused(name, promise):
    settings, said = PROMISES[promise]
    with pytest.raises(ConfigError, match=re.escape(said)):
        configuration.parse({"method": name, **settings})


@pytest.mark.parametrize("promise", PROMISES)
def test_a_method_of_ones_own_is_refused_without_having_declared_anything(promise, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    settings, said = PROMISES[promise]
    with pytest.raises(ConfigError, match=re.escape(said)):
        configuration.parse({"method": f"{tmp_path / 'mine.py'}:Mine", **settings})


@pytest.mark.parametrize("promise", PROMISES)
def test_what_sends_nothing_more_is_not(promise):
    assert not method_of("olora").sends()
    configuration.parse({"method": "olora", **PROMISES[promise][0]})
