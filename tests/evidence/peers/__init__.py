"""Whole runs of fcit beside plain programs that do the same work: ``python -m tests.evidence.peers``.

- :mod:`~tests.evidence.peers.bare`: a loop in one process.
- :mod:`~tests.evidence.peers.pool`: the same work on forked processes.
- :mod:`~tests.evidence.peers.flowertune`: a Flower app that loads the model for every message.

They read a plan (:mod:`~tests.evidence.peers.plan`) and import nothing of fcit.
"""
