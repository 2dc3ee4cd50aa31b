"""Handles and sizes as people are shown them."""

from __future__ import annotations

import pytest

from servestate.planner.handles import shown
from servestate.planner.sizes import sized

ID = "d994ef85a1b2" + "0" * 52


@pytest.mark.parametrize(
    ("handle", "text"),
    [
        (f"gpu1/{ID}/2026-11-22T01:29:45.533962833Z", "gpu1/d994ef85a1b2"),
        (f"local/{ID}/created", "local/d994ef85a1b2"),
        ("21.55.3f9a", "21.55.3f9a"),
        ("", ""),
    ],
)
def test_a_container_is_shown_by_the_digits_that_docker_shows(handle: str, text: str) -> None:
    assert shown(handle) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(1 << 30, "1 GiB"), (3 << 29, "1.5 GiB"), (512 << 20, "512 MiB"), (1000, "1000 B"), (0, "0 B")],
)
def test_sizes_have_the_unit_in_which_they_are_short(size: int, text: str) -> None:
    assert sized(size) == text
