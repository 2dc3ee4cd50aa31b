"""Load with faults: no request is lost, doubled, swapped or cut short unnoticed, and all books agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load.faults import KINDS
from tests.load.judgement import findings
from tests.load.run import run


@pytest.mark.slow
def test_a_minute_of_faults(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--seed")
    print(f"seed: {seed}")
    found = run(tmp_path / "site", seconds=60, rounds=1, seed=seed)
    assert findings(found.evidence) == []
    assert found.evidence.asked >= 30_000
    assert {fault.kind for fault in found.evidence.happened} == set(KINDS)
