"""The server's state on disk: written after every round and evaluation, read by ``fcit resume``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from fcit.errors import DiskFull, RunError
from fcit.evaluation.following import Followed
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.federation.messages import ClientUpdate
from fcit.io import trees
from fcit.io.files import read_json, read_tensors, sync, write_json, write_tensors, writing
from fcit.methods.base import ServerState
from fcit.privacy.ledger import Ledger
from fcit.privacy.record_ledger import RecordLedger
from fcit.runs.folder import RunDir
from server.timeline import Timeline

KEEP = 2


@dataclass
class Progress:
    """Where the run stands. ``round`` counts finished rounds of ``stage``."""

    stage: int = 0
    round: int = 0
    measured: bool = False  # what the method wants to know before the rounds of this stage is known
    ended: bool = False  # the method has seen the end of this stage
    evaluated: list[str] = field(default_factory=list)  # datasets already scored after this stage
    row: dict[str, float] = field(default_factory=dict)  # their scores
    extra: dict[str, dict[str, float]] = field(default_factory=dict)  # scores of `also` rules
    rows: list[dict[str, float]] = field(default_factory=list)
    extra_rows: list[dict[str, dict[str, float]]] = field(default_factory=list)
    untrained: dict[str, float] = field(default_factory=dict)  # scores, at hand, of data sets not trained (yet)
    untrained_rows: dict[str, dict[str, float]] = field(default_factory=dict)  # by stage from 1; "0": before the first
    followed: dict[str, Followed] = field(default_factory=dict)  # the form of their answers
    followed_rows: list[dict[str, Followed]] = field(default_factory=list)
    declared: dict[str, int] = field(default_factory=dict)  # "client/shard" -> records
    contributed: list[str] = field(default_factory=list)  # whose update took part, with `evaluation.personal`; as above
    described: list[str] = field(default_factory=list)  # shards that clients were asked to describe, "client/shard"
    lengths: list[float] = field(default_factory=list)  # of the mean features accepted so far
    openings: dict[str, int] = field(default_factory=dict)  # client -> subspaces opened for its shards
    trained: dict[str, dict[str, int]] = field(default_factory=dict)  # task -> subspace -> records trained on
    memories: dict[str, str] = field(default_factory=dict)  # client -> version of what it remembers
    constants: dict[str, list[str]] = field(default_factory=dict)  # client -> groups it keeps
    kept: dict[str, int] = field(default_factory=dict)  # client -> bytes it keeps
    client_rounds: int = 0  # accepted updates
    trained_numbers: int = 0  # summed over them
    client_seconds: float = 0.0
    training_bytes: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    per_client: list[dict[str, dict[str, float]]] = field(default_factory=list)  # by stage: client -> data set -> score
    ranks: dict[str, int] = field(default_factory=dict)  # client -> rank it was pruned to
    by_rank: dict[str, dict[str, int]] = field(default_factory=dict)  # rank -> client rounds, bytes down and up
    personal: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # stage -> client -> model -> score
    personal_seconds: float = 0.0
    untrained_extra: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # by other rules
    samples: int = 0  # questions answered
    samples_untrained: int = 0  # those of them about data sets not trained (yet)
    answer_seconds: float = 0.0
    norms: list[float] = field(default_factory=list)
    owed: dict[str, float] = field(default_factory=dict)  # "client/subspace" -> how far what it owes may reach
    privacy: Ledger | None = None  # with differential privacy
    records: RecordLedger | None = None  # with differential privacy of records
    timeline: Timeline | None = None  # with simulated time
    offsets: dict[str, int] = field(default_factory=dict)  # samples shown to pooled references
    traffic: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0, "orders": 0, "rejected": 0})
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] | None = field(default_factory=dict)  # of clients; None: unknown
    events: int = 0  # bytes of events.jsonl that belong to this state
    saves: int = 0

    def count_round(self, traffic: dict[str, int], accepted: list[ClientUpdate]) -> None:
        """Add a finished round to the run's cost."""
        self.client_rounds += len(accepted)
        self.count_work(traffic, accepted)

    def count_work(self, traffic: dict[str, int], accepted: list[ClientUpdate]) -> None:
        """Add seconds and bytes of clients, without a round of their own: of measuring, to that of a stage's rounds."""
        self.client_seconds = round(self.client_seconds + sum(u.seconds for u in accepted), 4)
        for way in self.training_bytes:
            self.training_bytes[way] += traffic[way]

    def count_tasks(self, tasks: list[int], subspace: str, examples: int) -> None:
        """Note what a subspace was trained on; only references that know the true task use it."""
        for task in tasks:
            counts = self.trained.setdefault(f"task-{task}", {})
            counts[subspace] = counts.get(subspace, 0) + examples

    def forget(self, client: int) -> dict[str, Any]:
        """Note that a client has lost what it kept: its next order starts afresh. Returns what is forgotten of it."""
        return {"version": self.memories.pop(str(client), ""), "constants": self.constants.pop(str(client), [])}

    def end_evaluation(self, due: list[str]) -> dict[str, dict[str, float]]:
        """Close the row of the stage at hand: ``due`` in this order, whichever data set was answered first.

        Returns:
            Its scores as ``row`` and, if there are some, those of data sets not trained (yet) as ``untrained``.
        """
        untrained = {"untrained": self.untrained} if self.untrained else {}
        self.rows.append({name: self.row[name] for name in due})
        self.extra_rows.append({name: self.extra[name] for name in due})
        # A run begun by a version that did not look at forms has none of its first stages.
        self.followed_rows += [{}] * (len(self.rows) - 1 - len(self.followed_rows))
        self.followed_rows.append({name: self.followed[name] for name in due if name in self.followed})
        self.end_untrained(self.stage + 1)
        self.row, self.extra, self.followed = {}, {}, {}
        self.owed.clear()  # in place: it is the validator's, too
        return {"row": self.rows[-1], **untrained}

    def end_untrained(self, stage: int) -> None:
        """Close the row of data sets not trained (yet), after a stage from 1 on; 0: before the first."""
        if self.untrained or stage == 0:
            self.untrained_rows[str(stage)] = self.untrained
        self.evaluated, self.untrained = [], {}

    def matrix(self, columns: list[str]) -> AccuracyMatrix:
        """The scores of the stages so far, with these data sets as columns."""
        shares = [
            {name: each.share for name, each in row.items() if each.share is not None} for row in self.followed_rows
        ]
        contents = [{name: each.content for name, each in row.items()} for row in self.followed_rows]
        return AccuracyMatrix.of(columns, self.rows, self.untrained_rows, shares=shares, contents=contents)

    @property
    def majority(self) -> dict[str, str]:
        """For each task the subspace trained on most of its records; of equals the one that began first."""
        return {task: max(counts, key=lambda name: counts[name]) for task, counts in self.trained.items()}


