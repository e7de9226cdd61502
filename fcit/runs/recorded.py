"""The fingerprints in a run folder: written when a run begins, compared with the data when it goes on."""

from __future__ import annotations

import time
from typing import Any

from fcit.data.benchmark import Benchmark
from fcit.data.fingerprints import changes, fingerprint
from fcit.data.fingerprints.changes import Change
from fcit.data.stream import Stream
from fcit.errors import ConfigError
from fcit.io.files import read_json, write_json
from fcit.runs.folder import BELONGS, RunDir


def hold_data(run: RunDir, stream: Stream, accept: bool = False) -> None:
    """Write the fingerprints of the data and own code that a run rests on, or compare them with those written.

    The training data of a deployed run are at the sites: only the server's questions are hashed. Runs of versions
    without fingerprints go on without.

    Args:
        accept: go on although they differ; what differs, and when, is kept under ``data_changes``.

    Raises:
        ConfigError: something differs, each with data set, split, file and hashes. RunError: damaged fingerprints.
    """
    known = read_json(run.environment)
    before = known.get("data")
    if run.begun and before is None:
        return
    now = fingerprint.of(stream, trains=not (run.path / BELONGS).is_file())
    if not run.begun:
        write_json(run.environment, {**known, "data": now})
        return
    differing = changes.compare(before, now)
    if not differing:
        return
    sentences = [_sentence(stream, change) for change in differing]
    if not accept:
        raise ConfigError([*sentences, _way_out(run)], f"{run.path}: not resumed, data or code of the run have changed")
    fields = [change._asdict() for change in differing]
    record = {"time": round(time.time(), 3), "changes": fields, "said": sentences}
    write_json(run.environment, {**known, "data": now, "data_changes": [*known.get("data_changes", []), record]})


def _sentence(stream: Stream, change: Change) -> str:
    names: list[str] = []
    if change.images and isinstance(stream, Benchmark):
        names = fingerprint.differing_images(stream, *change.images, change.before)
    return change.sentence("when the run began", "now") + (f" (differ: {changes.some(names)})" if names else "")


def _way_out(run: RunDir) -> str:
    belongs = run.path / BELONGS
    command = f"fcit resume {run.path}"
    if belongs.is_file():
        command = f"fcit deploy submit {belongs.read_text(encoding='utf-8').strip()} --resume {run.path}"
    return (
        f"put back what was there, or start a new run; `{command} --accept-changed-data` goes on, and everything that "
        "shows the run says so"
    )


def data_of(run: RunDir) -> dict[str, Any]:
    """The fingerprints of a run and what was accepted of their changes; empty for runs of older versions."""
    known = read_json(run.environment) if run.environment.is_file() else {}
    return {key: known[key] for key in ("data", "data_changes") if key in known}
