"""`fcit run --dry-run`: who takes part, which orders, how many bytes; nothing is trained and no folder is made."""

import pytest
import yaml

from fcit import config as configuration
from fcit.cli import main
from fcit.data.stream import open_stream
from fcit.doctor import plan
from fcit.federation.sampling import sample
from fcit.models.shapes import shape_of

SMALL = {
    "name": "small",
    "benchmark": "fcit-mini-short",
    "federation": {"rounds": 2, "clients": 50, "clients_per_round": 3},
    "evaluation": {"samples": 100, "batch_size": 16, "batches_per_order": 2},
}


def planned(**changes) -> tuple[list[plan.Stage], int, int]:
    """The stages, and bytes of an adapter and of the projector."""
    config = configuration.parse({**SMALL, **changes})
    stream, shape = open_stream(config), shape_of(config.backbone, config.adapter.targets)
    if isinstance(stream, plan.Benchmark):
        stream.prepare()
    return list(plan.stages(config, stream, shape)), 4 * shape.adapter(config.adapter.rank), 4 * shape.projector


def test_one_subspace_for_all_stages():
    stages, adapter, projector = planned(method="finetune")
    assert [stage.training for stage in stages] == [6] * 4
    assert [stage.answering for stage in stages] == [4, 8, 12, 16]  # 100 questions in stretches of 32
    assert [stage.describing for stage in stages] == [0] * 4
    assert stages[0].first == sample(configuration.parse(SMALL).federation, 0, 0, 0)
    assert [stage.up for stage in stages] == [6 * (adapter + projector)] * 4
    assert [stage.down for stage in stages] == [(6 + n) * (adapter + projector) for n in (4, 8, 12, 16)]


def test_a_subspace_for_each_task():
    stages, adapter, projector = planned(method="disco")
    assert stages[1].down == 6 * (adapter + projector) + 8 * (2 * adapter + projector)
    assert 3 <= stages[0].describing <= 6


def test_a_reference_that_pools_all_data_has_no_wire():
    federation = {**SMALL["federation"], "wire": "int8"}
    (stage, *_), adapter, projector = planned(method="joint", federation=federation)
    assert stage.up == 2 * (adapter + projector)  # of two rounds, in float32
    assert stage.down == 2 * (adapter + projector)  # questions are asked after the last stage alone


def test_heterogeneous_stages_learn_several_tasks():
    stages, _, _ = planned(benchmark="fcit-mini-task", setting="heterogeneous", federation={"clients_per_round": 5})
    assert all(len(stage.tasks) > 1 for stage in stages)


def test_what_is_frozen_is_not_sent_back():
    stages, adapter, _ = planned(method="finetune", factors="frozen_a", adapter={"projector": "frozen"})
    assert 0 < stages[0].up < 6 * adapter
    alternating, _, _ = planned(method="finetune", factors="alternate", adapter={"projector": "frozen"})
    assert alternating[0].up == 3 * adapter  # B in the first round, A in the second


@pytest.mark.parametrize(("factors", "added", "own"), [("flora", 24, 8), ("fedex", 16, 0)])
def test_pieces_go_down_once_to_each_client(factors, added, own):
    """Three clients of rank 8 a round, two rounds a stage; the subspace itself is a piece from the second stage on."""
    stages, adapter, projector = planned(method="finetune", factors=factors)
    shape = shape_of(configuration.parse(SMALL).backbone, configuration.parse(SMALL).adapter.targets)
    piece, begun = 4 * shape.products(added), 4 * shape.products(own)
    for number, (stage, answers) in enumerate(zip(stages, (4, 8, 12, 16), strict=True)):
        drawn = [set(sample(configuration.parse(SMALL).federation, 0, number, round_)) for round_ in range(2)]
        brought = 3 * piece + (len(drawn[0] | drawn[1]) * begun if number else 0)
        assert stage.down - (6 + answers) * (adapter + projector) == brought
        assert stage.up == 6 * (adapter + projector)


