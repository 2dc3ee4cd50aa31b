"""The exact split: smooth weighted round robin, as a cycle computed once per set of weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle as repeat
from math import gcd


def cycle(weights: Sequence[int]) -> tuple[int, ...]:
    """The picks of one cycle, as indexes into `weights`, `sum(weights) / gcd(weights)` of them.

    Each step adds every weight to its own counter, takes the largest (the first of equals) and lowers it by
    the sum. The counters are back at zero after one cycle, so repeating it is the endless sequence, and any
    window of a cycle's length holds each index exactly in proportion. Weight 0 never occurs.
    """
    total = sum(weights)
    if total <= 0 or min(weights) < 0:
        raise ValueError(f"weights {list(weights)} give no split")
    current = [0] * len(weights)
    picks = []
    for _ in range(total // gcd(*weights)):
        current = [have + weight for have, weight in zip(current, weights, strict=True)]
        # A weight of 0 stays at 0 and could tie with a counter that is 0 or below.
        best = max((i for i, w in enumerate(weights) if w), key=lambda i: (current[i], -i))
        current[best] -= total
        picks.append(best)
    return tuple(picks)


class Split:
    """The running split of one endpoint. `assigned` counts the picks per index since it began."""

    __slots__ = ("_picks", "assigned")

    def __init__(self, weights: Sequence[int]) -> None:
        self._picks = repeat(cycle(weights))
        self.assigned = [0] * len(weights)

    def pick(self) -> int:
        """The next index."""
        index = next(self._picks)
        self.assigned[index] += 1
        return index
