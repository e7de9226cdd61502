import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import fcit
from fcit import seeding
from fcit.export.assistant import Assistant
from fcit.serve.limits import Limits
from fcit.serve.server import listening, serve
from tests.helpers.made import Made, raw
from tests.helpers.runs import BACKBONE


def post(url: str, body: dict, **headers: str) -> httpx.Response:
    """The reply to a request for an answer; httpx takes a third of a second to prepare for certificates."""
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60, verify=False)


def health(url: str) -> dict:
    """What the server says of itself."""
    return httpx.get(f"{url}/health", verify=False).json()


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def assistant(tmp_path_factory) -> Assistant:
    made = Made(tmp_path_factory.mktemp("made") / "run", raw(backbone=BACKBONE))
    return fcit.load(made.path)


@contextmanager
def served(
    assistant, images: Path | None = None, key: str = "", **limits
) -> Iterator[tuple[str, multiprocessing.Process]]:
    """The base URL of a server in a forked process, which ends as Ctrl-C ends it."""
    with listening("127.0.0.1", 0, key) as place:
        port = place.getsockname()[1]
        work = multiprocessing.get_context("fork").Process(
            target=serve, args=(assistant, "run", place, images, Limits(**limits), key)
        )
        work.start()
    try:
        yield f"http://127.0.0.1:{port}", work
    finally:
        work.terminate()
        work.join()


@pytest.fixture(scope="module")
def url(assistant, pictures) -> Iterator[str]:
    """A server with the made run's model, for all tests of a file."""
    with served(assistant, pictures, pixels=10_000, body=200_000, tokens=64) as (url, _):
        yield url
