"""Which questions are answered together, and what happens when they do not fit."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from fcit.config.schema import Evaluation
from fcit.data.collate import Encoded
from fcit.errors import FCITError
from fcit.models.decoding.answering import Answering
from fcit.models.decoding.batches import Batches
from fcit.models.decoding.sizes import MOST, Widths

LENGTHS = (3, 9, 4, 4, 8, 1)
SEVEN_B = Widths(layers=32, width=4096, inner=11008, key_width=4096, bytes=2)


class Device:
    """A device of which ``fit`` questions fit at a time, and ``guess`` are thought to.

    Args:
        kept: how many questions fewer fit until memory that is kept is given back.
    """

    def __init__(self, fit: int = 100, guess: int = 100, kept: int = 0, many: int = 1000) -> None:
        self.fit, self.guess, self.kept, self.many = fit, guess, kept, many
        self.batches: list[list[int]] = []
        self.compiling = False
        self.through_compiled: list[bool] = []
        self.released = 0

    def at_once(self, prompt: int, new: int, on_cpu: int, workers: int) -> int:
        assert (on_cpu, workers) == (64, 1)
        return self.guess

    def compiles(self, switch: str, questions: int) -> bool:
        return switch == "on" or (switch == "auto" and questions >= self.many)

    @contextmanager
    def compiled(self):
        self.compiling = True
        yield
        self.compiling = False

    @property
    def keeps(self) -> bool:
        return self.kept > 0

    def release(self) -> None:
        self.released += 1
        self.kept = 0

    def answer(self, rows: list[int]) -> list[str]:
        if len(rows) > self.fit - self.kept:
            raise torch.OutOfMemoryError("full")
        self.batches.append(rows)
        self.through_compiled.append(self.compiling)
        return [f"{LENGTHS[row]}" for row in rows]


def answered(device: Device, **settings) -> list[str]:
    examples = [Encoded(tuple(range(length))) for length in LENGTHS]
    batches = Batches(Evaluation(**settings), device)
    return batches.answered(examples, 24, device.answer)


@pytest.mark.parametrize(
    ("by_length", "batches"), [(True, [[1, 4], [2, 3], [0, 5]]), (False, [[0, 1], [2, 3], [4, 5]])]
)
def test_answers_come_in_the_order_of_the_questions(by_length, batches):
    device = Device()
    assert answered(device, batch_size=2, by_length=by_length) == ["3", "9", "4", "4", "8", "1"]
    assert device.batches == batches


@pytest.mark.parametrize(
    ("compile", "questions", "wanted"),
    [
        ("off", 1000, [False, False]),
        ("on", None, [True, False]),
        ("auto", 1000, [True, False]),
        ("auto", 999, [False, False]),
        ("auto", None, [False, False]),
    ],
)
def test_whole_batches_of_many_questions_are_compiled(compile, questions, wanted):
    """The last batch is smaller, and another shape."""
    device = Device()
    examples = [Encoded(tuple(range(length))) for length in LENGTHS]
    batches = Batches(Evaluation(batch_size=4, compile=compile), device)
    assert batches.answered(examples, 24, device.answer, questions) == ["3", "9", "4", "4", "8", "1"]
    assert device.through_compiled == wanted


def test_auto_takes_what_fits():
    device = Device(guess=4)
    assert answered(device, batch_size="auto") == ["3", "9", "4", "4", "8", "1"]
    assert [len(rows) for rows in device.batches] == [4, 2]
    assert device.released == 0


def test_auto_is_halved_when_memory_runs_out_and_stays_so(caplog):
    device = Device(fit=3, guess=6)
    assert answered(device, batch_size="auto") == ["3", "9", "4", "4", "8", "1"]
    assert [len(rows) for rows in device.batches] == [3, 3]
    assert device.released == 1
    assert caplog.messages == [
        "evaluation.batch_size: auto: memory ran out with 6 questions at a time, going on with 3"
    ]


def test_what_is_kept_is_given_back_before_a_size_is_halved(caplog):
    device = Device(fit=6, guess=6, kept=2)
    assert answered(device, batch_size="auto") == ["3", "9", "4", "4", "8", "1"]
    assert [len(rows) for rows in device.batches] == [6]
    assert device.released == 1
    assert caplog.messages == []


def test_that_may_be_all_that_one_question_lacks():
    device = Device(fit=1, guess=1, kept=1)
    assert answered(device, batch_size="auto") == ["3", "9", "4", "4", "8", "1"]


@pytest.mark.parametrize(("size", "fit"), [(4, 2), ("auto", 0)])
def test_a_number_is_kept_to_and_one_question_must_fit(size, fit):
    with pytest.raises(torch.OutOfMemoryError):
        answered(Device(fit=fit, guess=1), batch_size=size)


def test_other_errors_are_not_retried():
    def answer(rows):
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        Batches(Evaluation(batch_size="auto"), Device()).answered([Encoded((1, 2)), Encoded((3,))], 2, answer)


def test_one_answer_for_each_question():
    with pytest.raises(FCITError, match="a text for each of 2 questions, got 1"):
        Batches(Evaluation(), Device()).answered([Encoded((1, 2)), Encoded((3,))], 2, lambda rows: ["a"])


def test_the_estimate_of_a_7b_model():
    """128 questions of 686 tokens and 16 new ones were measured at 57 GB beside weights and subspaces."""
    assert sum(SEVEN_B.answering(128, 686, 16).values()) == pytest.approx(57e9, rel=0.15)
    assert [SEVEN_B.at_once(gb * 1e9, 686, 24) for gb in (120, 40, 8, 0)] == [MOST, 64, 12, 1]


@pytest.fixture
def seven_b(monkeypatch) -> Answering:
    """On a GPU of 80 GB, of which 40 are free and 15 taken by this process."""
    for name, size in (("mem_get_info", (40e9, 80e9)), ("memory_allocated", 15e9), ("memory_reserved", 15e9)):
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    family = SimpleNamespace(language=SimpleNamespace(config=LlamaConfig()))
    backbone = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, family=family)
    return Answering(backbone)


@pytest.mark.parametrize(("workers", "questions"), [(1, 64), (2, 32), (8, 1)])
def test_workers_share_a_gpu(seven_b, workers, questions):
    assert seven_b.at_once(686, 24, 64, workers) == questions


def test_larger_buffers_leave_room_for_prompts(seven_b):
    assert seven_b._spare(64, 686) == pytest.approx(0.85 * 40e9 - 8.2e9, rel=0.01)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "many", None])
def test_sizes_are_numbers_or_auto(value):
    with pytest.raises(ValueError, match="must be a whole number from 1 on, or auto"):
        Evaluation(batch_size=value)
