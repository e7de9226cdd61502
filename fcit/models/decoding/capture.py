"""A decoding step as a CUDA graph: its kernels are launched together, without Python between them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import cuda

Step = Callable[[], None]
#: Makes a step that works on fixed addresses into one that is faster from the second or third time on.
Capture = Callable[[Step], Step]


class CudaGraphs:
    """Captures steps on one device, each with memory of its own, which is that of one token a row."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        #: False after a step that could not be captured: all run as they are from then on.
        self.captures = True

    def __call__(self, step: Step) -> Step:
        """The step: run as it is the first time, captured the second, replayed from then on."""
        return _Captured(step, self)


class _Captured:
    def __init__(self, step: Step, graphs: CudaGraphs) -> None:
        self._step, self._graphs = step, graphs
        self._warm = False
        self._graph: Any = None

    def __call__(self) -> None:
        with cuda.device(self._graphs.device):
            if self._warm and self._graph is None and self._graphs.captures:
                self._capture()
            if self._graph is not None:
                self._graph.replay()
            elif self._warm:
                self._step()
            else:
                self._apart()
                self._warm = True

    def _apart(self) -> None:
        """Run it beside the main stream: libraries set up what must not be set up within a capture."""
        stream, main = cuda.Stream(), cuda.current_stream()
        stream.wait_stream(main)
        with cuda.stream(stream):
            self._step()
        main.wait_stream(stream)

    def _capture(self) -> None:
        graph = cuda.CUDAGraph()
        try:
            # What other threads do, such as reading images ahead, does not spoil a capture.
            with cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()  # recorded only
        except cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._graphs.captures = False
            logging.getLogger(__name__).warning(
                "evaluation.decoder: steps run as they are, because one could not be captured as a CUDA graph (%s)",
                error,
            )
            return
        self._graph = graph
