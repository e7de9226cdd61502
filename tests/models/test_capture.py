"""When a step runs, is captured and is replayed, with a stand-in for torch's CUDA functions."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from fcit.models.decoding import capture
from fcit.models.decoding.capture import CudaGraphs


class FakeCuda:
    """Writes down what happens; within a capture nothing is computed."""

    OutOfMemoryError = torch.OutOfMemoryError

    def __init__(self, error: Exception | None = None) -> None:
        self.events: list[str] = []
        self.error = error
        self.recording = False

    def device(self, device) -> nullcontext:
        return nullcontext()

    stream = device

    def Stream(self):
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.events.append("replayed"))

    @contextmanager
    def graph(self, graph, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.recording = True
        try:
            yield
        finally:
            self.recording = False
        if self.error is not None:
            raise self.error

    def step(self) -> None:
        self.events.append("recorded" if self.recording else "run")


def events(monkeypatch, times: int, error: Exception | None = None, steps: int = 1) -> list[str]:
    cuda = FakeCuda(error)
    monkeypatch.setattr(capture, "cuda", cuda)
    graphs = CudaGraphs(torch.device("cuda"))
    for step in [graphs(cuda.step) for _ in range(steps)]:
        for _ in range(times):
            step()
    return cuda.events


def test_every_call_is_one_step(monkeypatch):
    assert events(monkeypatch, 4) == ["run", "recorded", "replayed", "replayed", "replayed"]


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch, caplog):
    error = RuntimeError("operation not permitted when stream is capturing")
    assert events(monkeypatch, 3, error, steps=2) == ["run", "recorded", "run", "run", "run", "run", "run"]
    assert [r.getMessage() for r in caplog.records] == [
        "evaluation.decoder: steps run as they are, because one could not be captured as a CUDA graph (operation "
        "not permitted when stream is capturing)"
    ]


def test_running_out_of_memory_is_not_hidden(monkeypatch):
    with pytest.raises(torch.OutOfMemoryError):
        events(monkeypatch, 2, torch.OutOfMemoryError("full"))
