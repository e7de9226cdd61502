import pytest

from fcit import registry
from fcit.errors import ConfigError
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
            assert registry.described(place) == (text, bool(getattr(part, "dagger", False))), (kind, name)


def test_what_is_read_of_a_module_is_its_first_line():
    assert registry.described("fcit.registry") == ((registry.__doc__ or "").splitlines()[0], False)
    with pytest.raises(ModuleNotFoundError, match=r"no module 'fcit\.none'"):
        registry.described("fcit.none")
