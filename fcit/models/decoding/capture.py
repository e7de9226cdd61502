"""A decoding step as a CUDA graph: its kernels are launched together, without Python between them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import cuda

from fcit.models.compiling import of_a_compiler

Step = Callable[[], None]
#: Makes a step that works on fixed addresses into one that is faster from the second or third time on.
Capture = Callable[[Step], Step]


class CudaGraphs:
    """Captures steps on one device, in memory that all share: between two replays nothing lives in it.

    Attributes:
        captures: False after a step that could not be captured: all run as they are from then on.
        captured: how many steps were captured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.captures = True
        self.captured = 0
        self._recorded: WeakKeyDictionary[_Captured, Any] = WeakKeyDictionary()
        self._pool: Any = None

    def __call__(self, step: Step) -> Step:
        """The step: run as it is the first time, captured the second, replayed from then on."""
        return _Captured(step, self)

    @cached_property
    def side(self) -> cuda.Stream:
        """The stream that steps run on the first time; each stream keeps memory of its own."""
        return cuda.Stream()

    def recorded(self, step: _Captured) -> Any:
        """The graph of a step; None if there is none (any more)."""
        return self._recorded.get(step)

    def record(self, step: _Captured, work: Step) -> None:
        """Capture a step; where that fails, all steps run as they are from then on.

        Raises:
            OutOfMemoryError: steps are captured again when they are run next.
            TorchDynamoException: layers could not be compiled.
        """
        graph, main = cuda.CUDAGraph(), cuda.current_stream()
        if not self._recorded:  # memory whose graphs are all gone goes back, and cannot be captured into again
            self._pool = cuda.graph_pool_handle()
        try:
            # What other threads do, such as reading images ahead, does not spoil a capture.
            with cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()  # recorded only
        except BaseException as error:
            cuda.set_stream(main)  # torch leaves the stream of a capture current if its end fails
            cuda.synchronize()
            self._recorded.clear()
            if not isinstance(error, RuntimeError) or of_a_compiler(error):
                raise
            full = next((e for e in (error, error.__context__) if isinstance(e, cuda.OutOfMemoryError)), None)
            if full is not None:  # the end of such a capture may fail in its turn
                raise full from None
            self.captures = False
            logging.getLogger(__name__).warning(
                "evaluation.decoder: steps run as they are, because one could not be captured as a CUDA graph (%s)",
                error,
            )
        else:
            self._recorded[step] = graph
            self.captured += 1


class _Captured:
    def __init__(self, step: Step, graphs: CudaGraphs) -> None:
        self._step, self._graphs = step, graphs
        self._warm = False

    def __call__(self) -> None:
        graphs = self._graphs
        with cuda.device(graphs.device):
            if not self._warm:
                self._apart()
                self._warm = True
                return
            if graphs.captures and graphs.recorded(self) is None:
                graphs.record(self, self._step)
            graph = graphs.recorded(self)
            if graph is None:
                self._step()
            else:
                graph.replay()

    def _apart(self) -> None:
        """Run it beside the main stream: libraries set up what must not be set up within a capture."""
        stream, main = self._graphs.side, cuda.current_stream()
        stream.wait_stream(main)
        try:
            with cuda.stream(stream):
                self._step()
        finally:
            main.wait_stream(stream)
