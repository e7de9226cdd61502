import hashlib
import threading
import weakref

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from fcit.config import Adapter
from fcit.config import Backbone as Settings
from fcit.data.records import Record
from fcit.errors import DataError
from fcit.models import hashes
from fcit.models import vision as vision_module
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.features import (
    BATCH,
    FeatureStore,
    Pictures,
    features_size,
    filled,
    processed,
    restored,
    stored,
)
from fcit.models.layout import is_projector
from fcit.models.loader import Loader


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
    assert rows.dtype == np.float32
    assert rows.shape[1:] == (1, 2)
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
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    backbone = Backbone(Settings())
    red = backbone.vision_features(tmp_path, ["a.png"])
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "a.png")
    blue = backbone.vision_features(tmp_path, ["a.png"])
    assert float((red - blue).abs().max()) > 0.1
    assert (blue == Backbone(Settings(feature_cache="off")).vision_features(tmp_path, ["a.png"])).all()


def test_a_full_disk_share_is_said_once_and_the_rest_is_computed_each_time(tmp_path, compute):
    """Room for the rows of one batch of two, neighbours included."""
    row = 2 * 4
    neighbour = FeatureStore(tmp_path / "features" / "other", (1, 2), Computer())
    neighbour.get(["8"])
    store = FeatureStore(tmp_path / "features" / "f", (1, 2), compute, limit=3 * row)
    assert values(store.get(["1", "2"])) == [1, 2]
    with pytest.warns(UserWarning, match=r"no room for more \(backbone\.feature_cache_gb") as said:
        assert values(store.get(["3", "1", "3"])) == [3, 1, 3]
    assert values(store.get(["4", "2", "3"])) == [4, 2, 3]
    assert len(said) == 1
    assert compute.asked == [["1", "2"], ["3"], ["4", "3"]]
    assert (store.folder / "features.bin").stat().st_size == 2 * row


def test_rows_keep_the_bits_of_sixteen_bit_models(tmp_path):
    rows = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    store = FeatureStore(tmp_path / "f", (3, 4), lambda keys: stored(rows[[int(key) for key in keys]]), np.int16)
    for _ in range(2):
        assert torch.equal(restored(store.get(["1", "0"]), torch.bfloat16), rows[[1, 0]])
    assert (store.folder / "features.bin").stat().st_size == rows.numel() * 2


def test_pictures_are_read_batch_by_batch(tmp_path, monkeypatch):
    """From the cache: computed before the training starts. Without one: when a batch is read."""
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    names = [f"{n}.png" for n in range(5)]
    for n, name in enumerate(names):
        Image.new("RGB", (64, 64), (40 * n, 0, 255 - 40 * n)).save(tmp_path / name)
    for cache in ("disk", "off"):
        backbone = Backbone(Settings(feature_cache=cache))
        computed = []
        pixels = backbone.family.pixels

        def counted(image, pixels=pixels, computed=computed):
            computed.append(image)
            return pixels(image)

        monkeypatch.setattr(backbone.family, "pixels", counted)
        pictures = backbone.images(tmp_path, names)
        assert len(pictures) == 5
        assert len(computed) == (5 if cache == "disk" else 0)
        batch = pictures.batch([4, 0, 4])
        assert torch.equal(batch, backbone.vision_features(tmp_path, ["4.png", "0.png", "4.png"]))
        assert len(computed) == (5 if cache == "disk" else 3 + 3)
    folder, size = features_size()
    assert folder == tmp_path / "cache" / "features"
    assert size == 5 * 16 * 128 * 4


def test_the_projector_learns_from_kept_features(tmp_path, monkeypatch):
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    backbone = Backbone(Settings())
    adapters = Adapters(backbone, Adapter())
    pictures = backbone.images(tmp_path, ["a.png"])
    monkeypatch.setattr(backbone.family, "features", None)  # from here on only what is kept
    with adapters.training():
        backbone.loss([backbone.encode("Which colour?", "red", "a.png")], pictures.batch([0])).backward()
        grads = [float(p.grad.abs().sum()) for n, p in adapters.trainable.items() if is_projector(n)]
    assert len(grads) == 4
    assert all(value > 0 for value in grads)


def test_kept_features_are_of_one_way_to_read_pictures(tmp_path, monkeypatch):
    """Those of the official way keep the name they always had."""
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "clip.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    official, upright = Backbone(Settings()), Backbone(Settings(), "upright")
    parts = [
        hashes.of_module(official.family.tower),
        official.image_processor.to_json_string(),
        transformers.__version__,
    ]
    assert official.vision.mark == hashlib.sha256("|".join(parts).encode()).hexdigest()[:16] != upright.vision.mark
    black, white = official.vision_features(tmp_path, ["clip.png", "white.png"])
    clip, same = upright.vision_features(tmp_path, ["clip.png", "white.png"])
    assert torch.equal(clip, same)
    assert torch.equal(white, same)
    assert not torch.equal(black, clip)
    records = [Record.single(name, "Which?", "none") for name in ("clip.png", "white.png")]
    black, white = official.identity.features("image", records, tmp_path)
    clip, same = upright.identity.features("image", records, tmp_path)
    assert (clip == same).all()
    assert (white == same).all()
    assert (black != clip).any()


