"""The run folders of a bench: what stands in them, and whose they are."""

from __future__ import annotations

import fcntl
import os
import shutil
from typing import Literal

from fcit import config as configuration
from fcit.bench.overrides import flat, text_of
from fcit.bench.plan import RECORDED, Planned, same_run
from fcit.data.benchmark import open_benchmark
from fcit.data.fingerprints import fingerprint
from fcit.errors import ConfigError, FCITError
from fcit.runs.environment import describe
from fcit.runs.folder import RunDir

LOG = "log.txt"
State = Literal["done", "begun", "new"]


def state(run: Planned) -> State:
    """How far a run is."""
    folder = RunDir(run.folder)
    if folder.results.is_file():
        return "done"
    return "begun" if folder.config.is_file() else "new"


def foreign(run: Planned) -> str | None:
    """Why what stands in the folder is another run than the plan's, in one sentence, or None."""
    folder = RunDir(run.folder)
    if not folder.config.is_file():
        return None
    try:
        found = configuration.load_resolved(folder.config)
    except FCITError as error:
        return f"{folder.config} cannot be read any more ({error})"
    if same_run(found) == same_run(run.config):
        return None
    there, planned = flat(found.model_dump(mode="json")), flat(run.config.model_dump(mode="json"))
    changed = [
        f"{key} is {text_of(there.get(key))} there, {text_of(planned.get(key))} in the plan"
        for key in {**there, **planned}
        if there.get(key) != planned.get(key) and key not in RECORDED
    ]
    return f"{folder.config} is of another run: {'; '.join(changed)}"


def check(runs: list[Planned], fresh: bool) -> None:
    """Refuse folders of other runs; ``fresh`` removes exactly those.

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
    """Data and partitions of every run, once: runs side by side must not make the same files.

    Raises:
        ConfigError, DataError: the data are not usable.
    """
    ready = set()
    for run in runs:
        benchmark = open_benchmark(run.config)
        federation = run.config.federation
        key = (benchmark.spec.name, benchmark.root, run.config.evaluation.split)
        if key not in ready:
            benchmark.prepare()
        shares = (*key, federation.clients, federation.beta, run.seed, run.config.data.max_records)
        if shares not in ready:
            benchmark.divide()
            fingerprint.of(benchmark)  # keeps the hashes of the images
        ready |= {key, shares}


def place(run: Planned) -> None:
    """Write configuration and environment of a run that has none yet."""
    if state(run) == "new":
        RunDir.place(run.folder, configuration.dump(run.config), describe())


def claim(run: Planned) -> int | None:
    """A lock on the folder, to be handed to the process that works in it; None: somebody else has it.

    The lock lives as long as that process, also where this one is killed.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(run.folder / ".bench.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def last_line(run: Planned) -> str:
    """The last thing a run said."""
    log = run.folder / LOG
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
