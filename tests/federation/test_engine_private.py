from flwr.app import ConfigRecord, Message, RecordDict

from fcit.federation.engines import private


def test_a_message_can_be_built_and_numbered():
    private.claim()
    message = Message(RecordDict({"a": ConfigRecord({"x": 1})}), dst_node_id=1003, message_type="train", group_id="0")
    assert (message.metadata.src_node_id, message.metadata.dst_node_id) == (private.SERVER_NODE, 1003)
    private.number(message, "message-7")
    assert message.metadata.message_id == "message-7"


def test_a_reply_names_the_message_it_answers():
    private.claim()
    message = Message(RecordDict(), dst_node_id=1003, message_type="train", group_id="0")
    private.number(message, "message-8")
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "message-8"
    assert reply.metadata.src_node_id == 1003
