import dataclasses
import math
import re

import numpy as np
import pytest
import torch

from fcit import config as configuration
from fcit.config import RunConfig, Training
from fcit.federation.messages import ClientUpdate, TrainOrder
from server import validation
from server.validation import QUIET, Validator, reach, short

ORDER = TrainOrder(
    config="seed: 0",
    stage=0,
    round=1,
    client=3,
    shard="ab",
    tasks=[0],
    subspace="0",
    tensors={"a": np.zeros((1, 2), np.float32), "b": np.zeros(1, np.float32)},
)


def update(move: float = 1.0, order: TrainOrder = ORDER, **changes) -> ClientUpdate:
    """An honest update that moved by ``move`` in one step."""
    tensors = {"a": np.array([[move, 0]], np.float32), "b": np.zeros(1, np.float32)}
    base = ClientUpdate(
        stage=order.stage,
        round=order.round,
        client=order.client,
        shard=order.shard,
        subspace=order.subspace,
        examples=4,
        steps=1,
        loss=0.5,
        seconds=0.1,
        tensors=tensors,
    )
    return dataclasses.replace(base, **changes)


def with_tensor(name: str, value) -> dict[str, np.ndarray]:
    return {**update().tensors, name: value}


def test_an_honest_update():
    assert Validator().reject_reason(ORDER, update(), 4) is None
    assert Validator().reject_reason(ORDER, update(), None) is None


def test_factors_have_the_rank_of_their_own_order():
    def factors(rank: int) -> dict[str, np.ndarray]:
        return {"x.lora_A.weight": np.zeros((rank, 3), np.float32), "x.lora_B.weight": np.zeros((2, rank), np.float32)}

    for rank in (2, 4):
        order, other = dataclasses.replace(ORDER, tensors=factors(rank)), 6 - rank
        assert Validator().reject_reason(order, update(tensors=factors(rank)), 4) is None
        said = Validator().reject_reason(order, update(tensors=factors(other)), 4)
        assert f"float32({other}, 3), expected float32({rank}, 3)" in said


def test_who_only_measures_takes_no_step_and_sends_no_trained_tensor():
    order, extra = dataclasses.replace(ORDER, measure=True), {"extra/m": (2,)}
    validator = Validator(history=[0.0] * QUIET)  # by which any step would be too long
    measured = update(steps=0, tensors={"extra/m": np.ones(2, np.float32)})
    assert validator.reject_reason(order, measured, 4, extra) is None
    assert "tensor names differ" in validator.reject_reason(order, update(steps=0), 4, extra)
    assert "claims 1 steps" in validator.reject_reason(order, dataclasses.replace(measured, steps=1), 4, extra)
    validator.close_round()
    assert validator.history == [0.0] * QUIET


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stage": 1}, "stage is 1, the order says 0"),
        ({"seconds": float("nan")}, "claims nan seconds"),
        ({"seconds": float("inf")}, "claims inf seconds"),
        ({"kept": -1}, "-1 bytes kept"),
        ({"round": 0}, "round is 0"),
        ({"client": 4}, "client is 4"),
        ({"shard": "cd"}, "shard is 'cd'"),
        ({"subspace": "1"}, "subspace is '1'"),
        ({"tensors": {"a": np.zeros((1, 2), np.float32)}}, "names differ .*b"),
        ({"tensors": with_tensor("c", np.zeros(1, np.float32))}, "names differ .*c"),
        ({"tensors": with_tensor("a", np.zeros((2, 1), np.float32))}, r"a is float32\(2, 1\)"),
        ({"tensors": with_tensor("a", np.zeros((1, 2), np.float64))}, "a is float64"),
        ({"tensors": with_tensor("a", np.zeros((1, 2), ">f4"))}, "a is >f4"),
        ({"tensors": with_tensor("b", np.array([np.nan], np.float32))}, "b holds values that are not finite"),
        ({"tensors": with_tensor("b", np.array([-np.inf], np.float32))}, "b holds values that are not finite"),
        ({"examples": 0}, "claims 0 records"),
        ({"examples": -5}, "claims -5 records"),
        ({"steps": 0}, "0 steps"),
        ({"examples": 5}, "claims 5 records, its shard has 4"),
        ({"examples": 10**12, "steps": math.ceil(10**12 / 16)}, "claims 1000000000000 records, its shard has 4"),
        ({"examples": 2**62, "steps": 2**58}, "its shard has 4"),
        ({"seconds": 1e9}, "claims 1000000000.0 seconds"),
        ({"kept": 10**15}, "1000000000000000 bytes kept"),
        ({"loss": 1e30}, "a loss of 1e[+]30"),
        ({"loss": -float("inf")}, "a loss of -inf"),
        ({"loss": float("nan")}, "a loss of nan"),
        ({"skipped": -1}, "-1 records that could not be used"),
        ({"skipped": 10**12}, "1000000000000 records that could not be used"),
        ({"how": {"dtype": "x" * 41}}, "says how it trained"),
        ({"how": {"micro_batch": 1e300}}, "says how it trained"),
        ({"how": {"micro_batch": float("nan")}}, "says how it trained"),
        ({"how": {"dtype": "a\nb"}}, "says how it trained"),
        ({"how": {"x": {"y": 1}}}, "says how it trained"),
        ({"how": {"../x": 1}}, "says how it trained"),
        ({"how": {"k" * 41: 1}}, "says how it trained"),
        ({"how": {f"k{i}": i for i in range(9)}}, "says how it trained"),
    ],
)
def test_rejections(changes, reason):
    problem = Validator().reject_reason(ORDER, update(**changes), 4)
    assert problem is not None
    assert re.search(reason, problem)


