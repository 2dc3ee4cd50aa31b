"""A site of its own for every test; nothing that it started outlives the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.cli.harness", "tests.cli.sweep", "tests.cli.snapshots")

from tests.cli.harness import Site  # noqa: E402  # after the line above, or asserts there would say nothing


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    try:
        yield made
    finally:
        made.clean_up()
