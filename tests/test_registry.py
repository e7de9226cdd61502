import pytest

from fcit import registry
from fcit.errors import ConfigError
from tests.helpers.cases import check_each

ENTRIES = [(family, name) for family, table in registry.FAMILIES.items() for name in table]


def test_every_entry_resolves():
    def check(entry: tuple[str, str]) -> None:
        part = registry.resolve(*entry)
        assert callable(part)
        assert getattr(part, "summary", "") or (part.__doc__ or "").strip(), "nothing to show in `fcit list`"

    check_each(ENTRIES, check)


def test_unknown_name():
    def check(family: str) -> None:
        with pytest.raises(ConfigError, match="unknown name 'nothing-like-it'"):
            registry.resolve(family, "nothing-like-it")

    check_each(registry.FAMILIES.keys(), check)


def test_nearest():
    assert registry.nearest("fedavq", ["fedavg", "scaffold"]) == "; did you mean 'fedavg'?"
    assert registry.nearest("xyz", ["fedavg"]) == ""
