"""Load with faults: no request is lost, doubled, swapped or cut short unnoticed, and all books agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load.faults import KINDS, Planned, plan
from tests.load.judgement import findings
from tests.load.run import run


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """From --seed; printed, for a replay."""
    found: int = request.config.getoption("--seed")
    print(f"seed: {found}")
    return found


@pytest.mark.slow
def test_a_minute_of_faults(tmp_path: Path, seed: int) -> None:
    found = run(tmp_path / "site", 60, plan(60, 1, seed), seed)
    assert findings(found.evidence) == []
    assert found.evidence.asked >= 30_000
    assert {fault.kind for fault in found.evidence.happened} == set(KINDS)


@pytest.mark.slow
def test_a_hundred_reloads_and_three_upgrades_cost_nothing(tmp_path: Path, seed: int) -> None:
    kinds = ["split changed", "configuration applied"] * 50
    kinds[25:25] = kinds[55:55] = kinds[85:85] = ["router replaced"]
    faults = [Planned(5 + index, kind) for index, kind in enumerate(kinds)]
    found = run(tmp_path / "site", 110, faults, seed)
    assert findings(found.evidence) == []
    assert found.evidence.failures == []
    assert len(found.evidence.happened) == 103
