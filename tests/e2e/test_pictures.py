"""``data.pictures`` from the configuration to every place that opens a picture: training, evaluation, answers."""

import json

import numpy as np
import pytest
from PIL import Image

import fcit as package
from clients.worker.worker import worker
from fcit import config as configuration
from fcit.data.images.opening import open_image
from fcit.models import features, vision
from fcit.report import page
from fcit.runs.reader import load_run
from tests.helpers.own_data import RECORDS, make_own


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A run over clip art: a drawing on nothing, with black below."""
    monkeypatch.setenv("FCIT_CACHE", str(tmp_path / "cache"))
    path = make_own(tmp_path)
    for n, file in enumerate(sorted((tmp_path / "data/datasets").iterdir())):
        pixels = np.zeros((30, 40, 4), np.uint8)
        pixels[5 : 8 + n, 5:20] = (255, 0, 0, 255)
        Image.fromarray(pixels, "RGBA").save(file)
    return path


@pytest.mark.parametrize("way", ["official", "upright"])
def test_every_place_opens_pictures_the_same_way(own, fcit, monkeypatch, way):
    opened: dict[str, set[str]] = {}

    def spy(module) -> None:
        def told(root, image, way="official"):
            opened.setdefault(module.__name__, set()).add(way)
            return open_image(root, image, way)

        monkeypatch.setattr(module, "open_image", told)

    for module in (vision, features, page):
        spy(module)
    code, out, err = fcit("run", own, f"data.pictures={way}", "method.token=both")
    assert code == 0, out + err
    folder = own.parent / "runs/own-1"
    assert fcit("report", folder)[0] == 0
    names = ("fcit.models.vision", "fcit.models.features", "fcit.report.page")  # model, identity, report
    assert opened == {name: {way} for name in names}

    routing = json.loads((folder / "adapters/routing.json").read_text())
    assert routing["pictures"] == way
    exported = package.export_run(folder, own.parent / "out")
    assert ("data.pictures: upright" in (exported / "README.md").read_text()) == (way == "upright")
    assistant = package.load(exported)
    run = load_run(folder)
    asked = run.predictions("colors")
    files = [own.parent / "data/datasets" / record.image for record in asked]
    answers = assistant.answer(files, [record.prompt for record in asked])
    assert [a.text for a in answers] == [record.text for record in asked]
    with Image.open(files[0]) as picture:
        assert assistant.answer([picture], [asked[0].prompt]) == answers[:1]
    assert opened == {name: {way} for name in names}


def test_workers_of_both_ways_do_not_share_a_model(own):
    text = configuration.dump(configuration.load(own, []))
    other = configuration.dump(configuration.load(own, ["data.pictures=upright"]))
    found = [worker(each).backbone for each in (text, other)]
    assert [b.pictures for b in found] == ["official", "upright"] == [b.identity.pictures for b in found]
    assert found[0].vision.mark != found[1].vision.mark


def test_check_counts_what_the_official_way_ignores(own, fcit):
    code, out, _ = fcit("data", "check", own.parent / "mine.yaml", "--root", own.parent / "data", "--json")
    (found,) = json.loads(out)["datasets"]
    assert code == 0
    assert found["pictures"]["transparent"] == found["images"] == RECORDS + 4
    assert found["pictures"]["turned by EXIF"] == found["pictures"]["one single colour"] == 0
    assert "data.pictures=upright" in " ".join(found["notes"])
