"""Numbers that Flower (1.41, 1.42) gives a meaning, and ours for virtual clients."""

#: The node of Flower's own replies: the SuperLink.
SERVER_NODE = 1
#: Error code of a fault that Flower has no other for.
UNKNOWN = 0
#: Error code of an exception in the ClientApp.
CLIENT_RAISED = 2
#: Node of the first virtual client.
FIRST_NODE = 1000
