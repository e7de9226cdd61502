"""The bare loop's work on two forked processes, each of one thread and with the loaded model.

``python -m tests.evidence.peers.pool PLAN``. Tensors are handed over in torch's shared memory. This is the design of
BlazeFL's process mode; its package needs Python 3.12, so this is not BlazeFL itself.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from torch import multiprocessing

from tests.evidence.peers import llava

WORKERS = 2

# Set before the pool is forked, so that its processes have them.
plan: dict[str, Any] = {}
model: Any = None
processor: Any = None
features: llava.Features


def train(job: tuple[str, llava.State]) -> llava.Trained:
    """A client's local epoch, in a process of the pool."""
    file, state = job
    llava.restore(model, state)
    examples = llava.records(model, processor, plan, file)
    return llava.train(model, processor, plan, examples, features.inputs)


def answer(job: tuple[str, llava.State]) -> tuple[int, int]:
    """Right answers and questions of a data set, in a process of the pool."""
    name, state = job
    llava.restore(model, state)
    asked = llava.questions(model, processor, plan, name)
    return llava.answer(model, processor, plan, name, asked, features.inputs), len(asked)


def main() -> None:
    global plan, model, processor, features
    plan = llava.read(sys.argv[1])
    model, processor = llava.load(plan)
    features = llava.Features(model, processor, plan)
    state = llava.copy(model)
    steps = records = answers = 0
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        for stage in plan["stages"]:
            for round_ in stage["rounds"]:
                updates = pool.map(train, [(share["file"], state) for share in round_], chunksize=1)
                state = llava.mean(updates)
                steps += sum(update.steps for update in updates)
                records += sum(update.records for update in updates)
            results = pool.map(answer, [(name, state) for name in stage["evaluate"]], chunksize=1)
            answers += sum(given for _, given in results)
        pool.close()
        pool.join()
    loss = llava.mean_loss(updates)
    accuracy = sum(right for right, _ in results) / sum(given for _, given in results)
    print(json.dumps({"steps": steps, "records": records, "answers": answers, "loss": loss, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