def orders(count: int) -> list[TrainOrder]:
    return [dataclasses.replace(ORDER, client=client) for client in range(count)]


def accept(validator: Validator, count: int, move: float = 1.0) -> None:
    for order in orders(count):
        assert validator.reject_reason(order, update(move, order), None) is None


def test_norm_rule_sleeps_until_twenty_were_accepted():
    for accepted, believed in ((QUIET - 1, True), (QUIET, False)):
        validator = Validator()
        accept(validator, accepted)
        validator.close_round()
        problem = validator.reject_reason(ORDER, update(1e6), None)
        assert (problem is None) is believed
        assert believed or "times the median" in problem


def test_norm_rule_allows_ten_times_the_median():
    validator = Validator(history=[1.0] * QUIET)
    assert validator.reject_reason(ORDER, update(9.99), None) is None
    assert validator.reject_reason(ORDER, update(10.01), None) is not None


def test_clients_that_learnt_nothing_do_not_silence_the_others():
    """An epoch of one step at rate 0 (training.schedule: trainer) moves nothing: no measure of how far others go."""
    validator = Validator()
    accept(validator, QUIET + 5, move=0.0)
    accept(validator, 3)
    validator.close_round()
    assert validator.reject_reason(ORDER, update(1.0), None) is None
    assert 0.0 not in validator.history


def test_with_privacy_no_update_is_judged_by_those_of_others():
    config = configuration.parse({"privacy": {"client_dp": "on", "noise_multiplier": 1.0}})
    validator = Validator.of(config, bounded_by_adamw=False, norms=[1.0] * QUIET)
    assert validator.reject_reason(ORDER, update(1e6), None) is None
    validator.close_round()
    assert validator.history == [1.0] * QUIET
    assert "not finite" in validator.reject_reason(ORDER, update(math.inf), None)


def test_norm_is_per_root_of_steps():
    validator = Validator(batch_size=1, history=[1.0] * QUIET)
    assert validator.reject_reason(ORDER, update(19.9, steps=4), None) is None
    assert validator.reject_reason(ORDER, update(20.1, steps=4), None) is not None


def test_norm_rule_looks_at_earlier_rounds_only():
    validator = Validator()
    accept(validator, QUIET + 5)
    assert validator.reject_reason(ORDER, update(1e6), None) is None
    assert validator.history == []


def test_rejected_updates_do_not_count():
    validator = Validator(history=[1.0] * QUIET)
    validator.reject_reason(ORDER, update(1e6), None)
    validator.close_round()
    assert validator.history == [1.0] * QUIET


