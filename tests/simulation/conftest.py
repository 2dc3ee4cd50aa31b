"""Every test of this folder works on sites in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.planner.rig import seams


@pytest.fixture(autouse=True)
def _seams() -> Iterator[None]:
    with seams():
        yield
