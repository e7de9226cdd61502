"""A data owner: says what its instructions look like, trains the subspace it is sent."""

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fcit.data.collate import images_of
from flower_disco.task import datasets, load, packed, unpacked

app = ClientApp()


def shard(message: Message, context: Context):
    """Backbone, adapters, records and the folder of their images."""
    task = int(message.content["config"]["task"])
    _, backbone, adapters, benchmark = load(context.run_config)
    datasets(benchmark, task)
    records = benchmark.shard(int(context.node_config["partition-id"]), task)
    return backbone, adapters, records, benchmark.image_root


@app.query()
def describe(message: Message, context: Context) -> Message:
    """The sum of the frozen text features of this client's instructions: no answer, no image leaves it."""
    backbone, _, records, root = shard(message, context)
    features = backbone.identity.features("text", records, root)
    content = RecordDict(
        {
            "arrays": packed({"total": features.astype(np.float64).sum(axis=0)}),
            "metrics": MetricRecord({"num-examples": len(records)}),
        }
    )
    return Message(content, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch of LoRA fine-tuning, starting from what the server sent."""
    backbone, adapters, records, root = shard(message, context)
    adapters.load(unpacked(message.content["arrays"]))
    examples = [backbone.encoder.encode(record) for record in records]
    rng = np.random.default_rng(int(message.content["config"]["seed"]))
    torch.manual_seed(int(message.content["config"]["seed"]))  # dropout
    size, losses = int(context.run_config["batch-size"]), []
    with adapters.training() as parameters:
        optimizer = torch.optim.AdamW(parameters, lr=float(context.run_config["learning-rate"]), weight_decay=0.0)
        for rows in np.array_split(rng.permutation(len(examples)), -(-len(examples) // size)):
            batch = [examples[i] for i in rows]
            loss = backbone.loss(batch, backbone.vision_features(root, images_of(batch)))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
    content = RecordDict(
        {
            "arrays": packed(adapters.read()),
            "metrics": MetricRecord({"num-examples": len(records), "train_loss": float(np.mean(losses))}),
        }
    )
    return Message(content, reply_to=message)