def test_history_is_in_client_order():
    validator = Validator()
    for order in reversed(orders(3)):
        validator.reject_reason(order, update(order.client + 1.0, order), None)
    validator.close_round()
    assert validator.history == [1.0, 2.0, 3.0]


def test_two_shards_of_one_client_count_twice():
    validator = Validator()
    for shard in ("ab", "cd"):
        order = dataclasses.replace(ORDER, shard=shard)
        validator.reject_reason(order, update(order=order), None)
    validator.close_round()
    assert len(validator.history) == 2


def test_history_of_unchanged_updates():
    validator = Validator(history=[0.0] * QUIET)
    assert validator.reject_reason(ORDER, update(0.0), None) is None
    assert validator.reject_reason(ORDER, update(1.0), None) is not None


def test_honest_words_about_how_it_trained():
    how = {"dtype": "bfloat16", "micro_batch": 4, "checkpointing": True, "other": None}
    assert Validator().reject_reason(ORDER, update(how=how, skipped=3, kept=10**6), 4) is None


@pytest.mark.parametrize("examples", [10**6 + 1, 10**12])
def test_where_nothing_is_known_of_a_shard_a_limit_holds(examples):
    problem = Validator().reject_reason(ORDER, update(examples=examples, steps=math.ceil(examples / 16)), None)
    assert problem == f"claims {examples} records, its shard has 1000000"


def test_what_the_method_doubts_does_not_count():
    validator = Validator()
    assert validator.reject_reason(ORDER, update(), 4, None, lambda _: "a Fisher below 0") == "a Fisher below 0"
    validator.close_round()
    assert validator.history == []


def test_the_method_is_not_asked_about_tensors_of_the_wrong_form():
    def asked(_):
        raise AssertionError("an update that is not finite was shown to the method")

    sent = update(tensors=with_tensor("b", np.array([np.nan], np.float32)))
    problem = Validator().reject_reason(ORDER, sent, 4, None, asked)
    assert problem == "b holds values that are not finite"


def test_reasons_are_cut():
    assert short("a") == "a"
    long = short("KeyError: 'x'\n" + "a" * 10**6 + "\n  in method.py, line 7")
    assert len(long) < 2100
    assert "characters)" in long
    # the sentence and the place that raised it are kept, however long the folder's name is
    assert long.startswith("KeyError: 'x'\n")
    assert long.endswith("in method.py, line 7")


