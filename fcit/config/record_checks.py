"""What does not go together with differential privacy of records, in sentences."""

from __future__ import annotations

from typing import Any

from fcit.config.schema import RunConfig


def contradictions(config: RunConfig) -> list[str]:
    """Settings ``privacy.record_*`` that are valid by themselves but not together."""
    privacy, problems = config.privacy, []
    given = [key for key in ("record_noise_multiplier", "record_epsilon") if getattr(privacy, key) is not None]
    if not privacy.records:
        return [
            f"privacy.{key}: {getattr(privacy, key)} has no effect with record_dp: off; choose record_dp: on, or leave "
            "it out"
            for key in given
        ]
    if len(given) != 1:
        problems.append(
            "privacy.record_dp: 'on' needs either record_noise_multiplier or record_epsilon (which each client "
            f"computes its noise multiplier from), got {' and '.join(given) or 'neither'}"
        )
    if config.training.compile == "on":
        problems.append(
            "privacy.record_dp: 'on' needs the gradient of every record, which compiled layers do not give; choose "
            "training.compile: auto or off"
        )
    return problems


def misfits(config: RunConfig, method: Any) -> list[str]:
    """Methods in which the gradient of a record is not defined, or whose clients send more than trained tensors."""
    problems, name = [], config.method["name"]
    if not method.trains:
        problems.append(f"privacy.record_dp: 'on' has nothing to protect: method: {name!r} trains nothing")
    elif method.pooled:
        problems.append(
            f"privacy.record_dp: 'on' needs clients, and method: {name!r} pools all data at one participant; choose "
            "another method"
        )
    elif method.measures or not method.by_record:
        problems.append(
            f"privacy.record_dp: 'on' covers the gradients of a step's records, and clients of method: {name!r} use "
            "records otherwise, too (or the method does not declare by_record); choose another method"
        )
    return problems
