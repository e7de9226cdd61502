"""A bare loop in one process: no server, no messages, no checkpoints, no report.

``python -m tests.evidence.peers.bare PLAN``. The clients train one after the other with the same loaded model; the
features of the pictures are computed once and kept.
"""

from __future__ import annotations

import json
import sys

from tests.evidence.peers import llava


def main() -> None:
    plan = llava.read(sys.argv[1])
    model, processor = llava.load(plan)
    inputs = llava.Features(model, processor, plan).inputs
    asked = {name: llava.questions(model, processor, plan, name) for name in plan["questions"]}
    state = llava.copy(model)
    steps = records = answers = 0
    for stage in plan["stages"]:
        for round_ in stage["rounds"]:
            updates = []
            for share in round_:
                llava.restore(model, state)
                examples = llava.records(model, processor, plan, share["file"])
                updates.append(llava.train(model, processor, plan, examples, inputs))
            state = llava.mean(updates)
            steps += sum(update.steps for update in updates)
            records += sum(update.records for update in updates)
        llava.restore(model, state)
        right = [llava.answer(model, processor, plan, name, asked[name], inputs) for name in stage["evaluate"]]
        given = sum(len(asked[name]) for name in stage["evaluate"])
        answers += given
    loss, accuracy = llava.mean_loss(updates), sum(right) / given
    print(json.dumps({"steps": steps, "records": records, "answers": answers, "loss": loss, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
