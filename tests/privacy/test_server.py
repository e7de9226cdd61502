"""The private part of the server's aggregation: who is counted, what is noised, and the secret."""

import stat
from types import SimpleNamespace

import numpy as np
import pytest

from fcit import config as configuration
from fcit.errors import ConfigError, RunError
from fcit.federation.sampling import sample
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.factors import Alternate, Separate
from fcit.fedopt.fedavg import FedAvg
from fcit.methods.base import Method, ServerState, Update
from fcit.privacy import accountant
from fcit.privacy.ledger import Ledger
from fcit.runs.folder import RunDir
from server.participants import Slot
from server.privacy import Privacy
from tests.helpers.accounting import NEEDS_ACCOUNTING
from tests.helpers.toy import by_factors, f32

pytestmark = NEEDS_ACCOUNTING
NAMES = ("x.lora_A.weight", "x.lora_B.weight")


def parsed(**privacy):
    privacy = {"client_dp": "on", **privacy}
    if "epsilon" not in privacy:
        privacy.setdefault("noise_multiplier", 1.0)
    return configuration.parse(
        {"method": "finetune", "federation": {"clients": 4, "clients_per_round": 2, "rounds": 3}, "privacy": privacy}
    )


def one_subspace():
    held = state()
    held.assigned = dict.fromkeys(held.assigned, "0")
    return held


def private(folder, config, ledger=None, factors=Separate):
    return Privacy(config, SimpleNamespace(stage_count=2), by_factors(factors()), RunDir(folder), ledger)


def state():
    tensors = {name: f32(0, 0) for name in NAMES}
    return ServerState(
        subspaces={"0": dict(tensors), "1": dict(tensors)},
        shared={"p": f32(0, 0)},
        assigned={(0, "s"): "0", (1, "s"): "1"},
    )


SLOTS = [Slot(0, "s", (0,)), Slot(1, "s", (0,))]


def aggregated(part, held, updates, slots=SLOTS):
    config = part.config
    part.aggregate(Method(config), held, slots, iter(updates), Aggregator(FedAvg(config)))
    return held


def update(client, subspace, value, examples=100):
    tensors = {name: f32(value, 0) for name in (*NAMES, "p")}
    return Update(client, subspace, examples, tensors)


def test_one_clip_over_subspace_and_shared_tensors(tmp_path):
    part = private(tmp_path, parsed(noise_multiplier=0.01, clip=np.sqrt(3).item()))
    held = aggregated(part, state(), [update(0, "0", 2.0), update(1, "1", 1.0, examples=1)])
    # the first is clipped from norm 2 sqrt 3 to sqrt 3, both weigh one half whatever their records
    assert held.subspaces["0"][NAMES[0]].tolist() == pytest.approx([0.5, 0], abs=0.05)
    assert held.subspaces["1"][NAMES[0]].tolist() == pytest.approx([0.5, 0], abs=0.05)
    assert held.shared["p"].tolist() == pytest.approx([1.0, 0], abs=0.05)


def test_whether_an_update_arrived_does_not_show(tmp_path):
    held = aggregated(private(tmp_path, parsed()), state(), [update(0, "0", 0.1)])
    assert np.abs(held.subspaces["1"][NAMES[0]]).min() > 0  # client 1 was asked and has not answered


def test_a_subspace_of_no_participant_stays(tmp_path):
    held = aggregated(private(tmp_path, parsed()), state(), [update(0, "0", 0.1)], SLOTS[:1])
    assert not held.subspaces["1"][NAMES[0]].any()


def test_frozen_factors_get_no_noise(tmp_path):
    held = aggregated(private(tmp_path, parsed(), factors=Alternate), state(), [])
    assert not held.subspaces["0"][NAMES[0]].any()
    assert held.subspaces["0"][NAMES[1]].all()


