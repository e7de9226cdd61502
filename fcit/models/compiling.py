"""Decoder layers through torch.compile while a model is trained, and while it answers many questions.

All decoder layers have the same code and the same shapes, so one compilation serves them all: norms, rotary embedding,
SwiGLU, dropout and LoRA's additions become few kernels instead of hundreds. Training is compiled for the first shape of
its rows and, when another comes, for rows of any length, or where the compiler cannot do that for every length alone;
what is smaller than a whole part of a batch runs uncompiled (outside :meth:`CompiledLayers.running`). Answers are
compiled for any shape from the first one on: once their prompts, once their steps. Rows are padded after their last
token, where no token sees it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from fcit.models.memory import is_out_of_memory

#: Tokens of a row are a multiple of this: kernels of products and of attention read rows in such parts. More padding
#: costs more than it is: rows of 768 instead of 720 tokens took 1.18 times as long on an H200.
ALIGNED = 8
#: The same where every length is compiled alone: for lengths up to 2048 at most 64.
APART = 32
#: Compilations of one layer's code that a process keeps; torch's own limit is 8.
_MOST = 256
#: Packages whose exceptions mean that something could not be compiled: no C++ compiler, no Triton, an unknown operator.
_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")

Result = TypeVar("Result")


def of_a_compiler(error: BaseException) -> bool:
    """Whether an error says that something could not be compiled."""
    return any(kind.__module__.startswith(_COMPILERS) for kind in type(error).__mro__)


def _graphs() -> int:
    """How much was compiled in this process."""
    from torch._dynamo.utils import counters  # seconds to import

    return int(counters["stats"]["unique_graphs"])


def with_own_cache(number: int, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """A layer's arguments with its own keys and values in the place of those of all layers.

    Compiled code then serves all layers, as it does not depend on the number of one. None if that cannot be: there are
    no buffers (``parts`` of :class:`fcit.models.decoding.slots.Slots`) until the first prompt of a process has passed,
    or keys and values are kept by transformers.
    """
    for name in ("cache", "past_key_values"):  # its name before transformers 5.24
        cache = arguments.get(name)
        if cache is not None:
            slots = cache.layers[number]
            return {**arguments, name: slots} if getattr(slots, "parts", ()) else None
    return arguments


class CompiledLayers:
    """The decoder layers of one model, compiled on demand; a process that cannot compile them goes on without.

    Args:
        layers: modules with one code, called with hidden states ``(rows, tokens, d)``.
        backend: of torch.compile.

    Attributes:
        kinds: what was compiled in this process: ``records`` of training, ``prompts`` and ``steps``.
        used: whether anything ran compiled since :meth:`begin`.
        apart: whether training compiles every length alone, because the compiler failed for any length.
        seconds: what steps took in which there was something to compile, compilation included.
    """

    def __init__(self, layers: Sequence[nn.Module], backend: str | Callable[..., Any] = "inductor") -> None:
        self.layers, self.backend = list(layers), backend
        self.kinds: set[str] = set()
        self.seconds = 0.0
        self.failed = self.used = self.apart = False
        self._made: dict[tuple[int, bool | None], Callable[..., Any]] = {}
        self._answering = self._installed = self._running = False

    def begin(self) -> None:
        """Begin an order: ``seconds`` and ``used`` are about what follows."""
        self.seconds, self.used = 0.0, False

    @property
    def runs(self) -> bool:
        """Whether what is computed now runs through compiled layers."""
        return self._running

    @property
    def multiple(self) -> int:
        """What the tokens of a row are to be a multiple of at the moment."""
        if not self._running:
            return 1
        return APART if self.apart and not self._answering else ALIGNED

    @contextmanager
    def installed(self, answering: bool = False) -> Iterator[None]:
        """In the body, :meth:`running` has an effect, unless compilation has failed in this process.

        Args:
            answering: the body answers questions; otherwise it trains.
        """
        if self.failed:
            yield
            return
        from torch.fx.experimental import _config as symbolic_shapes

        before = [vars(layer).get("forward") for layer in self.layers]  # of a layer on another device: accelerate's
        # Only their forward: modules, names and hooks stay as they are.
        for number, layer in enumerate(self.layers):
            layer.forward = partial(self._forward, number, layer.forward)
        self._answering, self._installed = answering, True
        try:
            with (
                torch._dynamo.config.patch(
                    cache_size_limit=_MOST,
                    accumulated_cache_size_limit=2 * _MOST,
                    # What hooks read of a batch has any number of rows, though they are reached through modules.
                    force_nn_module_property_static_shapes=False,
                    # Rates of dropout are constants: as variables of layers that are computed twice they gave wrong
                    # gradients (torch 2.13).
                    specialize_float=True,
                ),
                # As many rows as there are slots by chance are no other shape.
                symbolic_shapes.patch(use_duck_shape=not answering),  # type: ignore[attr-defined]
            ):
                yield
        finally:
            self._installed = False
            for layer, own in zip(self.layers, before, strict=True):
                if own is None:
                    del layer.forward  # that of its class again
                else:
                    layer.forward = own

    @contextmanager
    def running(self) -> Iterator[None]:
        """What the body computes runs through compiled layers where they are installed."""
        if not self._installed or self.failed:
            yield
            return
        known, begin, before = _graphs(), time.perf_counter(), self._running
        self._running = True
        try:
            yield
        finally:
            self._running = before
            if _graphs() > known:
                self.seconds += time.perf_counter() - begin

    def through(self, work: Callable[[], Result]) -> Result:
        """What ``work`` returns, within :meth:`running`; begun again, as it is, when the compiler fails."""
        while True:
            try:
                with self.running():
                    return work()
            except Exception as error:
                if not self.give_up(error):
                    raise

    def _compiled(self, number: int, eager: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's forward through the compiler."""
        # For any shape from the first one on; from the second one on; for every shape alone.
        dynamic = True if self._answering else False if self.apart else None
        key = number, dynamic
        if key not in self._made:
            self._made[key] = torch.compile(eager, dynamic=dynamic, backend=self.backend)
        return self._made[key]

    def _forward(self, number: int, eager: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        own = with_own_cache(number, kwargs) if self._running else None
        if own is None:
            return eager(*args, **kwargs)
        states = args[0] if args else kwargs["hidden_states"]
        kind = "records"
        if self._answering:
            if states.shape[:2] == (1, 1):  # one row would be compiled for itself
                return eager(*args, **kwargs)
            kind = "prompts" if states.shape[1] > 1 else "steps"
        if kind not in self.kinds:
            self.kinds.add(kind)
            logging.getLogger(__name__).info("%s.compile: decoder layers for %s", self._key, kind)
        self.used = True
        return self._compiled(number, eager)(*args, **own)

    @property
    def _key(self) -> str:
        return "evaluation" if self._answering else "training"

    def give_up(self, error: BaseException) -> bool:
        """Go on in another way if it is the compiler that failed; returns whether it is.

        Training compiles every length alone from then on, and after a second failure nothing. The caller then computes
        the whole batch again; its rows were padded, and dropout has been drawn. Memory that ran out while something was
        compiled is no failure of the compiler: a smaller batch may do.
        """
        if not self._installed or self.failed or not of_a_compiler(error) or is_out_of_memory(error):
            return False
        what = "the decoder layers cannot be compiled here and run as they are"
        if self._answering or self.apart:
            self._running, self.failed = False, True
        else:
            self.apart, what = True, "the decoder layers cannot be compiled here for any length, and are for each"
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        logging.getLogger(__name__).warning("%s.compile: %s (%s: %s)", self._key, what, type(error).__name__, reason)
        return True