def _flatten(state: ServerState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain values and arrays.

    Raises:
        RunError: the method or the optimiser left something else than float32 arrays, which clients could not train.
    """
    for home, held in {**state.subspaces, "shared": state.shared}.items():
        for key, value in held.items():
            if not isinstance(value, np.ndarray) or value.dtype != np.float32:
                what = getattr(value, "dtype", type(value).__name__)
                raise RunError(
                    f"{home}/{key} is {what} after aggregate or end_stage, not a float32 array; a method's or an "
                    "optimiser's own arithmetic needs .astype(np.float32) at its end"
                )
    tensors = {f"shared/{k}": v for k, v in state.shared.items()}
    for name, subspace in state.subspaces.items():
        tensors |= {f"subspace/{name}/{k}": v for k, v in subspace.items()}
    parts = {
        "method": state.memory,
        "fedopt": _safe(state.optimizers),
        "factors": list(map(list, state.factors.items())),
    }
    memory, remembered = trees.flatten(parts, "memory")
    head = {
        "subspaces": list(state.subspaces),
        "assigned": [[client, shard, name] for (client, shard), name in sorted(state.assigned.items())],
        "turns": state.turns,
        "memory": memory,
    }
    return head, tensors | remembered


def _safe(optimizers: dict[str, dict[str, Any]]) -> list[Any]:
    """Parameter names may hold anything, so they go into lists, not into paths."""
    return [[name, [[k, v] for k, v in memory.items()]] for name, memory in optimizers.items()]


def save(run: RunDir, state: ServerState, progress: Progress) -> None:
    """Write a new checkpoint; older ones than the last two are removed.

    Raises:
        DiskFull: no space left; earlier checkpoints are untouched.
    """
    progress.saves += 1
    if run.events.is_file():
        with writing(run.events):
            sync(run.events)
    progress.events = run.events.stat().st_size if run.events.is_file() else 0
    folder = run.state / f"{progress.saves:06d}"
    shutil.rmtree(folder, ignore_errors=True)
    head, tensors = _flatten(state)
    try:
        write_tensors(folder / "tensors.safetensors", tensors)
        # The JSON goes last and names the checkpoint complete.
        write_json(folder / "state.json", {"state": head, "progress": asdict(progress)})
    except DiskFull:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    with writing(folder):
        sync(run.state)
        sync(run.path)
    for old in sorted(run.state.iterdir())[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def complete(run: RunDir) -> list[Path]:
    """Complete checkpoints, newest first."""
    if not run.state.is_dir():
        return []
    return [f for f in sorted(run.state.iterdir(), reverse=True) if (f / "state.json").is_file()]


def load(run: RunDir, damaged: Callable[[str], None] = lambda reason: None) -> tuple[ServerState, Progress] | None:
    """The newest checkpoint that can be read, or None if there is none.

    Args:
        damaged: called with the reason for each newer one that was passed over.

    Raises:
        RunError: there are checkpoints and all of them are damaged.
    """
    problems = []
    for folder in complete(run):
        try:
            return _read(folder)
        except RunError as error:
            problems.append(str(error))
            damaged(str(error))
    if problems:
        raise RunError(f"no checkpoint in {run.state} can be read ({'; '.join(problems)}); start the run anew")
    return None


def _read(folder: Path) -> tuple[ServerState, Progress]:
    raw = read_json(folder / "state.json")
    tensors = read_tensors(folder / "tensors.safetensors")
    try:
        head = raw["state"]
        state = ServerState(
            subspaces={n: trees.under(tensors, f"subspace/{n}/") for n in head["subspaces"]},
            shared=trees.under(tensors, "shared/"),
            assigned={(int(c), str(s)): str(n) for c, s, n in head["assigned"]},
            turns=dict(head["turns"]),
        )
        memory = trees.restore(head["memory"], tensors)
        state.memory = memory["method"]
        state.optimizers = {name: dict(pairs) for name, pairs in memory["fedopt"]}
        state.factors = dict(memory.get("factors", []))  # older checkpoints have none
        # Older checkpoints do not tell who has trained from who was described, nor how long processors have worked.
        older = {"contributed": sorted(raw["progress"]["declared"]), "cpu_seconds": None}
        progress = Progress(**{**older, **raw["progress"]})  # no other names
        return state, TypeAdapter(Progress).validate_python(asdict(progress))  # and of these types
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder}: damaged checkpoint ({error!r})") from None
