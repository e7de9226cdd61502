"""The run folders of a bench: their state, their locks, and whether they belong to the plan."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from filelock import FileLock

from fcit import config as configuration
from fcit.bench.overrides import flat, text_of
from fcit.bench.plan import RECORDED, Planned, same_run
from fcit.data.benchmark import open_benchmark
from fcit.data.fingerprints import fingerprint
from fcit.errors import ConfigError, FCITError
from fcit.io.files import writing
from fcit.runs.environment import describe
from fcit.runs.folder import RunDir

LOG = "log.txt"
State = Literal["done", "begun", "new"]


def state(run: Planned) -> State:
    """The state of a run by its folder."""
    folder = RunDir(run.folder)
    if folder.results.is_file():
        return "done"
    return "begun" if folder.config.is_file() else "new"


def foreign(run: Planned) -> str | None:
    """Why the folder holds another run than the plan, in one sentence, or None."""
    folder = RunDir(run.folder)
    if not folder.config.is_file():
        return None
    try:
        config = configuration.load_resolved(folder.config)
    except FCITError as error:
        return f"{folder.config} cannot be read any more ({error})"
    if same_run(config) == same_run(run.config):
        return None
    present, planned = flat(config.model_dump(mode="json")), flat(run.config.model_dump(mode="json"))
    changed = [
        f"{key} is {text_of(present.get(key))} there, {text_of(planned.get(key))} in the plan"
        for key in {**present, **planned}
        if present.get(key) != planned.get(key) and key not in RECORDED
    ]
    return f"{folder.config} is of another run: {'; '.join(changed)}"


def check(runs: list[Planned], fresh: bool) -> None:
    """Refuse folders of other runs; with ``fresh`` they are removed.

    Raises:
        ConfigError: there are some.
    """
    strange = [(run, why) for run in runs if (why := foreign(run)) is not None]
    if not fresh and strange:
        advice = "go back to that configuration, give the bench another name, or `--fresh` removes and repeats these"
        raise ConfigError([*(why for _, why in strange), advice], "bench")
    for run, _ in strange:
        lock = claim(run)
        if lock is None:
            raise ConfigError(f"{run.folder}: another process is at work there; stop it first", "bench")
        shutil.rmtree(run.folder)
        os.close(lock)


def prepare(runs: list[Planned]) -> None:
    """Prepare data and partitions of every run once, so that concurrent runs do not write the same files.

    Raises:
        ConfigError, DataError: the data are not usable.
    """
    ready = set()
    for run in runs:
        benchmark = open_benchmark(run.config)
        federation = run.config.federation
        held_out = tuple((name, owner.root) for name, owner in benchmark.held_out.items())
        key = (benchmark.spec.name, benchmark.root, run.config.evaluation.split, held_out)
        if key not in ready:
            benchmark.prepare()
        shares = (*key, federation.clients, federation.beta, run.seed, run.config.data.max_records)
        if shares not in ready:
            benchmark.divide()
            fingerprint.of(benchmark)  # caches the hashes of the images
        ready |= {key, shares}


def place(run: Planned) -> None:
    """Write configuration and environment of a new run."""
    if state(run) == "new":
        RunDir.place(run.folder, configuration.dump(run.config), describe())


def claim(run: Planned) -> int | None:
    """A lock on the folder, to be inherited by the process of the run; None if another process holds it.

    The lock lasts as long as that process, even if this one is killed.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(run.folder / ".bench.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While one process writes tables into a folder another one waits."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".tables.lock"):
        yield


def last_line(run: Planned) -> str:
    """The last line of a run's log."""
    log = run.folder / LOG
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "its log is empty")
