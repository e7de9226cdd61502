from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcit
from fcit import seeding
from fcit.export.assistant import Assistant
from tests.helpers.made import Made, raw
from tests.helpers.runs import BACKBONE
from tests.helpers.serving import served


@pytest.fixture(scope="package")
def pictures(tmp_path_factory) -> Path:
    """A folder of images, with a link in it that leads out."""
    root = tmp_path_factory.mktemp("pictures")
    rng = seeding.generator(0, "pictures")
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(root / name)
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    Image.new("RGB", (8, 8)).save(outside)
    (root / "link.png").symlink_to(outside)
    (root / "text.png").write_text("not an image")
    return root


@pytest.fixture(scope="package")
def assistant(tmp_path_factory) -> Assistant:
    made = Made(tmp_path_factory.mktemp("made") / "run", raw(backbone=BACKBONE))
    return fcit.load(made.path)


@pytest.fixture(scope="package")
def url(assistant, pictures) -> Iterator[str]:
    """A server with the made run's model, for all tests of a file."""
    with served(assistant, pictures, pixels=10_000, body=200_000, tokens=64) as (url, _):
        yield url
