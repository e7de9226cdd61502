"""SMoLoRA: the forms of answer that clients demand, and the one that a question is nearest to."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from fcit import config as configuration
from fcit.config import RunConfig
from fcit.contracts.toy import MethodCase, Toy
from fcit.errors import ConfigError
from fcit.io import trees
from fcit.methods.base import Factory, QuestionBatch, ServerState, Stats
from fcit.methods.smolora import SMoLoRA
from tests.helpers.toy import f32, session

SHAPES = {"x.lora_A.weight": (4, 3), "x.lora_B.weight": (2, 4), "x.lora_gate.fusion": (2, 2)}


def made(**options) -> SMoLoRA:
    return SMoLoRA(RunConfig(method={"name": "smolora", "experts": 4, **options}))


def described(method: SMoLoRA, *rounds: dict[tuple[int, str], Stats]) -> ServerState:
    state = ServerState()
    for stage, stats in enumerate(rounds):
        state.stage = stage
        method.assign(state, list(stats), stats, Factory(0, SHAPES))
    return state


def stats(total: list[float], count: int) -> Stats:
    return Stats(np.array(total), count)


def test_last_lines_that_differ_are_kept_with_their_means():
    """The first two are alike (the cosine of (1, 0) and (3, 0.1) is 0.9994), weighted by records; the third is not."""
    state = described(made(), {(0, "a"): stats([2, 0], 2), (1, "a"): stats([6, 0.2], 2)}, {(0, "b"): stats([0, 3], 3)})
    known = made().broadcast(state, (0, "b"))["suffixes"]
    assert known.tolist() == [pytest.approx([2, 0.05]), [0, 1]]
    assert known.dtype == np.float32
    assert made().knowledge(state)[1]["suffixes"].tolist() == known.tolist()


def test_a_shard_that_comes_back_counts_once():
    first = {(0, "a"): stats([2, 0], 2)}
    state = described(made(), first, first)
    assert state.memory["suffixes"]["counts"] == [2]
    assert list(state.subspaces) == ["0"]


def test_they_survive_a_checkpoint():
    state = described(made(), {(0, "a"): stats([2, 0], 2)})
    state.memory = trees.restore(*trees.flatten(state.memory))
    made().assign(state, [(1, "a")], {(1, "a"): stats([4, 0], 2)}, Factory(0, SHAPES))
    assert made().broadcast(state, (1, "a"))["suffixes"].tolist() == [[1.5, 0]]


class Told(Toy):
    """Notes what routers are told."""

    def instructed(self, features):
        self.seen = features.tolist()
        return nullcontext()


def test_a_record_is_trained_with_the_form_its_last_line_is_nearest_to():
    model = Told({"a": torch.nn.Parameter(torch.ones(1))})
    known = {"suffixes": f32([1, 0], [0, 5])}
    order = session(model, identity=f32([0.2, 1], [0, 1], [3, 1]), received=known, batch=[2, 0])
    made().loss(order, [1, 2], None)
    assert model.seen == [[1, 0], [0, 5]]


def test_a_question_is_answered_with_it():
    model = Told({})
    model.mixed = lambda mix, negligible: nullcontext()
    model.generate = lambda *_: ["yes", "no"]
    known = {}, {"suffixes": f32([1, 0], [0, 5])}
    questions = QuestionBatch(model, model, [{}], [1, 2], None, f32([0, 2], [1, 0.5]), 4, known)
    assert made().answer(questions, np.ones((2, 1), np.float32)) == ["yes", "no"]
    assert model.seen == [[0, 5], [1, 0]]
    untrained = QuestionBatch(model, model, [], [1, 2], None, f32([0, 2], [1, 0.5]), 4)
    assert made().answer(untrained, None) == ["yes", "no"]
    assert model.seen == [[0, 2], [1, 0.5]]


def test_one_expert_of_either_mixture_is_active():
    """20 numbers of factors among 4 experts: 10 of two, and 4 of the fusion."""
    state = described(made(), {(0, "a"): stats([2, 0], 2)})
    assert made().active(state) == 14


def test_what_is_sent_has_the_announced_tensors():
    case = MethodCase("smolora", options={"experts": 4})
    parts = {name.partition("lora_")[2] for name in case.state.subspaces["0"]}
    assert parts == {"A.weight", "B.weight", "gate.visual", "gate.instruction", "gate.fusion"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["method.experts=5"], r"method\.experts: .*multiple of 2, got 5"),
        (["method.experts=2"], r"method\.experts: .*greater than or equal to 4, got 2"),
        (["method.router=dead"], r"method\.router: .*'straight' or 'released', got 'dead'"),
        (["adapter.rank=8", "method.experts=6"], r"adapter\.rank: 8 cannot be .* 6 experts; .* e\.g\. 6 .*'smolora'"),
        (["factors=svd"], r"factors: 'svd' makes no sense with method: 'smolora'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, said, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("benchmark: fcit-mini-short\nmethod: {name: smolora}\n")
    with pytest.raises(ConfigError, match=said):
        configuration.load(file, options)
