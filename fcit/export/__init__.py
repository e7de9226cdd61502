"""Adapters out: what a run learnt, in the form that others can load."""
