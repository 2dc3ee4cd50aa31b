"""What a limit allows, counted afterwards."""

from __future__ import annotations

from collections.abc import Sequence


def most_in_a_span(times: Sequence[float]) -> int:
    """How many of the times lie within less than 60 s, at most."""
    most = first = 0
    for last, now in enumerate(times):
        while now - times[first] >= 60.0:
            first += 1
        most = max(most, last - first + 1)
    return most
