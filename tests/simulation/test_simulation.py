"""T22: histories drawn from seeds. A failure prints `--seed N`; that option replays the history first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from servestate.runtime.store.sqlite import SqliteStore
from tests.planner.rig import seams
from tests.simulation.simulation import Simulation

ROOT = Path(__file__).parents[2]


@pytest.fixture
def first(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--seed"))


def test_sixty_histories(first: int) -> None:
    """And the simulator really does what it is there for: everything that can happen has happened."""
    seen: Counter[str] = Counter()
    for seed in range(first, first + 60):
        simulation = Simulation(seed)
        simulation.run()
        seen += simulation.seen
    for what in ("applied", "killed", "failed", "interrupted", "stale", "refused", "LostLock", "StoreError"):
        assert seen[what] >= 20, seen


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_a_thousand_histories(first: int, block: int) -> None:
    for seed in range(first + 100 * block, first + 100 * (block + 1)):
        Simulation(seed).run()


def test_a_seed_is_a_history(first: int) -> None:
    hashes = [Simulation(seed).run() for seed in range(first, first + 5)]
    assert hashes == [Simulation(seed).run() for seed in range(first, first + 5)]
    assert len(set(hashes)) == 5


def test_a_seed_is_the_same_history_in_another_process(first: int) -> None:
    """Nothing depends on the order of sets, which differs from process to process."""
    with seams():
        here = Simulation(first).run()
    code = (
        "from tests.planner.rig import seams\n"
        "from tests.simulation.simulation import Simulation\n"
        f"with seams(): print(Simulation({first}).run())"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        argv = [sys.executable, "-c", code]
        there = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert there.stdout.strip() == here


def on_disk(path: Path, seed: int) -> None:
    store = SqliteStore(path / f"{seed}.db", is_gone=lambda owner: False)
    try:
        Simulation(seed, store).run()
    finally:
        store.close()


def test_histories_on_the_real_store(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 4):
        on_disk(tmp_path, seed)


@pytest.mark.slow
def test_more_histories_on_the_real_store(first: int, tmp_path: Path) -> None:
    for seed in range(first + 4, first + 30):
        on_disk(tmp_path, seed)
