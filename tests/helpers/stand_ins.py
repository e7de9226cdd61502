"""A site's supervisor that looks after shell commands, as a process of its own."""

import os

from clients.site import supervisor


def start(file: str, supernode: str, executor: str) -> int:
    """Start the site of this SITE.yaml with commands in place of its two processes; soon again after their ends.

    The variable QUIET says after how many seconds without a sign of life the SuperNode is started again.
    """
    supervisor.supernode_command = lambda site: ["sh", "-c", supernode]
    supervisor.executor_command = lambda path: ["sh", "-c", executor]
    supervisor._SUPERNODE_WAIT = supervisor._EXECUTOR_WAIT = 0.3, 0.3
    supervisor._QUIET_SUPERNODE = float(os.environ.get("QUIET", 60))
    return supervisor.start(file)