def test_all_who_were_asked_are_counted(tmp_path):
    part = private(tmp_path, parsed())
    held = state()
    aggregated(part, held, [update(0, "0", 0.1)])
    held.round = 1
    aggregated(part, held, [], SLOTS[1:])
    assert part.ledger.clients == {"0": 1, "1": 2}
    assert part.ledger.homes == {"0": {"0": 1}, "1": {"1": 2}, "shared": {"0": 1, "1": 2}}


def test_what_was_spent(tmp_path):
    part = private(tmp_path, parsed(noise_multiplier=2.0, delta=1e-6))
    aggregated(part, state(), [])
    part.end_stage()
    aggregated(part, state(), [], SLOTS[1:])
    spent = part.spent()
    assert spent["releases"] == 2
    assert [after["releases"] for after in spent["after_stages"]] == [1]
    assert spent["by_subspace"]["0"]["releases"] == 1
    assert spent["by_subspace"]["0"]["epsilon"] < spent["epsilon"] < spent["epsilon_rdp"]
    assert part.so_far() == {"epsilon": spent["epsilon"], "delta": 1e-6, "clip": 1.0}


def test_the_noise_of_an_epsilon_is_enough_for_all_rounds(tmp_path):
    part = private(tmp_path, parsed(epsilon=3.0))
    for stage in range(2):
        for round_ in range(3):
            for client in sample(part.config.federation, part.config.seed, stage, round_):
                part.ledger.count(client, ["0"])
    assert 2.99 < part.spent()["epsilon"] <= 3.0
    assert part.planned()["releases"] == part.spent()["releases"]
    assert part.planned()["epsilon"] == part.spent()["epsilon"]


def test_the_clipping_norm_follows_the_updates(tmp_path):
    part = private(tmp_path, parsed(clip_quantile=0.5, quantile_noise=0.1, noise_multiplier=0.01))
    clips = []
    for round_ in range(20):
        held = state()
        held.round = round_
        aggregated(part, held, [update(0, "0", 0.01), update(1, "1", 0.01)])
        clips.append(part.ledger.clip)
    assert clips[-1] < 0.5  # both updates are far shorter than the first norm of 1


def test_too_little_noise_on_the_count_for_an_epsilon(tmp_path):
    config = parsed(epsilon=1.0, clip_quantile=0.5, quantile_noise=1.0)
    with pytest.raises(ConfigError, match=r"privacy\.quantile_noise 1 is not more than half of the noise multiplier"):
        private(tmp_path, config)


def test_the_secret_is_private_and_kept_for_a_run_that_goes_on(tmp_path):
    first, part = state(), private(tmp_path, parsed())
    aggregated(part, first, [])
    file = tmp_path / "noise.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = aggregated(private(tmp_path, parsed(), Ledger(1.0, 1.0, {"0": 1})), state(), [])
    assert again.shared["p"].tolist() == first.shared["p"].tolist()
    part.forget_secret()
    assert not file.exists()


def test_another_run_has_another_secret(tmp_path):
    runs = [tmp_path / "a", tmp_path / "b"]
    for folder in runs:
        folder.mkdir()
    one, other = (aggregated(private(folder, parsed()), state(), []) for folder in runs)
    assert one.shared["p"].tolist() != other.shared["p"].tolist()


def test_a_lost_secret_is_not_replaced(tmp_path):
    part = private(tmp_path, parsed(), Ledger(1.0, 1.0, {"0": 1}))
    with pytest.raises(RunError, match=r"noise\.key is missing: .* put the file back"):
        aggregated(part, state(), [])


def test_a_damaged_secret_is_not_used(tmp_path):
    (tmp_path / "noise.key").write_bytes(b"short")
    with pytest.raises(RunError, match="has 5 bytes, expected 32"):
        aggregated(private(tmp_path, parsed()), state(), [])


def test_reproducible_noise_needs_no_secret(tmp_path):
    one, other = (aggregated(private(tmp_path, parsed(reproducible_noise=True)), state(), []) for _ in range(2))
    assert one.shared["p"].tolist() == other.shared["p"].tolist()
    assert not (tmp_path / "noise.key").exists()
    assert private(tmp_path, parsed(reproducible_noise=True)).spent()["public_noise"]


