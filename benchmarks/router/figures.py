"""What was measured, by target and figure, a value a round."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict

NAN = float("nan")


class Figures:
    """Values of each figure of each target, in the order of the rounds."""

    def __init__(self) -> None:
        self._values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.repeated = 0
        """Measurements that were taken again because something else used the machine."""
        self.disturbed = 0
        """Those that were kept although it did each time."""

    def add(self, target: str, figure: str, value: float) -> None:
        """One round's value; NaN where the target failed."""
        self._values[target, figure].append(value)

    def last(self, target: str, figure: str) -> float:
        """The latest round's."""
        return self._values[target, figure][-1]

    def median(self, target: str, figure: str) -> float:
        """Of all rounds in which the target did not fail; NaN if there is none."""
        good = [value for value in self._values.get((target, figure), ()) if not math.isnan(value)]
        return statistics.median(good) if good else NAN

    def ratio(self, above: str, below: str, figure: str) -> float:
        """The median of the ratios of values of the same round: these were taken one right after the other,
        and the speed of a shared machine changes from one minute to the next by more than the two differ."""
        pairs = zip(
            self._values.get((above, figure), ()), self._values.get((below, figure), ()), strict=False
        )
        ratios = [a / b for a, b in pairs if not math.isnan(a / b)] if above != below else [1.0]
        return statistics.median(ratios) if ratios else NAN
