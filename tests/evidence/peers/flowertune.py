"""A Flower app in the style of FlowerTune LLM, on Flower's simulation with two workers of one CPU.

``python -m tests.evidence.peers.flowertune PLAN``. As in Flower's template, every message to a client loads the model
and its adapter, the strategy is Flower's FedAvg and the server evaluates. Pictures pass through the vision tower in
every step. All clients of the pool take part in every round, so that Flower's sampling of nodes has nothing to choose.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from tests.evidence.peers import llava

WORKERS = 2

client = ClientApp()
server = ServerApp()
outcome: dict[str, float] = {}


def pictures(processor: Any) -> Callable[[llava.Batch], dict[str, Any]]:
    """Makes the arguments of a forward pass that begins with the pictures."""

    def inputs(batch: llava.Batch) -> dict[str, Any]:
        values = llava.pixels(processor, batch.images)
        return {"input_ids": batch.ids, "pixel_values": values, "attention_mask": batch.mask}

    return inputs


@client.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch."""
    config = message.content["config"]
    plan = llava.read(str(config["plan"]))
    model, processor = llava.load(plan)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    round_ = plan["stages"][config["stage"]]["rounds"][int(config["server-round"]) - 1]
    [file] = [share["file"] for share in round_ if share["client"] == context.node_config["partition-id"]]
    examples = llava.records(model, processor, plan, file)
    trained = llava.train(model, processor, plan, examples, pictures(processor))
    metrics = {"num-examples": trained.records, "steps": trained.steps, "train_loss": trained.loss}
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)


def totals(replies: list[RecordDict], weight: str) -> MetricRecord:
    """Steps and records of a round together, and the sample-weighted mean of the losses."""
    metrics = [reply["metrics"] for reply in replies]
    count = sum(metric[weight] for metric in metrics)
    loss = sum(metric["train_loss"] * metric[weight] for metric in metrics) / count
    return MetricRecord({"steps": sum(metric["steps"] for metric in metrics), "records": count, "train_loss": loss})


def evaluation(
    plan: dict[str, Any], names: list[str], rounds: int
) -> Callable[[int, ArrayRecord], MetricRecord | None]:
    """Evaluates the global model after the last round of a stage."""

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round < rounds:
            return None
        model, processor = llava.load(plan)
        set_peft_model_state_dict(model, arrays.to_torch_state_dict())
        right = given = 0
        for name in names:
            asked = llava.questions(model, processor, plan, name)
            right += llava.answer(model, processor, plan, name, asked, pictures(processor))
            given += len(asked)
        return MetricRecord({"answers": given, "accuracy": right / given})

    return evaluate


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Stage after stage with FedAvg, from the adapter that the last one ended with."""
    plan = llava.read(sys.argv[1])
    arrays = ArrayRecord(get_peft_model_state_dict(llava.load(plan)[0]))
    steps = records = answers = 0
    for number, stage in enumerate(plan["stages"]):
        rounds = len(stage["rounds"])
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=plan["clients"], train_metrics_aggr_fn=totals)
        result = strategy.start(
            grid,
            arrays,
            num_rounds=rounds,
            train_config=ConfigRecord({"plan": sys.argv[1], "stage": number}),
            evaluate_fn=evaluation(plan, stage["evaluate"], rounds),
        )
        arrays, scored = result.arrays, result.evaluate_metrics_serverapp[rounds]
        steps += sum(metrics["steps"] for metrics in result.train_metrics_clientapp.values())
        records += sum(metrics["records"] for metrics in result.train_metrics_clientapp.values())
        answers += scored["answers"]
    loss, accuracy = result.train_metrics_clientapp[rounds]["train_loss"], scored["accuracy"]
    outcome.update(steps=steps, records=records, answers=answers, loss=loss, accuracy=accuracy)


if __name__ == "__main__":
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=llava.read(sys.argv[1])["clients"],
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            # Without an address Ray joins a cluster that somebody else has started on this machine.
            "init_args": {"num_cpus": WORKERS, "address": "local"},
        },
    )
    print(json.dumps(outcome))
