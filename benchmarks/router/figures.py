"""What was measured: values of each figure of each target, by round and by how far apart the cores were."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable

NAN = float("nan")
NEAR, FAR, UNKNOWN = "near", "far", ""
"""Whether the two cores shared a cache. A virtual machine's cores are moved about by its host, and between
cores that share none the kernel's part of a request costs twice as much, for all targets alike: ratios of
the one and of the other must not be mixed."""


class Figures:
    """`now` is the round and the distance that values belong to from here on."""

    def __init__(self) -> None:
        self._values: defaultdict[tuple[str, str], dict[tuple[int, str], float]] = defaultdict(dict)
        self.now = (0, UNKNOWN)
        self.repeated = 0
        """Measurements that were taken again: something else used the machine, or its cores were moved."""
        self.disturbed = 0
        """Those that were kept although it was so each time."""

    def add(self, target: str, figure: str, value: float) -> None:
        """A value of now; NaN where the target failed."""
        self._values[target, figure][self.now] = value

    def last(self, target: str, figure: str) -> float:
        """The latest value."""
        return list(self._values[target, figure].values())[-1]

    def median(self, target: str, figure: str, distance: str | None = None) -> float:
        """Of the values at that distance, or of all; NaN if there is none but failures."""
        found = self._values.get((target, figure), {})
        return _median(value for (_, at), value in found.items() if distance in (None, at))

    def ratio(self, above: str, below: str, figure: str, distance: str | None = None) -> float:
        """The median of the ratios of values of the same round and distance: these were taken one right after
        the other, and the speed of a shared machine changes from one minute to the next by more than the
        two differ."""
        over, under = self._values.get((above, figure), {}), self._values.get((below, figure), {})
        both = [now for now in over if now in under and distance in (None, now[1])]
        return _median(over[now] / under[now] for now in both)


def _median(values: Iterable[float]) -> float:
    good = [value for value in values if not math.isnan(value)]
    return statistics.median(good) if good else NAN
