"""The measurement of an update's cost runs at toy size; times are not looked at."""

from tests.perf import update


def test_parts_of_an_update(tmp_path, monkeypatch):
    for name, value in {"LAYERS": 1, "HIDDEN": 16, "INNER": 24, "SEEN": 8}.items():
        monkeypatch.setattr(update, name, value)
    costs, aggregate = update.measure(2, tmp_path / "a")
    assert set(costs) == {"decode", "validate", "keep", "aggregate"}
    assert update.measure(2, tmp_path / "b")[1] == aggregate
