"""Checks of whole data sets: before a run, and for `fcit data check`."""
