"""Options of the whole suite."""

from __future__ import annotations

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=1, help="replays a randomised test: it prints its seed")


@pytest.fixture
def seeded(request: pytest.FixtureRequest) -> random.Random:
    """Pseudo-random numbers from --seed, the same for the same test; printed, for a replay."""
    seed = f"{request.config.getoption('--seed')} {request.node.name}"
    print(f"seed: {seed}")
    return random.Random(seed)
