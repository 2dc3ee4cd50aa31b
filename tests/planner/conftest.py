"""Every test of this folder works on sites in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.planner.rig import seams

# A shared machine is slow now and then, and what is found must not depend on what an earlier run left.
settings.register_profile("shared", deadline=None, database=None)
settings.load_profile("shared")


@pytest.fixture(autouse=True)
def _seams() -> Iterator[None]:
    with seams():
        yield
