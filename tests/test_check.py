"""``fcit check``: the contract of methods, federated optimisers and families, shipped ones and one's own."""

from pathlib import Path

import pytest

from fcit.cli import main
from fcit.contracts import fedopts

OWN = Path(__file__).parents[1] / "examples" / "own"
MOMENTUM = f"{OWN / 'momentum.py'}:Momentum"


@pytest.fixture
def check(capsys):
    """Call the command; returns its exit code, lines and errors."""

    def call(*arguments: str) -> tuple[int, list[str], str]:
        code = main(["check", *arguments])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return call


def factors(optimiser: str) -> str:
    """The ways of averaging that go with it."""
    return ", ".join(fedopts.conditions(optimiser)[1])


def test_an_optimiser_of_ones_own_with_options(check):
    code, lines, _ = check(MOMENTUM, "beta=0.3")
    assert lines[0] == f"federated optimiser Momentum (beta 0.3), with factors: {factors(MOMENTUM)}"
    assert lines[-1] == "Momentum keeps the contract"
    assert code == 0
    assert len(lines) > 8
    assert all(line.startswith("ok   ") for line in lines[1:-1])


def test_a_shipped_optimiser(check):
    code, lines, _ = check("fedavg")
    assert lines[0] == f"federated optimiser fedavg, with factors: {factors('fedavg')}"
    assert lines[-1] == "fedavg keeps the contract"
    assert code == 0


def test_a_shipped_method(check):
    code, lines, _ = check("ewc", "strength=2")
    assert lines[0] == "method ewc (strength 2.0, decay 1.0, samples 32), with projector: shared, frozen, per_subspace"
    assert lines[-1] == "ewc keeps the contract"
    assert code == 0


def test_a_broken_optimiser_is_told_what_it_breaks_and_where(check, tmp_path):
    file = tmp_path / "halved.py"
    file.write_text(
        "from fcit.fedopt.fedavg import FedAvg\n\n\nclass Halved(FedAvg):\n    summary = 'half the mean'\n\n"
        "    def step(self, old, mean, memory):\n        return {n: t * 0.5 for n, t in mean.items()}\n"
    )
    code, lines, _ = check(f"{file}:Halved")
    assert code == 1
    assert lines[-1] == "Halved breaks the contract"
    failed = [lines[n : n + 2] for n, line in enumerate(lines) if line.startswith("FAIL")]
    assert ["     not the sample-weighted mean (factors alternate)"] in [pair[1:] for pair in failed]


def test_a_family_of_ones_own(check, tmp_path):
    """A file that no table names; where it differs from transformers is told."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from fcit.models.families.llava import Llava\n\n\nclass Mine(Llava):\n"
        "    def project(self, features):\n        return super().project(features) * 1.01\n"
    )
    code, lines, _ = check("family", f"{file}:Mine")
    assert code == 1
    assert lines[0] == "family Mine, a small model with random weights, with projector: shared, per_subspace"
    assert lines[-1] == "Mine breaks the contract"
    wrong = [line for line in lines if "from those of transformers (at most 0.0001)" in line]
    assert wrong
    assert "ok   The tower sees the pixels that the model's own processor makes." in lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["family"], "check: name one family, without options: one of gemma3, generic, "),
        (["llava", "x=1"], "check: name one family, without options: one of gemma3, generic, "),
        (["family", "lava"], "model: unknown name 'lava'; did you mean 'llava'"),
        (["family", f"{OWN / 'momentum.py'}:Momentum"], "is not a subclass of fcit.models.families.base.Family"),
        ([MOMENTUM, "beta=2"], "fedopt.beta: input should be less than 1, got 2"),
        ([MOMENTUM, "bata=0.1"], "fedopt.bata: unknown key; did you mean 'beta'?"),
        ([MOMENTUM, "beta"], "must look like key=value"),
        (["fedavk"], "fedopt: unknown name 'fedavk'; did you mean 'fedavg'"),
        ([f"{OWN / 'momentum.py'}:Momentm"], "has no 'Momentm'; did you mean 'Momentum'?"),
    ],
)
def test_what_cannot_be_checked(check, arguments, said):
    code, lines, err = check(*arguments)
    assert code == 2
    assert not lines
    assert said in err


def test_a_file_that_is_not_there_is_told_once(check):
    code, _, err = check("./absent.py:Mine")
    assert code == 2
    assert err.count("absent.py") == 1
