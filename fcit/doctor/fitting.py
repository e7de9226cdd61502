"""Whether a configuration fits into a device and a machine, and which change of it would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fcit.config import RunConfig
from fcit.doctor.devices import Device, machine_memory
from fcit.models import estimate
from fcit.models.estimate import Lengths
from fcit.models.shapes import Shape
from fcit.runs import forking


def gb(size: float) -> str:
    """Bytes for people, in the units that GPUs are sold by."""
    if size < 2**20:
        return f"{size / 2**10:.0f} KiB"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def hours(seconds: float) -> str:
    """A time for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def smallest(config: RunConfig) -> int:
    """What is shown where nothing fits."""
    micro = config.training.micro_batch
    return 1 if micro == "auto" else min(micro or config.training.batch_size, config.training.batch_size)


def section_of(config: RunConfig) -> str:
    """The section of the configuration that says how many workers there are, where there are several."""
    return "ray" if config.federation.engine == "ray" else "fork"


def workers_of(config: RunConfig) -> int:
    """Processes in which client work is done at a time."""
    engine = config.federation.engine
    if engine == "ray":
        return config.ray.workers
    forks = engine == "fork" or (engine == "auto" and forking.preferred(config))
    return forking.workers(config) if forks else 1


def per_device(config: RunConfig) -> int:
    """Workers that share a device (``ray.num_gpus: 0.5`` puts two on a GPU; all workers share a machine)."""
    if config.backbone.device == "cpu" or config.federation.engine != "ray":
        return workers_of(config)
    return estimate.workers_per_gpu(config)


def within(room: float) -> estimate.Fits:
    """Whether everything that a worker needs at any one time fits into ``room`` bytes."""
    return lambda memory: memory.peak <= room


def _variants(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Single changes first, then those that go together."""
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("training.micro_batch=auto", "training", {"micro_batch": "auto"}),
        ("training.checkpointing=true", "training", {"checkpointing": True}),
        (
            f"evaluation.batch_size={max(1, config.evaluation.at_once // 8)}",
            "evaluation",
            {"batch_size": max(1, config.evaluation.at_once // 8)},
        ),
        ("backbone.dtype=bfloat16", "backbone", {"dtype": "bfloat16"}),
        ("ray.num_gpus=1", "ray", {"num_gpus": 1.0}),
        ("backbone.quantization=4bit", "backbone", {"quantization": "4bit"}),
    ]
    useful = []
    for text, section, update in steps:
        part = getattr(config, section)
        if all(getattr(part, key) == value for key, value in update.items()):
            continue
        if section == "ray" and (config.federation.engine != "ray" or config.backbone.device == "cpu"):
            continue
        if "quantization" in update and config.backbone.device == "cpu":
            continue
        useful.append((text, section, update))
    for text, section, update in useful:
        yield text, config.model_copy(update={section: getattr(config, section).model_copy(update=update)})
    together, words = config, []
    for text, section, update in useful:
        together = together.model_copy(update={section: getattr(together, section).model_copy(update=update)})
        words.append(text)
        if len(words) > 1:
            yield " ".join(words), together


def too_large(config: RunConfig, shape: Shape, subspaces: int, room: float, lengths: Lengths, device: Device) -> str:
    """In one sentence: how much too large, and which changes would make it fit."""
    need = estimate.memory(config, shape, subspaces, smallest(config), lengths).peak
    fitting: list[str] = []
    for text, variant in _variants(config):
        if " " in text and fitting:
            break
        space = device.memory / per_device(variant)
        if estimate.largest_micro(variant, shape, subspaces, within(space), lengths):
            fitting.append(text)
            if " " in text:
                break
    advice = (
        f"what would fit: {'; or '.join(fitting)}"
        if fitting
        else ("nothing that can be set makes it fit; a larger GPU or a smaller model does")
    )
    key = (
        f"{section_of(config)}.workers"
        if config.backbone.device == "cpu" and per_device(config) > 1
        else "backbone.device"
    )
    return (
        f"{key}: needs {gb(need)} with {smallest(config)} records at a time, and {device.name} has {gb(room)}"
        f"{' for each worker' if per_device(config) > 1 else ''}; {advice}"
    )


def machine_problems(config: RunConfig, shape: Shape, subspaces: int, micro: int, lengths: Lengths) -> list[str]:
    """What does not fit into the main memory of this machine, server and workers together."""
    workers = workers_of(config)
    if config.ray.address:
        return []  # other machines
    each = sum(estimate.worker_memory(config, shape, subspaces, micro, lengths).values())
    server = sum(estimate.server_memory(config, shape, subspaces).values())
    have = machine_memory()
    if workers * each + server <= have:
        return []
    most, section = int((have - server) / each), section_of(config)
    advice = f"set {section}.workers to {most} or less" if most > 0 else "a machine with more memory is needed"
    return [
        f"{section}.workers: {workers} workers of {gb(each)} and a server of {gb(server)} do not fit into this "
        f"machine's {gb(have)}; {advice}"
    ]
