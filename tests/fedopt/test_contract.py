"""Every federated optimiser keeps its contract with every way of averaging factors; the contract can fail."""

import pytest

from fcit import registry
from fcit.contracts import fedopts as contract

NAMES = sorted(registry.FEDOPTS)


@pytest.mark.parametrize("name", [*NAMES, "./examples/own/momentum.py:Momentum"])
def test_contract(name):
    """Every check with every way of averaging factors."""
    problems = [f"{what}: {problem}" for what, problem in contract.check(name) if problem]
    assert not problems, "\n".join(problems)


def test_what_goes_together():
    fitting = {name: set(contract.fitting(name)) for name in NAMES}
    assert fitting["fedavg"] == fitting["fedprox"] == set(registry.FACTORS)
    assert fitting["scaffold"] == {"separate", "frozen_a"}
    for name in ("fedadagrad", "fedadam", "fedavgm", "fedyogi"):
        assert fitting[name] == {"separate", "hetlora", "fedsa", "alternate", "frozen_a"}


BROKEN = {
    "is_described": "summary = ''",
    "is_described ": "invariants = frozenset({'finite'})",
    "is_described  ": "invariants = frozenset({'no-such-promise'})",
    "options_have_defaults": "class Options(Section):\n        model_config = {'extra': 'ignore'}",
    "returns_what_it_was_given": "def step(self, old, mean, memory):\n"
    "        return {n: t.astype(np.float64) for n, t in mean.items()}",
    "returns_what_it_was_given ": "def step(self, old, mean, memory):\n"
    "        for name, theta in old.items():\n            theta += mean[name] - theta\n        return old",
    "a_client_can_train": "def finish(self, session):\n        return {'x': np.ones(2, np.float32)}",
    "a_client_can_train ": "def on_step(self, session):\n"
    "        for parameter in session.adapters.trainable.values():\n            parameter.detach().mul_(0.9)",
    "unchanged_updates": "def step(self, old, mean, memory):\n"
    "        return {n: t + np.float32(1) for n, t in mean.items()}",
    "weighted_mean": "def step(self, old, mean, memory):\n"
    "        return {n: t + np.float32(0.5) * (mean[n] - t) for n, t in old.items()}",
    "state_only_moves_with_updates": "def step(self, old, mean, memory):\n"
    "        memory['t'] = memory.get('t', 0) + 1\n"
    "        return {n: t + (mean[n] - t) / np.float32(memory['t']) for n, t in old.items()}",
    "resumes": "def step(self, old, mean, memory):\n"
    "        self.t = getattr(self, 't', 0) + 1\n"
    "        return {n: t + (mean[n] - t) / np.float32(self.t) for n, t in old.items()}",
    "resumes ": "def step(self, old, mean, memory):\n        memory['all'] = (old, mean)\n        return mean",
    "permutation": "def step(self, old, mean, memory):\n"
    "        self.t = getattr(self, 't', 0) + 1\n        return {n: t / np.float32(self.t) for n, t in mean.items()}",
    "finite": "def step(self, old, mean, memory):\n"
    "        with np.errstate(all='ignore'):\n"
    "            return {n: t + (mean[n] - t) / np.abs(mean[n] - t) for n, t in old.items()}",
}


@pytest.mark.parametrize("check", BROKEN)
def test_the_contract_can_fail(check, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(
        "import numpy as np\nfrom fcit.config import Section\nfrom fcit.fedopt.fedavg import FedAvg\n\n"
        f"class Broken(FedAvg):\n    summary = 'broken'\n    {BROKEN[check]}\n"
    )
    case = contract.FedOptCase(f"{file}:Broken", "frozen_a" if check == "a_client_can_train " else "separate")
    with pytest.raises((AssertionError, TypeError)):
        getattr(contract, check.strip())(case)
