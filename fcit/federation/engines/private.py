"""The one place that touches Flower's private parts; a test pins what is relied on.

Outside Flower's own processes nobody has told Flower which task and node this is, and without that
no ``Message`` can be built (flwr 1.41 and 1.42).
"""

from __future__ import annotations

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fcit.federation.nodes import SERVER_NODE

__all__ = ["NodeInfo", "Run", "claim", "number"]


def claim() -> None:
    """Declare this process to be the server of run 1, as Flower's own runner does."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = 1
    TaskIdentity.node_id = SERVER_NODE


def number(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would have given it."""
    message.metadata.__dict__["_message_id"] = message_id