@pytest.mark.parametrize("threads", [0, 2])
def test_one_large_picture_at_a_time(threads, tmp_path, monkeypatch):
    """A picture that is padded to a square may take 400 MB; a batch has 32. Each thread has one."""
    alive = []
    real = vision_module.open_image

    def tracked(*args):
        image = real(*args)
        alive.append(weakref.ref(image))
        # the next one is opened before the last is let go
        assert sum(ref() is not None for ref in list(alive)) <= max(2, 2 * threads)
        return image

    monkeypatch.setattr(vision_module, "open_image", tracked)
    for n in range(6):
        Image.new("RGB", (40, 20), (40 * n, 0, 0)).save(tmp_path / f"{n}.png")
    backbone = Backbone(Settings(feature_cache="off", pad_to_square=True, loader_threads=threads))
    found = backbone.vision_features(tmp_path, [f"{n}.png" for n in range(6)])
    assert len(alive) == 6
    opened = backbone.family.prepared([Image.open(tmp_path / f"{n}.png").convert("RGB") for n in range(6)])
    together = filled(backbone.image_processor(opened, return_tensors="pt")["pixel_values"])
    assert torch.equal(processed(backbone.image_processor, opened), together[:6])
    assert torch.equal(found, backbone.vision_features(tmp_path, [f"{n}.png" for n in range(6)]))


def test_the_chunk_after_the_next_one_is_announced(tmp_path, compute):
    """While the first is computed, images of the second are prepared."""
    told: list[list[str]] = []
    store = FeatureStore(tmp_path / "f", (1, 2), compute, ahead=lambda keys: told.append(list(keys)))
    keys = [str(n) for n in range(2 * BATCH + 1)]
    store.get(keys)
    chunks = [keys[:BATCH], keys[BATCH : 2 * BATCH], keys[2 * BATCH :]]
    assert told == [chunks[0], chunks[1], chunks[1], chunks[2], chunks[2], []]
    assert compute.asked == chunks


def test_images_of_a_training_have_the_same_bits_with_threads(tmp_path, monkeypatch):
    names = [f"{n}.png" for n in range(BATCH + 3)]
    for n, name in enumerate(names):
        Image.new("RGB", (20 + n, 30), (5 * n, 9, 200)).save(tmp_path / name)
    features = []
    for threads in (0, 3):
        monkeypatch.setenv("FCIT_CACHE", str(tmp_path / f"cache-{threads}"))
        backbone = Backbone(Settings(loader_threads=threads))
        features.append(backbone.images(tmp_path, names).batch(range(len(names))))
    assert torch.equal(*features)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


class Slow:
    """Prepares an image by its name, a number; all others wait until the image "go" was prepared."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = threading.Event()

    def __call__(self, root, image: str) -> torch.Tensor:
        self.begun.append(image)
        if image == "go":
            self.go.set()
        elif not self.go.wait(60):
            raise TimeoutError(image)
        if image == "bad":
            raise DataError("no image")
        return torch.tensor([float(len(image))])


def test_several_threads_prepare_and_the_order_stays(tmp_path):
    loader = Loader(Slow(), 3)
    assert loader.rows(tmp_path, ["a", "abc", "go", "abc"]).flatten().tolist() == [1, 3, 2, 3]


def test_images_are_prepared_before_they_are_asked_for(tmp_path):
    slow = Slow()
    loader = Loader(slow, 2)
    loader.ahead(tmp_path, ["early"])  # no threads yet
    assert slow.begun == []
    with loader.working():
        loader.ahead(tmp_path, ["go", "next"])
        assert slow.go.wait(60)
        assert loader.rows(tmp_path, ["next"]).item() == 4
        loader.ahead(tmp_path, ["never"])
    assert slow.begun.count("next") == 1


def test_an_image_that_cannot_be_prepared_ends_the_batch(tmp_path):
    with pytest.raises(DataError, match="no image"):
        Loader(Slow(), 2).rows(tmp_path, ["go", "bad", "a"])


class Reader:
    """Features of images that are numbers; early where they are kept."""

    def __init__(self, kept: bool = True) -> None:
        self.kept, self.late, self.early = kept, [], []

    def read(self, indices):
        self.late.append(list(indices))
        return torch.tensor([float(i) for i in indices])

    def read_early(self, indices):
        self.early.append(list(indices))
        return torch.tensor([float(i) for i in indices]) if self.kept else None


def test_the_next_batch_is_read_ahead():
    reader = Reader()
    pictures = Pictures(reader.read, 9, reader.read_early)
    assert pictures.batch([1, 2]).tolist() == [1, 2]
    pictures.ahead([3, 4])
    pictures.ahead([5, 6])  # one at a time
    assert pictures.batch([3, 4]).tolist() == [3, 4]
    pictures.ahead([7])
    assert pictures.batch([8]).tolist() == [8]  # another one than was expected
    pictures.ahead([])
    assert pictures.batch([]).tolist() == []
    assert reader.early == [[3, 4], [7]]
    assert reader.late == [[1, 2], [8], []]


def test_what_is_not_kept_is_not_read_ahead():
    reader = Reader(kept=False)
    pictures = Pictures(reader.read, 9, reader.read_early)
    pictures.ahead([1])
    assert pictures.batch([1]).tolist() == [1]
    assert reader.late == [[1]]


def test_only_rows_that_are_stored_are_kept_ones(store, compute):
    assert store.kept(["1"]) is None
    store.get(["1", "2"])
    rows = store.kept(["2", "1"])
    assert rows is not None
    assert values(rows) == [2, 1]
    assert store.kept(["1", "3"]) is None
    assert compute.asked == [["1", "2"]]
