"""Tests of privacy's accounts, where the package for them is installed."""

import importlib.util

import pytest

#: It is looked for and not imported: every process collects all tests, and scipy.signal takes seconds.
NEEDS_ACCOUNTING = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="needs dp-accounting (pip install 'fcit[privacy]')"
)
