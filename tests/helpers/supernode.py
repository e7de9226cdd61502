"""The Runtime API of a SuperNode in this process, with orders put into it by hand."""

import hashlib
import threading

import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from fcit.federation.engines import private
from tests.helpers.superlink import free_port
from tests.helpers.waiting import wait

NODE = 7


class SuperNode:
    """Serves the Runtime API on loopback in a ``with`` block."""

    def __init__(self, secret: bytes) -> None:
        factory = NodeStateFactory(ObjectStoreFactory())
        self.state, self.port = factory.state(), free_port()
        self.state.set_node_id(NODE)
        config = uvicorn.Config(
            create_app(factory, secret),
            host="127.0.0.1",
            port=self.port,
            log_level="error",
            lifespan="off",
            log_config=None,
        )  # its own would close all handlers of the process, and absl's closes what it writes to: pytest's file
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        wait(lambda: self.server.started, pause=0.02)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()

    def order(self, content: RecordDict, kind: str, app: bytes, declared: str = "", task=TaskType.CLIENT_APP) -> int:
        """Put in an order of a run whose app is ``app``; returns the run's id."""
        private.claim()
        number = len(self.state.run_store) + 1
        run = Run.create_empty(number)
        run.fab_hash, run.series_id = declared or hashlib.sha256(app).hexdigest(), number
        self.state.store_run(run)
        self.state.fab_store[run.fab_hash] = Fab(run.fab_hash, app, {})  # store_fab would check the hash itself
        evil = {"client-memory": "/nowhere", "config": "/nowhere"}
        self.state.set_run_series_context(number, Context(number, NODE, {}, RecordDict(), evil, number))
        message = Message(content, dst_node_id=NODE, message_type=kind)
        message.metadata.__dict__.update(_run_id=number)
        _insert_message(message, self.state, self.state.object_store)
        assert self.state.create_task(task, number, run.fab_hash) is not None
        return number

    def reply(self, run: int) -> Message:
        return wait(lambda: self.state.get_messages_legacy(run_ids=[run], is_reply=True), pause=0.02)[0]
