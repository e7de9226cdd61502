"""Numbers that Flower (1.41, 1.42) gives a meaning, and ours for virtual clients."""

#: The node of Flower's own replies: the SuperLink.
SERVER_NODE = 1
#: Error code of a fault that Flower has no other for.
UNKNOWN = 0
#: Error code of an exception in the ClientApp.
CLIENT_RAISED = 2
#: Error code of a message that the SuperLink does not have, or not any more.
MESSAGE_UNAVAILABLE = 3
#: Error codes of an order that was lost with the process that had it: the node's, or the one that does its orders.
NODE_UNAVAILABLE, CLIENT_CRASHED = 5, 8
#: Node of the first virtual client.
FIRST_NODE = 1000
