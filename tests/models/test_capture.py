"""When a step runs, is captured and is replayed, with a stand-in for torch's CUDA functions."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fcit.models.decoding import capture
from fcit.models.decoding.capture import CudaGraphs


class Capture:
    """As torch's own: what ends a capture may fail, and then the stream of the capture stays the current one."""

    def __init__(self, cuda: "FakeCuda") -> None:
        self.cuda = cuda

    def __enter__(self) -> None:
        self.cuda.recording, self.before, self.cuda.current = True, self.cuda.current, "of captures"

    def __exit__(self, *error) -> None:
        self.cuda.recording = False
        failure = self.cuda.failures.pop(0) if self.cuda.failures else None
        if failure is not None:
            raise failure
        self.cuda.current = self.before


class FakeCuda:
    """Writes down what happens; within a capture nothing is computed.

    Attributes:
        failures: what ends the first captures, None for one that succeeds; later ones do.
        full: whether memory runs out in the first capture.
    """

    OutOfMemoryError = torch.OutOfMemoryError

    def __init__(self) -> None:
        self.events: list[str] = []
        self.failures: list[BaseException | None] = []
        self.full = False
        self.recording, self.current = False, "main"
        self.pools = self.streams = 0
        self.captured_into: list[int] = []

    def device(self, device) -> nullcontext:
        return nullcontext()

    stream = device

    def Stream(self):
        self.streams += 1
        return SimpleNamespace(wait_stream=lambda other: None)

    def graph_pool_handle(self):
        self.pools += 1
        return self.pools

    def current_stream(self):
        return SimpleNamespace(wait_stream=lambda other: None, name=self.current)

    def set_stream(self, stream) -> None:
        self.current = stream.name

    def synchronize(self) -> None:
        self.events.append(f"waited on {self.current}")

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.events.append("replayed"))

    def graph(self, graph, pool, capture_error_mode) -> Capture:
        assert capture_error_mode == "thread_local"
        self.captured_into.append(pool)
        return Capture(self)

    def step(self) -> None:
        self.events.append("recorded" if self.recording else f"run on {self.current}")
        if self.recording and self.full:
            self.full = False
            raise torch.OutOfMemoryError("full")


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(capture, "cuda", fake)
    return fake


@pytest.fixture
def graphs(cuda) -> CudaGraphs:
    return CudaGraphs(torch.device("cuda"))


RUN = "run on main"
FAILED = RuntimeError("operation not permitted when stream is capturing")


def test_every_call_is_one_step(cuda, graphs):
    step = graphs(cuda.step)
    for _ in range(4):
        step()
    assert cuda.events == [RUN, "recorded", "replayed", "replayed", "replayed"]
    assert graphs.captured == 1


def test_what_cannot_be_captured_runs_as_it_is(cuda, graphs, caplog):
    """On the main stream; steps that were captured before are not replayed either."""
    cuda.failures = [None, FAILED]
    first, second = graphs(cuda.step), graphs(cuda.step)
    for step in (first, first, second, second, second, first):
        step()
    captured = [RUN, "recorded", "replayed"]
    assert cuda.events == [*captured, RUN, "recorded", "waited on main", RUN, RUN, RUN]
    assert not graphs.captures
    assert [r.getMessage() for r in caplog.records] == [
        "evaluation.decoder: steps run as they are, because one could not be captured as a CUDA graph (operation "
        "not permitted when stream is capturing)"
    ]


@pytest.mark.parametrize("failures", [[], [FAILED]])
def test_running_out_of_memory_is_not_hidden(cuda, graphs, failures):
    """Nor by the capture's end that fails for it; the step is captured when there is room again."""
    cuda.full, cuda.failures = True, failures
    step = graphs(cuda.step)
    step()
    with pytest.raises(torch.OutOfMemoryError):
        step()
    assert cuda.current == "main"
    step()
    assert cuda.events == [RUN, "recorded", "waited on main", "recorded", "replayed"]


def test_an_interrupted_capture_leaves_the_main_stream_current(cuda, graphs):
    cuda.failures = [KeyboardInterrupt()]
    step = graphs(cuda.step)
    step()
    with pytest.raises(KeyboardInterrupt):
        step()
    assert cuda.current == "main"
    assert graphs.captures


def test_graphs_share_memory_until_the_last_of_them_goes(cuda, graphs):
    for _ in range(2):
        steps = [graphs(cuda.step) for _ in range(3)]
        for step in steps * 2:
            step()
        assert len(graphs._recorded) == 3
        del step
        steps.clear()
        assert len(graphs._recorded) == 0
    assert cuda.captured_into == [1, 1, 1, 2, 2, 2]
    assert cuda.streams == 1
