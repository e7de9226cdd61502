"""A text that every record, file name and image of a site holds is found in nothing that leaves it."""

import json
import shutil

import numpy as np
import pytest

from clients.site.audit import verify
from clients.worker.worker import worker
from fcit.federation import codec
from fcit.federation.messages import Probe
from tests.helpers.sites import Site, describe_order, make, ordered, probe_order, start, train_order, train_row

CANARY = "Canary7F3A"


class Watched(Site):
    """Keeps every byte that leaves."""

    def __init__(self, file) -> None:
        super().__init__(file)
        self.left: list[bytes] = []
        self.errors: list[str] = []

    def send(self, kind, order):
        reply = super().send(kind, order)
        self.left.append(str(reply.metadata).encode())
        if reply.has_error():
            self.left.append(f"{reply.error.code} {reply.error.reason}".encode())
            self.errors.append(reply.error.reason.split()[0])
            return reply
        head, arrays = codec.take_apart(reply.content)
        self.left += [head.encode(), *(n.encode() for n in arrays), *(a.data for a in arrays.values())]
        self.left += [repr(record).encode() for record in reply.content.values()]
        return reply

    def assert_silent(self) -> None:
        everything = b"\n".join(self.left).lower()
        trail = (self.home / "audit.jsonl").read_bytes().lower()
        for form in (
            CANARY.lower().encode(),
            CANARY.lower().encode("utf-16-le"),
            str(self.file.parent).lower().encode(),
        ):
            assert form not in everything and form not in trail, form
        assert verify(self.home / "audit.jsonl").broken is None


@pytest.fixture
def site(tmp_path) -> Watched:
    return Watched(make(tmp_path / CANARY, CANARY, max_bad_share=0))


def everything(site: Watched, tensors, config: str | None = None) -> None:
    for kind, order in (
        ("query.probe", probe_order(config)),
        ("query.describe", describe_order(config)),
        ("train", train_order(tensors, config)),
    ):
        site.send(kind, order)


def test_the_canary_is_really_there(site):
    """Else the other tests could not fail."""
    data = site.file.parent / "data"
    images = list((data / "datasets").rglob("*.*"))
    assert len(images) == 12
    assert all(CANARY in f.name and CANARY.encode() in f.read_bytes() for f in images)
    assert all(
        CANARY in str(row["conversations"]) for row in json.loads((data / "instructions/train.json").read_text())
    )
    site.left.append(CANARY.encode())
    site.send("query.probe", probe_order())
    with pytest.raises(AssertionError):
        site.assert_silent()


@pytest.mark.parametrize("method", ["disco", "replay", "l2p"])
def test_honest_answers_hold_tensors_counts_and_scores_only(site, method):
    config = ordered(method=method)
    probe = codec.decode(site.send("query.probe", probe_order(config)).content, Probe)
    tensors = start(probe)
    everything(site, tensors, config)
    assert site.errors == []
    assert len(site.left) > 20
    site.assert_silent()


def no_image(site):
    for file in (site.file.parent / "data" / "datasets").rglob("*.png"):
        file.unlink()


def broken_images(site):
    for file in (site.file.parent / "data" / "datasets").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60] + CANARY.encode())


def rewrite(site, change):
    path = site.file.parent / "data" / "instructions" / "train.json"
    rows = json.loads(path.read_text())
    path.write_text(change(rows))


def broken_record(site):
    rewrite(site, lambda rows: json.dumps([*rows[:-1], {"image": CANARY, "conversations": [CANARY]}]))


def broken_json(site):
    rewrite(site, lambda rows: json.dumps(rows)[:-20] + CANARY)


def outside(site):
    rewrite(site, lambda rows: json.dumps([*rows[:-1], train_row(f"../../{CANARY}", CANARY, CANARY)]))


def image_tag(site):
    """Passes the reader and fails in the model: the tag stands in the text twice."""
    rewrite(site, lambda rows: json.dumps([train_row(r["image"], f"<ima<image>ge> {CANARY}", CANARY) for r in rows]))


def no_data(site):
    shutil.rmtree(site.file.parent / "data")


def own_benchmark_broken(site):
    (site.file.parent / "own.yaml").write_text(f"name: {CANARY}\ndatasets: [{CANARY}]\n")


def site_yaml_broken(site):
    site.file.write_text(f"name: {CANARY}\nhome: home\n")


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (no_image, "data"),
        (broken_images, "data"),
        (broken_record, "data"),
        (broken_json, "data"),
        (outside, "data"),
        (image_tag, "data"),
        (no_data, "data"),
        (own_benchmark_broken, "config"),
        (site_yaml_broken, "config"),
    ],
)
def test_what_is_wrong_with_the_data_stays(site, harm, word):
    tensors = start(codec.decode(site.send("query.probe", probe_order()).content, Probe))
    harm(site)
    # as in new processes, each of which meets the fault for the first time
    worker.cache_clear()
    everything(site, tensors)
    assert word in site.errors and set(site.errors) <= {"data", "config", "internal"}, site.errors
    site.assert_silent()


def test_what_is_wrong_with_an_order_stays(site):
    tensors = start(codec.decode(site.send("query.probe", probe_order()).content, Probe))
    bad = [
        describe_order(client=1),
        describe_order(tasks=[5]),
        describe_order(run="../x"),
        describe_order(ordered() + "strange: 1\n"),
        describe_order("["),
        describe_order(ordered(stream="site")),
        describe_order(ordered().replace("server.yaml", str(site.file.parent / "own.py") + ":Mine")),
    ]
    for order in bad:
        site.send("query.describe", order)
    name = next(iter(tensors))
    for order in (
        train_order({**tensors, name: np.zeros((1, 2, 3), np.float32)}),
        train_order({n: np.full_like(t, np.nan) for n, t in tensors.items()}),
        train_order(tensors, memory="0-0", config=ordered(method="replay")),
        train_order(tensors, constants=["teacher-0"]),
        probe_order(),
    ):
        site.send("train", order)
    assert len(site.errors) == len(bad) + 5, site.errors
    assert {"refused", "config", "internal", "memory-lost", "message"} <= set(site.errors)
    site.assert_silent()
