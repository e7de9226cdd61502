"""What does not go together with differential privacy of records, in sentences."""

from __future__ import annotations

from typing import Any

from fcit import registry
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
    if config.data.styles:
        problems.append(
            f"privacy.record_dp: 'on' protects records that are learnt as they are, and with data.styles: "
            f"{config.data.styles:g} one record is rewritten with answers of others; choose data.styles: 0"
        )
    if config.training.compile == "on":
        problems.append(
            "privacy.record_dp: 'on' needs the gradient of every record, which compiled layers do not give; choose "
            "training.compile: auto or off"
        )
    return problems


#: Where a method can touch a client's records while it trains.
_HOOKS = ("measure", "select", "prepare", "loss", "penalty", "on_gradients", "on_step", "finish")


def declared(method: type, flag: str = "by_record") -> bool:
    """Whether a method declares ``by_record``, or another flag, for all of its own client hooks.

    A class that inherits the declaration and overrides a hook has not declared anything about it.
    """
    by_class = method.__mro__

    def depth(name: str) -> int:
        return next(place for place, kind in enumerate(by_class) if name in vars(kind))

    return bool(getattr(method, flag)) and all(depth(flag) <= depth(hook) for hook in _HOOKS)


def misfits(config: RunConfig, method: Any) -> list[str]:
    """Methods in which the gradient of a record is not defined, or whose clients send more than trained tensors."""
    problems, name = [], config.method["name"]
    if registry.resolve("factors", config.factors).prunes:
        problems.append(
            f"privacy.record_dp: 'on' covers what clients send, and with factors: {config.factors!r} clients' ranks, "
            "which are counted and told, follow from it for the whole run; choose factors: hlora"
        )
    if not method.trains:
        problems.append(f"privacy.record_dp: 'on' has nothing to protect: method: {name!r} trains nothing")
    elif method.pooled:
        problems.append(
            f"privacy.record_dp: 'on' needs clients, and method: {name!r} pools all data at one participant; choose "
            "another method"
        )
    elif method.sends() or not declared(type(method)):
        problems.append(
            f"privacy.record_dp: 'on' covers the gradients of a step's records, and clients of method: {name!r} use "
            "records otherwise, too (or the class of its client hooks does not declare by_record); choose another "
            "method"
        )
    return problems
