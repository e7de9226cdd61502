"""``setting: centralised``: one participant, the tasks one after the other, the same bits as a plain loop."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from fcit import config as configuration
from fcit import seeding
from fcit.cli import main
from fcit.data.benchmark import open_benchmark
from fcit.data.collate import images_of
from fcit.methods.base import Factory
from fcit.models.adapters import Adapters
from fcit.models.backbone import Backbone
from fcit.models.judging import judge_with
from fcit.models.layout import Layout, is_projector
from fcit.models.schedules import trainer_multipliers
from fcit.runs.reader import Run
from tests.helpers.runs import SMALL

pytestmark = pytest.mark.slow

EPOCHS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Fine-tuning on two tasks."""
    folder = tmp_path_factory.mktemp("central")
    raw = {key: value for key, value in SMALL.items() if key != "federation"}
    raw |= {
        "setting": "centralised",
        "federation": {"wire": "int8"},  # of no effect: there is no wire
        "method": "finetune",
        "training": {"epochs": EPOCHS, "schedule": "trainer"},
        "data": {"max_records": 60},
    }
    config = folder / "central.yaml"
    config.write_text(yaml.safe_dump({**raw, "output": str(folder / "runs")}))
    assert main(["run", str(config)]) == 0
    return Run(folder / "runs" / "small-1")


def by_hand(config: configuration.RunConfig) -> dict[str, np.ndarray]:
    """The tensors that are trained, after all tasks: model, optimiser, schedule and one loop."""
    training, data = config.training, open_benchmark(config)
    backbone = Backbone(config.backbone)
    adapters = Adapters(backbone, config.adapter, Layout())
    shapes = {name: tuple(p.shape) for name, p in adapters.trainable.items() if not is_projector(name)}
    theta = adapters.base_projector() | Factory(config.seed, shapes)("0")
    for stage in range(data.stage_count):
        examples = judge_with(backbone.config, backbone.encoder).examples(data.shard(0, stage))
        rng = seeding.generator(config.seed, "batches", stage, 0, 0, shard_of(config, stage))
        order = [int(i) for _ in range(EPOCHS) for i in rng.permutation(len(examples))]
        batches = [order[first : first + training.batch_size] for first in range(0, len(order), training.batch_size)]
        adapters.load(theta)
        with (
            seeding.torch_seeded(config.seed, "training", stage, 0, 0, shard_of(config, stage)),
            adapters.training() as parameters,
        ):
            optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay, foreach=True)
            rates = trainer_multipliers(training.warmup_ratio, len(batches))
            for batch, rate in zip(batches, rates, strict=True):
                optimizer.param_groups[0]["lr"] = training.lr * rate
                optimizer.zero_grad(set_to_none=True)
                chosen = [examples[i] for i in batch]
                backbone.loss(chosen, backbone.vision_features(data.image_root, images_of(chosen))).backward()
                if training.max_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
                optimizer.step()
            theta = adapters.read()
    return theta


def shard_of(config: configuration.RunConfig, task: int) -> str:
    """The name under which a run draws the randomness of a task's records."""
    from server.participants import shard_id

    return shard_id(config.seed, 0, task)


def trained(run: Run) -> dict[str, np.ndarray]:
    """The one subspace of a finished run."""
    [file] = Path(run.folder.adapters).glob("*/*.safetensors")
    return load_file(file)


def test_the_tasks_are_trained_on_all_their_records(run):
    data = open_benchmark(run.config)
    sizes = [[len(data.files.train_file(name).records[:60]) for name in names] for names in data.tasks]
    assert [event["examples"] for event in run.of("round")] == sizes


def test_a_stage_is_one_round_of_all_epochs(run):
    assert [(event["stage"], event["round"]) for event in run.of("round")] == [(0, 0), (1, 0)]


def test_the_same_bits_as_a_plain_loop_over_the_tasks(run):
    wanted = by_hand(run.config)
    got = trained(run)
    assert sum(tensor.size for tensor in got.values()) == sum(tensor.size for tensor in wanted.values())
    assert sorted(t.tobytes() for t in got.values()) == sorted(t.astype(np.float32).tobytes() for t in wanted.values())


def test_the_model_card_speaks_of_no_federation(run, tmp_path):
    assert main(["export", str(run.path), "--to", str(tmp_path / "adapters")]) == 0
    card = (tmp_path / "adapters" / "README.md").read_text()
    assert "made by continual instruction tuning with `fcit`" in card
    assert "federated" not in card.partition("## How to use")[0]


def test_tables_and_figures_have_no_federation(run, tmp_path):
    assert main(["report", str(run.path), "--output", str(tmp_path / "report")]) == 0
    [head, *_] = csv.reader((tmp_path / "report" / "tables" / "comparison.csv").open())
    assert "MB sent" not in head
    assert not list((tmp_path / "report" / "figures").glob("clients-*"))
    assert "Clients per round" not in (tmp_path / "report" / "report.html").read_text()
