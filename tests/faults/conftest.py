"""The same small configuration and command line as in the end-to-end tests."""

from tests.e2e.conftest import fcit, small

__all__ = ["fcit", "small"]
