import pytest

from fcit import registry
from fcit.errors import ConfigError

ENTRIES = [(family, name) for family, table in registry.FAMILIES.items() for name in table]


@pytest.mark.parametrize(("family", "name"), ENTRIES)
def test_every_entry_resolves(family, name):
    part = registry.resolve(family, name)
    assert callable(part)
    assert getattr(part, "summary", "") or (part.__doc__ or "").strip(), "nothing to show in `fcit list`"


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_unknown_name(family):
    with pytest.raises(ConfigError, match="unknown name 'nothing-like-it'"):
        registry.resolve(family, "nothing-like-it")


def test_nearest():
    assert registry.nearest("fedavq", ["fedavg", "scaffold"]) == "; did you mean 'fedavg'?"
    assert registry.nearest("xyz", ["fedavg"]) == ""
