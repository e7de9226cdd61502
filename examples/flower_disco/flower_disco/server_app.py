"""The server: discovers tasks from identity tokens, keeps a subspace for each, mixes them per question."""

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from fcit import registry
from fcit.data.collate import images_of
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedavg import FedAvg
from fcit.methods.base import Factory, ServerState, Stats, Update
from fcit.methods.disco import Disco
from flower_disco.task import datasets, load, packed, unpacked

app = ServerApp()


def ask(grid: Grid, kind: str, contents: dict[int, RecordDict]) -> dict[int, RecordDict]:
    """Send each node its message; what the nodes answered, in ascending order."""
    messages = [Message(content, dst_node_id=node, message_type=kind) for node, content in contents.items()]
    replies = list(grid.send_and_receive(messages))
    for reply in replies:
        if reply.has_error():
            raise RuntimeError(f"node {reply.metadata.src_node_id}: {reply.error.reason}")
    return {r.metadata.src_node_id: r.content for r in sorted(replies, key=lambda r: r.metadata.src_node_id)}


def evaluate(method: Disco, state: ServerState, context: Context, task: int) -> float:
    """Mean score on a task's data sets; every question is routed by its own words, never by its task."""
    _, backbone, adapters, benchmark = load(context.run_config)
    names, scores = list(state.subspaces), []
    adapters.load_mixture(list(state.subspaces.values()), {})
    for dataset in datasets(benchmark, task):
        records = benchmark.test(dataset)[: int(context.run_config["questions"])]
        mix = method.route(names, method.knowledge(state), backbone.identity.text([r.instruction for r in records]))
        examples = [backbone.encoder.encode(record) for record in records]
        features = backbone.vision_features(benchmark.image_root, images_of(examples))
        with adapters.mixed(mix):
            texts = backbone.generate(examples, features, 24)
        scores.append(registry.resolve("scorer", benchmark.spec.datasets[dataset].scorer)(texts, records).score)
    return float(np.mean(scores))


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Task after task, a few rounds each; then ask about everything learnt so far."""
    settings = context.run_config
    config, _, adapters, _ = load(settings)
    method, aggregator = Disco(config), Aggregator(FedAvg(config))
    shapes = {name: tuple(p.shape) for name, p in adapters.trainable.items()}
    make, state = Factory(config.seed, shapes), ServerState()
    rng, seen, nodes = np.random.default_rng(config.seed), [], sorted(grid.get_node_ids())
    for state.stage, task in enumerate(int(t) for t in str(settings["tasks"]).split()):
        for state.round in range(int(settings["rounds-per-task"])):
            chosen = rng.choice(len(nodes), min(int(settings["clients-per-round"]), len(nodes)), replace=False)
            pairs = {nodes[i]: (nodes[i], f"shard-{task}") for i in sorted(chosen)}
            order = ConfigRecord({"task": task, "seed": int(rng.integers(2**31))})
            # DKO: clients not met on this shard say what it looks like; matching tokens share a subspace.
            new = {node: RecordDict({"config": order}) for node, pair in pairs.items() if pair not in state.assigned}
            stats = {
                pairs[node]: Stats(unpacked(said["arrays"])["total"], int(said["metrics"]["num-examples"]))
                for node, said in ask(grid, MessageType.QUERY, new).items()
            }
            method.assign(state, list(pairs.values()), stats, make)
            orders = {
                node: RecordDict({"arrays": packed(state.subspaces[state.assigned[p]]), "config": order})
                for node, p in pairs.items()
            }
            answers = ask(grid, MessageType.TRAIN, orders)
            updates = [
                Update(node, state.assigned[pairs[node]], int(a["metrics"]["num-examples"]), unpacked(a["arrays"]))
                for node, a in answers.items()
            ]
            method.aggregate(state, iter(updates), aggregator)
            loss = np.mean([a["metrics"]["train_loss"] for a in answers.values()])
            known = ", ".join(state.subspaces)
            print(f"task {task}, round {state.round + 1}: loss {loss:.3f}, subspaces {known}", flush=True)
        seen.append(task)
        scores = {f"task-{t}": evaluate(method, state, context, t) for t in seen}
        print(f"after task {task}: " + ", ".join(f"{name} {score:.1f}" for name, score in scores.items()), flush=True)
    context.state["scores"] = MetricRecord({**scores, "subspaces": len(state.subspaces)})
