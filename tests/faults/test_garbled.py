"""Replies that Flower's own grid cannot put together, from a site that writes its objects by hand."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid.http_grid import HttpGrid

from fcit.config import Federation
from fcit.federation import codec
from fcit.federation.engines import private
from fcit.federation.messages import DescribeOrder, Description
from server.courier import Courier

Objects = dict[str, bytes]


class SuperLink:
    """The Runtime API of one site's SuperLink, with whatever objects the site has uploaded."""

    def __init__(self) -> None:
        self.replies: dict[str, tuple] = {}
        self.objects: Objects = {}

    def GetNodes(self, request):
        return SimpleNamespace(nodes=[private.NodeInfo(node_id=7, name="0", last_activated_at="then")])

    def PullMessages(self, request):
        found = [self.replies.pop(order) for order in request.message_ids if order in self.replies]
        return SimpleNamespace(
            messages_list=[message for message, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def PullObject(self, request):
        content = self.objects.get(request.object_id)
        return SimpleNamespace(object_found=content is not None, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request): ...


class Garbled(HttpGrid):
    """Flower's grid, on a site whose reply is honest but for what ``garble`` does to its objects."""

    def __init__(self, garble: Callable[[Message, Objects], None]) -> None:
        super().__init__(token="x")
        self.garble, self.superlink = garble, SuperLink()
        self._client, self._run = self.superlink, private.Run.create_empty(run_id=1)

    def push_messages(self, messages):
        for order in messages:
            private.number(order, order.object_id)
            record = Description(client=0, shard="s", count=3, tensors={"total": np.ones(2)})
            reply = Message(codec.encode(record), reply_to=order)
            private.number(reply, reply.object_id)
            objects = {name: nested.deflate() for name, nested in get_all_nested_objects(reply).items()}
            tree = get_object_tree(reply)
            self.superlink.replies[order.object_id] = message_to_proto(remove_content_from_message(reply)), tree
            self.garble(reply, objects)
            self.superlink.objects |= objects
        return [order.object_id for order in messages]


def nothing(reply: Message, objects: Objects) -> None:
    """An honest reply."""


def no_message(reply: Message, objects: Objects) -> None:
    objects[reply.object_id] = objects[reply.content.object_id]


def no_object(reply: Message, objects: Objects) -> None:
    objects[reply.object_id] = b"garbage"


def garbled_body(reply: Message, objects: Objects) -> None:
    objects[reply.object_id] = objects[reply.object_id][:-8] + b"\xff" * 8


def no_json(reply: Message, objects: Objects) -> None:
    objects[reply.content.object_id] = objects[reply.content.object_id][:-1] + b"\xff"


def no_record(reply: Message, objects: Objects) -> None:
    (array,) = reply.content["tensors"].values()
    objects[reply.content["head"].object_id] = objects[array.object_id]


def missing_object(reply: Message, objects: Objects) -> None:
    del objects[reply.content["tensors"].object_id]


def reply_of(garble: Callable[[Message, Objects], None]) -> Message:
    private.claim()
    settings = Federation.model_validate({"clients": 1, "timeout": 900.0})
    courier = Courier(Garbled(garble), settings, 1, {"up": 0, "down": 0, "orders": 0})
    courier.connect()
    courier.seat({0: 7})
    order = DescribeOrder(config="", client=0, shard="s", tasks=[0])
    (reply,) = courier.send("query.describe", [(7, order)], "describe")
    return reply


def test_an_honest_reply_is_read():
    assert codec.decode(reply_of(nothing).content, Description).count == 3


@pytest.mark.parametrize("garble", [no_message, no_object, garbled_body, no_json, no_record])
def test_a_reply_that_cannot_be_put_together_is_its_sites_error(garble):
    reply = reply_of(garble)
    assert reply.has_error()
    assert reply.metadata.src_node_id == 7
    assert reply.error.reason.startswith("its reply cannot be read: ")


def test_a_reply_whose_upload_was_given_up_is_its_sites_error():
    reply = reply_of(missing_object)
    assert reply.has_error()
    assert reply.metadata.src_node_id == 7
    assert "objects are unavailable" in reply.error.reason
