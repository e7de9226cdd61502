"""What the server counts of records' privacy, and what it announces to clients."""

from types import SimpleNamespace

import pytest

from fcit import config as configuration
from fcit.methods.base import Method
from fcit.privacy.record_accountant import Steps, epsilon, record_multiplier
from server.participants import Slot
from server.record_privacy import RecordPrivacy, records_of
from tests.helpers.accounting import NEEDS_ACCOUNTING

pytestmark = NEEDS_ACCOUNTING


def parsed(**privacy):
    return configuration.parse(
        {
            "method": "finetune",
            "federation": {"clients": 2, "clients_per_round": 2, "rounds": 3},
            "training": {"batch_size": 4},
            "privacy": {"record_dp": "on", **privacy},
        }
    )


def accounts(config, tasks=((0,), (1,))) -> RecordPrivacy:
    stream = SimpleNamespace(
        stage_count=2, slots=lambda stage: [tuple(tasks[stage])] * 2, most_records=lambda client, tasks: 12
    )
    return RecordPrivacy(config, stream, Method(config), None)


def head(records: int):
    return SimpleNamespace(examples=records)


def test_a_task_belongs_to_one_stage_here():
    assert accounts(parsed(record_noise_multiplier=1.0)).planned(Slot(0, "s", (0,))) == 3


def test_a_task_that_comes_again_is_planned_for_both():
    assert accounts(parsed(record_noise_multiplier=1.0), ((0,), (0,))).planned(Slot(0, "s", (0,))) == 6


def test_records_of_tasks_that_only_the_client_knows_may_be_the_same():
    assert accounts(parsed(record_noise_multiplier=1.0), ((), ())).planned(Slot(0, "s", ())) == 6
    assert records_of(Slot(0, "s", ())) == records_of(Slot(0, "t", ()))


def test_what_was_spent():
    part = accounts(parsed(record_noise_multiplier=1.0, record_delta=1e-6))
    part.count([Slot(0, "s", (0,)), Slot(1, "s", (0,))], {(0, "s"): head(8)}, {"1/s": 4})
    part.end_stage()
    part.count([Slot(0, "t", (1,))], {}, {})
    spent = part.spent()
    # Of a client that never said so there are 4, 5, 9, ... records, up to 12.
    few = max((Steps(1.0, 1.0, 1), Steps(1.0, 0.8, 2), Steps(1.0, 4 / 9, 3)), key=lambda s: epsilon([s] * 3, 1e-6).pld)
    one, other, later = ([Steps(1.0, 0.5, 2)], [Steps(1.0, 1.0, 1)], [few])
    bounds = [epsilon(steps, 1e-6).pld for steps in (one, other, later)]
    assert spent["epsilon"] == pytest.approx(max(bounds), rel=1e-5)
    assert spent["clients"]["0"]["epsilon"] == pytest.approx(max(bounds[0], bounds[2]), rel=1e-5)
    assert spent["clients"]["0"]["steps"] == 2 + few.number
    assert spent["clients"]["1"]["epsilon"] == pytest.approx(bounds[1], rel=1e-5)
    assert spent["after_stages"] == [pytest.approx(max(bounds[:2]), rel=1e-5)]
    assert spent["epsilon"] < spent["epsilon_rdp"]
    assert part.so_far() == {"epsilon": spent["epsilon"], "delta": 1e-6}


@pytest.mark.parametrize(("noise", "more"), [(3.0, False), (0.05, True)])
def test_neither_few_nor_many_records_always_spend_most(noise, more):
    one, many = Steps(noise, 1.0, 1), Steps(noise, 0.01, 100)
    assert (epsilon([many], 1e-5).pld > epsilon([one], 1e-5).pld) is more


def test_a_target_is_kept_by_clients_of_any_size():
    part = accounts(parsed(record_epsilon=3.0))
    for _ in range(3):
        part.count([Slot(0, "s", (0,)), Slot(1, "s", (0,))], {(0, "s"): head(8), (1, "s"): head(40)}, {})
    spent = part.spent()
    assert all(2.98 < client["epsilon"] <= 3.0 for client in spent["clients"].values())
    assert spent["clients"]["0"]["noise_multiplier"] == pytest.approx(record_multiplier(3.0, 1e-5, 0.5, 6), rel=1e-5)
    assert spent["noise_multiplier"] == min(c["noise_multiplier"] for c in spent["clients"].values())
    assert part.plan()["trainings"] == 3
