"""Bad clients among others that really train; every single fault is in tests/faults/test_hostile.py."""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from clients.app import app
from fcit.federation import codec
from fcit.federation.engines.inline import InlineGrid
from fcit.federation.messages import ClientUpdate, Description
from fcit.runs.environment import describe
from fcit.runs.folder import RunDir
from server.app import run as serve


def garbage(reply):
    return RecordDict({"head": ConfigRecord({"json": '{"type": 5}'})})


def _changed(**changes):
    def change(reply):
        kind = ClientUpdate if "ClientUpdate" in str(reply.content.config_records["head"]["json"]) else Description
        record = codec.decode(reply.content, kind)
        for name, value in changes.items():
            if name == "poison":
                record.tensors = {k: np.full_like(v, np.nan) for k, v in record.tensors.items()}
            elif hasattr(record, name):
                setattr(record, name, value)
        return codec.encode(record)

    return change


class Sabotaged:
    """The ClientApp, a quarter of whose clients answer with something else."""

    def __init__(self, change) -> None:
        self.change = change

    def __call__(self, message, context):
        reply = app(message, context)
        kind = message.metadata.message_type
        if kind in ("train", "query.describe") and context.node_config["partition-id"] % 4 == 0:
            return Message(self.change(reply), reply_to=message)
        return reply


@pytest.mark.parametrize("change", [garbage, _changed(poison=True)], ids=["garbage", "nan"])
def test_a_run_survives(small, tmp_path, change):
    from fcit import config as configuration

    overrides = [
        "federation.rounds=1",
        "federation.clients_per_round=8",
        "evaluation.samples=4",
        "federation.min_updates=1",
    ]
    config = configuration.load(small, overrides)
    run = RunDir.create(tmp_path / "out", "bad", configuration.dump(config), describe())
    serve(run.path, InlineGrid(Sabotaged(change), 50))
    events = list(run.read_events())
    clients = [c for e in events if e["event"] == "round" for pair in e["loss"] for c in [int(pair.split("/")[0])]]
    assert clients
    assert all(c % 4 for c in clients)
    assert any(e["event"] in ("rejected", "describe-failed") for e in events)
    scores = json.loads((run.path / "matrix.json").read_text())["scores"][-1]
    assert len(scores) == 2
    assert all(np.isfinite(list(scores.values())))
