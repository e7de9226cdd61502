import pytest

from fcit import registry
from fcit.errors import ConfigError
from fcit.methods.base import FAMILIES
from tests.helpers.cases import check_each

ENTRIES = [(kind, name) for kind, table in registry.KINDS.items() for name in table]


def test_every_entry_resolves():
    def check(entry: tuple[str, str]) -> None:
        part = registry.resolve(*entry)
        assert callable(part) or entry[0] == "format"  # a module with a reader's functions
        assert getattr(part, "summary", "") or (part.__doc__ or "").strip(), "nothing to show in `fcit list`"

    check_each(ENTRIES, check)


def test_unknown_name():
    def check(kind: str) -> None:
        with pytest.raises(ConfigError, match="unknown name 'nothing-like-it'"):
            registry.resolve(kind, "nothing-like-it")

    check_each(registry.KINDS.keys(), check)


def test_nearest():
    assert registry.nearest("fedavq", ["fedavg", "scaffold"]) == "; did you mean 'fedavg'?"
    assert registry.nearest("xyz", ["fedavg"]) == ""


def test_what_is_read_of_a_part_is_what_it_says_of_itself():
    for kind, table in registry.KINDS.items():
        for name, place in table.items():
            part = registry.resolve(kind, name)
            text = getattr(part, "summary", "") or (part.__doc__ or "").strip().splitlines()[0]
            family = getattr(part, "family", "") if kind == "method" else ""
            assert registry.described(place) == (text, bool(getattr(part, "dagger", False)), family), (kind, name)


def test_every_method_belongs_to_a_family():
    without = [name for name, place in registry.METHODS.items() if registry.described(place).family not in FAMILIES]
    assert without == []


def test_what_is_read_of_a_module_is_its_first_line():
    assert registry.described("fcit.registry") == ((registry.__doc__ or "").splitlines()[0], False, "")
    with pytest.raises(ModuleNotFoundError, match=r"no module 'fcit\.none'"):
        registry.described("fcit.none")


def test_a_hook_under_an_old_name_is_not_passed_over(tmp_path):
    base = "from fcit.fedopt.fedavg import FedAvg\n\n\nclass Mine(FedAvg):\n"
    (tmp_path / "mine.py").write_text(f"{base}    def doubt(self, extra):\n        return None\n")
    with pytest.raises(ConfigError, match=r"Mine defines doubt\(\), which is called reject_reason\(\) now; rename it"):
        registry.resolve("fedopt", f"{tmp_path}/mine.py:Mine")