def test_clients_that_answer_for_themselves_are_each_asked():
    stages, adapter, projector = planned(
        method="finetune", factors="fedsa", evaluation={**SMALL["evaluation"], "clients": 2}
    )
    assert [stage.answering for stage in stages] == [2 * n for n in (4, 8, 12, 16)]
    alone, _, _ = planned(method="finetune", factors="fedsa", evaluation={**SMALL["evaluation"], "clients": 1})
    assert stages[0].down - alone[0].down == 4 * (adapter + projector)


def test_questions_about_what_is_not_trained_are_counted():
    stages, adapter, projector = planned(method="finetune", evaluation={**SMALL["evaluation"], "unseen": True})
    assert [stage.answering for stage in stages] == [16 + 16, 16, 16, 16]  # all four, and before the first stage
    assert [stage.down for stage in stages] == [(6 + 16) * (adapter + projector)] * 4  # what came first has no tensors
    held = {**SMALL["evaluation"], "held_out": [{"benchmark": "fcit-mini-all", "only": ["aokvqa"]}], "when": "final"}
    stages, _, _ = planned(method="finetune", evaluation={**held, "held_out_when": [2]})
    assert [stage.answering for stage in stages] == [4, 4, 0, 16 + 4]


def test_a_client_of_another_subspace_is_sent_all_its_pieces():
    config = configuration.parse({**SMALL, "factors": "flora", "adapter": {"rank": 8, "ranks": [2, 4, 8, *[2] * 47]}})
    shape = shape_of(config.backbone, config.adapter.targets)
    a, b = (0,), (1,)
    rounds = [[(0, a), (1, a), (2, b)], [(0, b), (1, a)], [(0, a), (2, b)]]
    # the first round's stacks have ranks 6 and 8, the second's 4 and 2; nobody is sent anything in the first
    wanted = sum(map(shape.products, (8, 6, 6, 4, 8, 2)))
    assert plan._pieces(config, shape, rounds, set()) == wanted


def test_thin_updates_and_orders_are_counted_as_such():
    federation = {**SMALL["federation"], "wire": "int8", "top_k": 0.1}
    stages, adapter, projector = planned(method="finetune", federation=federation)
    numbers, short = (adapter + projector) / 4, 1 + 2 / 64  # a byte each and a scale of two for 64
    assert stages[0].up == pytest.approx(6 * numbers * (0.1 * short + 1 / 8))
    assert stages[0].down == pytest.approx(6 * numbers * short + 4 * numbers * 2)  # answers as bfloat16


def test_pooled_references_have_one_participant_and_a_stage_may_be_left_out_of_evaluation():
    stages, _, _ = planned(method="individual", evaluation={**SMALL["evaluation"], "when": "final"})
    assert [stage.training for stage in stages] == [2] * 4
    assert [stage.answering for stage in stages] == [0, 0, 0, 16]


def test_with_tasks_of_the_sites_only_stages_are_known():
    stages, _, _ = planned(
        method="finetune", stream="site", evaluation={}, federation={**SMALL["federation"], "stages": 2}
    )
    assert [stage.tasks for stage in stages] == [[], []]
    assert [stage.answering for stage in stages] == [50, 50]


@pytest.mark.parametrize("setting", ["homogeneous", "heterogeneous", "centralised"])
def test_the_command_shows_and_makes_nothing(setting, tmp_path, capsys):
    raw = {**SMALL, "setting": setting, "benchmark": "fcit-mini-task", "output": str(tmp_path / "runs")}
    if setting == "heterogeneous":
        raw["federation"] = {**SMALL["federation"], "clients_per_round": 5}
    if setting == "centralised":
        del raw["federation"]
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(raw))
    assert main(["run", str(file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    wanted = "one participant, without a federation" if setting == "centralised" else "of 50 clients a round"
    assert wanted in out
    assert "the whole run" in out
    assert "nothing was trained; without --dry-run the run folder would be" in out
    assert not (tmp_path / "runs").exists()
