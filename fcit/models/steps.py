"""How a training step is computed: the number format of the adapters' products, compiled layers, activations kept
or computed again.

None of it changes what is learnt beyond rounding and, where layers are compiled, the masks that dropout draws (rows are
padded, and the compiler has random numbers of its own). Each has a key below ``training:`` whose old way stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from peft.helpers import disable_input_dtype_casting

from fcit import config as configuration
from fcit.models.backbone import Backbone


@contextmanager
def computed(backbone: Backbone, training: configuration.Training) -> Iterator[None]:
    """In the body, training steps are computed as configured; afterwards as before.

    It must hold forward and backward passes: with checkpointing the backward pass computes layers again.
    """
    with ExitStack() as ways:
        if training.checkpointing is True:  # auto is decided before
            ways.enter_context(backbone.checkpointing())
        if training.adapter_products == "backbone" and backbone.dtype != torch.float32:
            ways.enter_context(_sixteen_bits(backbone))
        if compiles(training, backbone.config, backbone.devices, backbone.reading.decides):
            ways.enter_context(backbone.layers.installed())
        yield


def compiles(
    training: configuration.Training,
    backbone: configuration.Backbone,
    devices: Sequence[torch.device],
    decides: bool = False,
) -> bool:
    """Whether decoder layers are to be compiled.

    ``auto``: on one GPU, unless weights are quantised (not measured), or layers are computed twice and have to know
    what was decided about questions (torch's compiler takes no contexts of checkpoints).

    Args:
        devices: those that hold decoder layers.
        decides: whether hooks decide anything about questions.
    """
    plain = [device.type for device in devices] == ["cuda"] and backbone.quantization == "none"
    plain = plain and not (decides and training.checkpointing is True)
    return training.compile == "on" or (training.compile == "auto" and plain)


@contextmanager
def _sixteen_bits(backbone: Backbone) -> Iterator[None]:
    """Adapters, gates and projector are multiplied in the backbone's number format; parameters stay float32.

    Autocast casts the weights, which are small; peft's cast of every layer's input to float32 is switched off. The
    gradient of a parameter is added up in float32, over micro-batches too.
    """
    with disable_input_dtype_casting(backbone.model):
        backbone.products = backbone.dtype
        try:
            yield
        finally:
            backbone.products = None
