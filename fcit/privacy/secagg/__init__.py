"""Secure aggregation: the server learns the sum of a group's updates and none of them.

SecAgg (Bonawitz et al., 2017, CCS, doi 10.1145/3133956.3133982, figure 4) on the graph of SecAgg+ (Bell et al., 2020,
CCS, doi 10.1145/3372297.3417885, algorithm 2). Pure functions of bytes and arrays; who sends what to whom is decided
in ``server`` and ``clients``.

Not covered: an active server. There is no public-key infrastructure between clients, so their keys are those that the
server passes on, and the paper's round of signatures (ConsistencyCheck) is left out. See ``docs/privacy.md``.
"""
