"""The site of the command line's tests."""

from tests.cli.conftest import site

__all__ = ["site"]
