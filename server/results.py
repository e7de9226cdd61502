"""The results of a finished run beside its predictions: ``results.json`` and the adapters."""

from __future__ import annotations

from typing import Any

from fcit.config import RunConfig
from fcit.config.per_client_checks import per_client
from fcit.data.stream import Stream
from fcit.data.subset import reduced
from fcit.evaluation.constant import constants
from fcit.evaluation.matrix import AccuracyMatrix
from fcit.federation.devices import HOUR
from fcit.io.files import write_json
from fcit.io.trees import arrays
from fcit.methods.base import Method, ServerState
from fcit.models.layout import left_out
from fcit.models.saving import save_subspace
from fcit.runs.folder import RunDir
from fcit.runs.recorded import data_of
from server import ranks
from server.checkpoint import Progress


def cost(config: RunConfig, method: Method, state: ServerState, progress: Progress) -> dict[str, Any]:
    """Cost of the run: per client and round, per question, and bytes held at server and clients."""
    rounds = max(progress.client_rounds, 1)
    return {
        "client_rounds": progress.client_rounds,
        "up_per_client_round": progress.training_bytes["up"] / rounds,
        "down_per_client_round": progress.training_bytes["down"] / rounds,
        "client_seconds": round(progress.client_seconds / rounds, 4),
        **ranks.cost(progress),
        "server_bytes": state.bytes,
        "client_memory_bytes": sum(progress.kept.values()) / max(len(progress.kept), 1),
        "parameters": {
            "trainable": round(progress.trained_numbers / rounds),
            "stored": sum(t.size for t in arrays([state.subspaces, state.shared])),
            "active": method.active(state),
        },
        "questions": progress.samples,
        "questions_untrained": progress.samples_untrained,
        "seconds_per_sample": round(progress.answer_seconds / max(progress.samples, 1), 5),
        **_cpu(config, progress),
        **_hours(config, progress),
    }


def _cpu(config: RunConfig, progress: Progress) -> dict[str, float]:
    """The same two in CPU seconds, which hardly depend on what else the machine does; where they are known."""
    spent, cpu = progress.cpu_seconds or {}, {}
    if "training" in spent:
        each = (spent["training"] + spent.get("measuring", 0.0)) / max(progress.client_rounds, 1)
        cpu["client_cpu_seconds"] = round(each, 4)
    if "evaluation" in spent and config.evaluation.personal is None:  # else clients train then, too
        cpu["cpu_seconds_per_sample"] = round(spent["evaluation"] / max(progress.samples, 1), 5)
    return cpu


def _hours(config: RunConfig, progress: Progress) -> dict[str, float]:
    if progress.timeline is None:
        return {}
    return {"simulated_hours" if config.devices.on else "real_hours": progress.timeline.now / HOUR}


def _time(config: RunConfig, progress: Progress) -> dict[str, Any]:
    """The course of simulated time, or in an asynchronous deployment of real time."""
    if progress.timeline is None:
        return {}
    if config.devices.on:
        return {"simulated": progress.timeline.results(config.devices.profile)}
    return {"real_time": progress.timeline.measured}


def held_out(stream: Stream, progress: Progress) -> dict[str, Any]:
    """Rules of the held-out data sets, and scores by further rules before the first and after the last stage."""
    if not stream.held_out:
        return {}
    last = str(max(map(int, progress.untrained_extra), default=0))
    both = {"before": progress.untrained_extra.get("0", {}), "after": progress.untrained_extra.get(last, {})}
    scorers = {name: owner.datasets[name].scorer for name, owner in stream.held_out.items()}
    also = {when: {name: row[name] for name in stream.held_out if name in row} for when, row in both.items()}
    return {"held_out": {"scorers": scorers, "also": also}}


def write(
    run: RunDir,
    config: RunConfig,
    stream: Stream,
    method: Method,
    state: ServerState,
    progress: Progress,
    matrix: AccuracyMatrix,
    by_site: dict[str, object],
    spent: dict[str, dict[str, Any]],
) -> None:
    """Write ``adapters/`` and ``results.json``; the latter says that the run is finished.

    Args:
        by_site: scores of the single sites, where each scored its own tasks.
        spent: with differential privacy, its epsilon, as ``privacy`` of clients, ``record_privacy`` of
            records and ``token_privacy`` of records by their descriptions.
    """
    scored = [name for name in matrix.datasets if name in stream.datasets]  # by the server; sites score their own
    constant = constants(stream, scored)
    # Files are whole: peft gives layers that are not in them values of its own.
    shapes = {name: t.shape for tensors in state.subspaces.values() for name, t in tensors.items()}
    for name, tensors in ({} if per_client(config) else state.subspaces).items():
        whole = {**state.shared, **tensors, **left_out(tensors, shapes)}
        save_subspace(run.adapters / name, whole, config.adapter, config.backbone)
    write_json(
        run.results,
        {
            "name": config.name,
            "method": method.name,
            "group": method.group,
            "family": method.family,
            "dagger": method.dagger,
            "benchmark": stream.name,
            "setting": config.setting,
            "seed": config.seed,
            "reduced": reduced(config),
            **matrix.summary(),
            **matrix.form_summary(),
            "evaluated": matrix.evaluated,
            "subspaces": len(state.subspaces),
            "state_bytes": state.bytes,
            "traffic": progress.traffic,
            "subspace_names": list(state.subspaces),
            "method_tables": method.report(state),
            "cost": cost(config, method, state, progress),
            "seconds": progress.seconds,
            "scorers": {name: d.scorer for name, d in stream.datasets.items() if name in scored},
            "forms": {name: each.demanded for name, each in progress.followed_rows[-1].items()}
            if progress.followed_rows
            else {},
            "constants": {name: baseline._asdict() for name, baseline in constant.items()},
            "also": progress.extra_rows[-1] if progress.extra_rows else {},
            **held_out(stream, progress),
            **_time(config, progress),
            **data_of(run),
            **by_site,
            **spent,
        },
    )
