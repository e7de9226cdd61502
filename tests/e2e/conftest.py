import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from fcit import seeding
from fcit.cli import main
from tests.helpers.llava import small_llava
from tests.helpers.qwen import small_qwen
from tests.helpers.runs import OWN, SMALL


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster of two nodes with one core each, started once for all tests."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 1024**2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": {"worker_niceness": 0}})
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.fixture(scope="session")
def reference(shared, tmp_path_factory) -> Path:
    """The small configuration run on the inline engine: what every other way of running must equal.

    Run once for all of pytest-xdist's processes; each has a copy, beside which it may put runs of its own.
    """
    once = shared / "reference"
    with FileLock(f"{once}.lock"):
        if not (once / "small-1" / "results.json").is_file():
            once.mkdir(exist_ok=True)
            config = once / "small.yaml"
            config.write_text(yaml.safe_dump({**SMALL, "output": str(once)}))
            assert main(["run", str(config)]) == 0
    folder = tmp_path_factory.mktemp("reference")
    shutil.copytree(once / "small-1", folder / "small-1")
    (folder / "small.yaml").write_text(yaml.safe_dump({**SMALL, "output": str(folder)}))
    return folder / "small-1"


def assert_themes_differ(browser) -> None:
    """The button of a page changes its background, and the ink of its charts with it."""
    seen = []
    for _ in range(2):
        seen.append(
            browser.execute_script(
                """return [getComputedStyle(document.body).backgroundColor,
               getComputedStyle(document.querySelector('svg text')).fill]"""
            )
        )
        browser.find_element("id", "theme").click()
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


@pytest.fixture
def own_config(tmp_path) -> Path:
    """A folder with copies of the example parts and a configuration that uses all of them."""
    for file in OWN.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    path = tmp_path / "own.yaml"
    raw = {
        **SMALL,
        "name": "own",
        "benchmark": "shapes.yaml",
        "output": str(tmp_path),
        "federation": {"rounds": 2, "clients": 10, "clients_per_round": 3},
        "data": {"max_records": 80},
        "method": {"name": "./anchored.py:Anchored", "strength": 0.02},
        "fedopt": {"name": "./momentum.py:Momentum", "beta": 0.3},
    }
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    rows = seeding.generator(0, "picture").integers(0, 255, (64, 64, 3))
    Image.fromarray(rows.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def backbones(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("backbones")
    model, identity = small_llava(folder)
    return {
        "fcit-tiny": {},
        "llava": {"model": model, "identity": identity, "conversation": "vicuna_v1"},
        "qwen": {"model": small_qwen(folder), "identity": identity},
    }
