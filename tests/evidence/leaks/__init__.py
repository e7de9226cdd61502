"""What can be read back from what leaves a site: shared parts of ``tests.evidence.membership`` and ``.inversion``."""
