import numpy as np
import pytest

from fcit.models.features import BATCH, FeatureStore


class Computer:
    """Row of key "7" is [[7, 7]]; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, keys) -> np.ndarray:
        self.asked.append(list(keys))
        return np.stack([np.full((1, 2), float(key)) for key in keys])

    @property
    def keys(self) -> list[str]:
        return [key for keys in self.asked for key in keys]


@pytest.fixture
def compute() -> Computer:
    return Computer()


@pytest.fixture
def store(tmp_path, compute) -> FeatureStore:
    return FeatureStore(tmp_path / "f", (1, 2), compute)


def values(rows: np.ndarray) -> list[float]:
    assert rows.dtype == np.float32 and rows.shape[1:] == (1, 2)
    assert (rows[:, 0, 0] == rows[:, 0, 1]).all()
    return rows[:, 0, 0].tolist()


def test_computes_once_and_keeps_the_order_of_keys(store, compute):
    assert values(store.get(["3", "1", "3"])) == [3, 1, 3]
    assert values(store.get(["1", "2", "3"])) == [1, 2, 3]
    assert compute.asked == [["3", "1"], ["2"]]


def test_another_instance_reads_the_file(store, compute):
    store.get(["1", "2"])
    other = Computer()
    assert values(FeatureStore(store.folder, (1, 2), other).get(["2", "1"])) == [2, 1]
    assert other.asked == []


def test_two_live_instances_see_each_other(store, compute):
    other = FeatureStore(store.folder, (1, 2), compute)
    store.get(["1"])
    other.get(["2"])
    store.get(["1", "3"])
    assert values(store.get(["3", "2", "1"])) == [3, 2, 1]
    assert values(other.get(["3", "2", "1"])) == [3, 2, 1]
    assert compute.keys == ["1", "2", "3"]


def test_computes_in_batches(store, compute):
    keys = [str(n) for n in range(BATCH + 3)]
    assert values(store.get(keys)) == list(range(BATCH + 3))
    assert [len(batch) for batch in compute.asked] == [BATCH, 3]


def test_half_an_index_line_is_passed_over(store, compute):
    store.get(["1", "2"])
    with (store.folder / "index.jsonl").open("ab") as file:
        file.write(b'["3", 2')
    for _ in range(2):
        fresh = FeatureStore(store.folder, (1, 2), compute)
        assert values(fresh.get(["1", "2", "3", "4"])) == [1, 2, 3, 4]
    assert compute.keys == ["1", "2", "3", "4"]


def test_half_a_row_is_passed_over(store, compute):
    store.get(["1", "2"])
    with (store.folder / "features.bin").open("ab") as file:
        file.write(b"\x01" * 5)
    for _ in range(2):
        fresh = FeatureStore(store.folder, (1, 2), compute)
        assert values(fresh.get(["1", "3", "2"])) == [1, 3, 2]
    assert compute.keys == ["1", "2", "3"]


def test_rows_without_an_index_line_are_passed_over(store, compute):
    store.get(["1"])
    with (store.folder / "features.bin").open("ab") as file:
        file.write(np.full(2, 9, np.float32).tobytes())
    assert values(FeatureStore(store.folder, (1, 2), compute).get(["2", "1"])) == [2, 1]


def test_returned_rows_are_the_callers_own(store):
    rows = store.get(["1"])
    rows[:] = 0
    assert values(store.get(["1"])) == [1]


def test_an_image_changed_in_place_is_computed_anew(tmp_path, monkeypatch):
    from PIL import Image

    from fcit.config import Backbone as Settings
    from fcit.models.backbone import Backbone

    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    backbone = Backbone(Settings())
    red = backbone.vision_features(tmp_path, ["a.png"])
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "a.png")
    blue = backbone.vision_features(tmp_path, ["a.png"])
    assert float((red - blue).abs().max()) > 0.1
    assert (blue == Backbone(Settings(feature_cache="off")).vision_features(tmp_path, ["a.png"])).all()