def test_a_method_that_aggregates_twice_is_stopped(tmp_path):
    class Twice(Method):
        def aggregate(self, state, updates, aggregator):
            super().aggregate(state, updates, aggregator)
            super().aggregate(state, [], aggregator)

    part = private(tmp_path, parsed())
    with pytest.raises(RunError, match="'shared' was aggregated twice in a round"):
        part.aggregate(Twice(part.config), state(), SLOTS, iter([]), Aggregator(FedAvg(part.config)))


# --------------------------------------------------------------------------- secret sampling


def test_participants_come_from_the_secret(tmp_path):
    part = private(tmp_path, parsed(sampling="secret"))
    rounds = [part.drawn(stage, round_) for stage in range(2) for round_ in range(20)]
    again = private(tmp_path, parsed(sampling="secret"), Ledger(1.0, 1.0, {"everyone": 3}))
    assert [again.drawn(stage, round_) for stage in range(2) for round_ in range(20)] == rounds
    (tmp_path / "other").mkdir()
    other = private(tmp_path / "other", parsed(sampling="secret"))
    assert [other.drawn(stage, round_) for stage in range(2) for round_ in range(20)] != rounds


def test_public_participants_are_not_drawn(tmp_path):
    assert private(tmp_path, parsed()).drawn(0, 0) is None
    assert not (tmp_path / "noise.key").exists()


def test_a_round_without_participants_is_released(tmp_path):
    part = private(tmp_path, parsed(sampling="secret"))
    held = aggregated(part, one_subspace(), [], [])
    assert held.subspaces["0"][NAMES[0]].all()
    assert held.shared["p"].all()
    assert not held.subspaces["1"][NAMES[0]].any()
    assert part.ledger.clients == {"everyone": 1}
    assert part.ledger.homes == {"0": {"everyone": 1}, "shared": {"everyone": 1}}
    assert part.moved(Method(part.config), held, []) == ["0"]


def test_the_sum_is_divided_by_the_expected_number(tmp_path):
    part = private(tmp_path, parsed(sampling="secret", noise_multiplier=0.01, clip=10.0))
    held = one_subspace()
    held.assigned |= {(2, "s"): "0"}
    slots = [*SLOTS, Slot(2, "s", (0,))]
    aggregated(part, held, [update(client, "0", 1.0) for client in range(3)], slots)
    assert held.shared["p"][0] == pytest.approx(1.5, abs=0.3)  # three came, two were expected


def test_participants_of_several_subspaces_are_no_secret(tmp_path):
    part = private(tmp_path, parsed(sampling="secret"))
    with pytest.raises(RunError, match=r"gives clients the subspaces 0, 1, and its common\(\) says '0'"):
        aggregated(part, state(), [])


def test_what_secret_sampling_saves(tmp_path):
    part = private(tmp_path, parsed(sampling="secret", epsilon=3.0))
    for round_ in range(6):
        held = one_subspace()
        held.round = round_
        aggregated(part, held, [], [])
    spent = part.spent()
    assert part.planned()["releases"] == spent["releases"] == 6
    assert 2.99 < spent["epsilon"] <= 3.0
    assert spent["amplification"] == "secret Poisson sampling with probability 0.5"
    assert spent["noise_multiplier"] < accountant.multiplier_for(3.0, 1e-5, 6)
    assert "events.jsonl" in spent["not_covered"][-1]


def test_extra_rounds_are_planned_for(tmp_path):
    """Of 4 clients 2 a round: in 2 stages of 3 and 20 rounds more releases count than in 2 of 3."""
    config = parsed(epsilon=8.0)
    rounds = {0: 3, 1: 20}
    longer = Privacy(config, SimpleNamespace(stage_count=2), Separate(), RunDir(tmp_path), None, rounds.__getitem__)
    assert longer.ledger.multiplier > private(tmp_path, config).ledger.multiplier
