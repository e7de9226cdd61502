"""What does not go together with a Trainer of another library (``training.trainer``), in sentences."""

from __future__ import annotations

from typing import Any

from fcit import registry
from fcit.config.schema import RunConfig

#: What a method or an optimiser can do within the steps of a training, and the module in which nothing of it is done.
_HOOKS = {
    "method": (("loss", "penalty", "on_gradients", "on_step", "measure"), "fcit.methods.base"),
    "fedopt": (("on_gradients", "on_step"), "fcit.fedopt.base"),
}


def contradictions(config: RunConfig) -> list[str]:
    """Settings of fcit's own loop that a Trainer does not follow."""
    training, name = config.training, config.training.trainer
    if name is None:
        return []
    unusable = registry.problem("trainer", name)
    problems = [] if unusable is None else [f"training.{unusable}"]
    if config.privacy.records:
        problems.append(
            f"training.trainer: {name!r} gives no gradients of single records, which privacy.record_dp: 'on' clips; "
            "leave one of them out"
        )
    if config.backbone.dtype == "float16":
        problems.append(
            f"training.trainer: {name!r} has no loss scaling here, without which gradients vanish with backbone.dtype: "
            "float16; choose bfloat16 or float32"
        )
    own = {"micro_batch": training.micro_batch is not None, "checkpointing": training.checkpointing is not False}
    own["compile"] = training.compile == "on"
    problems += [
        f"training.{key}: {getattr(training, key)!r} is of fcit's own loop and has no effect with training.trainer: "
        f"{name!r}; leave it out, and give the Trainer's own arguments what it is to do"
        for key, set_ in own.items()
        if set_
    ]
    return problems


def misfits(config: RunConfig, method: Any, fedopt: Any) -> list[str]:
    """Methods and optimisers that do something within the steps, of which a Trainer knows nothing."""
    name, problems = config.training.trainer, []
    rule = registry.resolve("factors", config.factors)
    if name is not None and _home(rule, "penalty") != "fcit.fedopt.factors":
        problems.append(
            f"training.trainer: {name!r} makes the steps by itself, and factors: {config.factors!r} has a term of the "
            "loss within them; choose other factors or leave training.trainer out"
        )
    for kind, part in (("method", method), ("fedopt", fedopt)) if name is not None else ():
        hooks, base = _HOOKS[kind]
        used = [hook for hook in hooks if getattr(part, hook, None) is not None and _home(part, hook) != base]
        if used:
            problems.append(
                f"training.trainer: {name!r} makes the steps by itself, and {kind}: {getattr(config, kind)['name']!r} "
                f"has {', '.join(f'{hook}()' for hook in used)} within them; choose another {kind} or leave "
                "training.trainer out"
            )
    return problems


def _home(part: Any, hook: str) -> str:
    """The module of the class that defines a hook of a part, or of its class."""
    family = part if isinstance(part, type) else type(part)
    return next(kind.__module__ for kind in family.__mro__ if hook in vars(kind))
