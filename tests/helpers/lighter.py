"""What makes the runs of the tests lighter: a smaller built-in world and model, no page, no waiting for the disk, files
of the world parsed once in a process, the environment read once in it, and processes of a bench that need not import
anything.
"""

import json
import os
import re
import shutil
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedConfig

from fcit.bench import schedule
from fcit.bench.plan import Planned
from fcit.bench.schedule import resume
from fcit.data.dataset import DatasetFiles
from fcit.data.formats import TrainFile, files, read_train_file
from fcit.data.mini import render
from fcit.data.store import MappedTrainFile
from fcit.models.places import TINY
from fcit.report import page
from fcit.runs import environment
from fcit.runs.folder import RunDir
from tests.helpers import forked, forkserver

#: Pictures per split and data set, where users get 4,000, 150 and 300: drawing them costs more than a small run.
SPLITS = {"train": 800, "val": 60, "test": 120}
#: Layers of the language model in most runs of the tests.
LAYERS = 2
#: Set in the environment, pages are drawn, by commands that the tests start, too.
PAGES = "FCIT_TEST_PAGES"


def lighten() -> None:
    """Do so in this process, from now on."""
    write_page = page.write_page

    def unless_nobody_looks(runs: list, path: Path) -> None:
        # drawing the page takes as long as a small run does; elsewhere than in a run's folder it was asked for
        if PAGES in os.environ or not RunDir(path.parent).config.is_file():
            write_page(runs, path)

    begin = schedule.Schedule.__init__

    def forking(self, runs: list, jobs: int, watcher, devices: list | None = None, command=forked_run) -> None:
        begin(self, runs, jobs, watcher, devices, command)

    train_file = DatasetFiles.train_file

    def parsed_once(self: DatasetFiles, name: str) -> TrainFile | MappedTrainFile:
        if self.spec.source != "mini":
            return train_file(self, name)
        path = self.located(self.spec.datasets[name].train)
        return _parsed(path, self.form(name), files.stamp(path))

    described = environment.versions, environment.source

    @lru_cache
    def versions(reader: object) -> dict[str, str]:
        return described[0]()

    @lru_cache
    def source(home: Path) -> str:
        return described[1]()

    # of one installation, which does not change under a process; tests put another function or folder in its place
    environment.versions = lambda: dict(versions(environment.metadata.version))
    environment.source = lambda: source(environment.HOME)
    # transformers words each configuration that it reads for a log that nobody keeps
    PreTrainedConfig.__repr__ = GenerationConfig.__repr__ = object.__repr__
    page.write_page = unless_nobody_looks
    DatasetFiles.train_file = parsed_once
    schedule.Schedule.__init__ = forking
    render.SPLITS.update(SPLITS)
    # A small run waits a hundred times until the disk has what it wrote, for the case that the machine loses power.
    os.fsync = lambda descriptor: None


@lru_cache(maxsize=8)
def _parsed(path: Path, form: files.Form, stamp: tuple[int, ...]) -> TrainFile:
    return read_train_file(path, form)


def forked_run(run: Planned) -> list[str]:
    """The command of a run of a bench, as a process that need not import torch."""
    forkserver.ensure()
    interpreter, *words = resume(run)
    return [interpreter, "-P", "-S", forked.__file__, *words]


def cut_model(folder: Path) -> None:
    """Write the built-in model with the first two of its six layers, which halves the time of a small run."""
    shutil.copytree(TINY / "llava", folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = LAYERS
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if _stays(name)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _stays(name: str) -> bool:
    layer = re.search(r"language_model\.(?:model\.)?layers\.(\d+)\.", name)
    return layer is None or int(layer[1]) < LAYERS