# ------------------------------------------------------------------ how far AdamW can walk


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 1000])
def test_adamw_never_walks_further_than_its_reach(steps):
    """The gradients that push hardest: growing as fast as the second moment forgets, and other shapes."""
    torch.manual_seed(0)
    ages = torch.arange(steps, dtype=torch.float64)
    shapes = [
        (0.9 / 0.999) ** (steps - 1 - ages),  # equality in Cauchy and Schwarz at the last step
        torch.ones(steps, dtype=torch.float64),
        (ages == steps - 1).double() + 1e-12,
        torch.randn(steps, dtype=torch.float64),
        1.11**ages,
    ]
    gradients = torch.stack(shapes, dim=1)
    walker = torch.zeros(len(shapes), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([walker], lr=1.0, weight_decay=0.0, eps=1e-30)
    last = walker.detach().clone()
    for gradient in gradients:
        last = walker.detach().clone()
        walker.grad = gradient.clone()
        optimizer.step()
    assert float(walker.detach().abs().max()) <= reach(steps) * (1 + 1e-9)
    # The bound is not idle: the last step of the first shape takes all that it allows.
    allowed = reach(steps) - (reach(steps - 1) if steps > 1 else 0.0)
    assert float((walker.detach() - last)[0].abs()) == pytest.approx(allowed, rel=1e-6)


def test_reach_by_hand():
    assert reach(1) == pytest.approx(1.0)
    assert reach(20_000) == pytest.approx(reach(10_000) + 73_000)


def walked(move: float, **training) -> str | None:
    validator = Validator(training=Training(**{"lr": 0.01, **training}))
    return validator.reject_reason(ORDER, update(move), 4)


def test_the_first_round_is_guarded_too():
    """Before twenty updates were accepted there is no median; the learning rate says what can be."""
    assert walked(0.01) is None
    assert walked(0.0102) == "a moved by 0.0102, AdamW cannot walk over 0.01 in 1 steps"
    assert walked(-3e38).startswith("a moved by 3e+38")
    assert Validator().reject_reason(ORDER, update(3e38), 4) is None  # a method that moves parameters itself


def test_weight_decay_may_add_to_a_walk():
    order = dataclasses.replace(ORDER, tensors={"a": np.full((1, 2), 8, np.float32), "b": np.zeros(1, np.float32)})
    tensors = {"a": np.full((1, 2), 8 - 0.2, np.float32), "b": np.zeros(1, np.float32)}
    for decay, fine in ((0.0, False), (1.0, True)):
        validator = Validator(training=Training(lr=0.01, weight_decay=decay))
        assert (validator.reject_reason(order, update(tensors=tensors), 4) is None) is fine


@pytest.mark.parametrize(("share", "reach_of_two"), [(1.0, 2.0), (1 / 128, 1.0 + 1 / 128), (0.0, 1.0)])
def test_what_is_owed_may_come_with_the_next_update_to_the_same_subspace(share, reach_of_two):
    """Walks of 0.01 and a slack of a 64th: after an accepted update, ``share`` of that may come late."""
    owed: dict[str, float] = {}
    late = (share, owed) if share else None
    config = RunConfig.model_validate({"training": {"lr": 0.01}})
    validator = Validator.of(config, True, [], late=late)
    allowed = 0.01 * (1 + 1 / 64)
    assert validator.reject_reason(ORDER, update(0.9 * allowed), 4) is None
    validator.close_round()
    assert list(owed) == (["3/0"] if share else [])
    assert validator.reject_reason(ORDER, update(reach_of_two * allowed * 1.01), 4).startswith("a moved by")
    assert validator.reject_reason(ORDER, update(reach_of_two * allowed * 0.999), 4) is None
    other = dataclasses.replace(ORDER, subspace="1")
    assert "AdamW cannot walk" in validator.reject_reason(other, update(1.02 * allowed, order=other), 4)
    validator.close_round()
    assert list(owed) == (["3/0"] if share else [])  # what was rejected owes nothing


def test_the_validator_of_a_run():
    config = RunConfig.model_validate({"training": {"batch_size": 4, "epochs": 2}, "federation": {"max_records": 7}})
    validator = Validator.of(config, True, [0.5])
    assert (validator.batch_size, validator.epochs, validator.history, validator.most) == (4, 2, [0.5], 7)
    assert validator.training == config.training
    assert Validator.of(config, False, []).training is None


def test_a_round_may_have_its_own_settings():
    """In round 1 two epochs in batches of two, at a tenth of the learning rate: 4 records are 4 steps."""
    slow = Training(lr=0.001, batch_size=2, epochs=2, weight_decay=0)
    config = RunConfig.model_validate({"training": {"lr": 0.01, "batch_size": 16, "weight_decay": 0}})
    validator = Validator.of(config, True, [0.01] * QUIET, lambda stage, round_: slow if round_ else config.training)
    assert validator.reject_reason(ORDER, update(0.004, steps=4), 4) is None
    assert "claims 1 steps" in validator.reject_reason(ORDER, update(0.001, steps=1), 4)
    assert "AdamW cannot walk over" in validator.reject_reason(ORDER, update(0.01, steps=4), 4)
    validator.close_round()
    assert validator.history[-1] == pytest.approx(0.004 / 2 * 10)  # in units of the run's rate
    first = dataclasses.replace(ORDER, round=0)
    assert validator.reject_reason(first, update(0.01, order=first), 4) is None


@pytest.mark.parametrize(
    ("numbers", "finite"),
    [([], True), ([1.0, -2.0], True), ([3e38, 3e38], True), ([1.0, np.nan], False), ([np.inf, -np.inf], False)],
)
def test_numbers_are_finite_though_their_sum_is_not(numbers, finite):
    assert validation._finite(np.array(numbers, np.float32)) is finite
