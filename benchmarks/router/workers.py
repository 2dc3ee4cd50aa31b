"""What a second worker costs, as far as two cores can tell.

Two workers at work on cores of their own, with the engines and the client on further ones, need four cores.
On two, what is measured is processor time: of one worker, of two that share its core, and of two on both
cores beside the load. If a request costs two workers on two cores no more than it costs one, nothing that
they share slows them, and twice the processor does twice the requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.router.figures import Figures
from benchmarks.router.lineup import bench
from benchmarks.router.measure import Effort, Measurements
from benchmarks.router.peers.servestate import Servestate
from benchmarks.router.processes import LOAD_CORE, TARGET_CORE


@dataclass(frozen=True, slots=True)
class Workers:
    """CPU µs for a request of one worker, of two on one core, of two on both; and how many times the requests
    of one the last could answer, if their processors did nothing else."""

    one: float
    together: float
    apart: float
    speed_up: float

    def text(self) -> str:
        """For the report."""
        return (
            f"CPU µs for a request of 1 KB: one worker {self.one:.1f}, two that share its core "
            f"{self.together:.1f}, two on both cores, beside the load, {self.apart:.1f}. What two workers "
            "answer side by side was not measured: that takes four cores."
        )


def workers(effort: Effort, say: Callable[[str], None]) -> Workers | str:
    """The figures, or why there are none."""
    both = f"{TARGET_CORE},{LOAD_CORE}"
    line_up = (Servestate(), Servestate(workers=2), Servestate(workers=2, cores=both))
    with bench(line_up) as on:
        if on.absent:
            return "; ".join(f"{name}: {why}" for name, why in on.absent.items())
        measurements = Measurements(on, effort, say)
        measurements.rounds(("small",))
    return _of(measurements.figures, *(peer.name for peer in line_up))


def _of(figures: Figures, one: str, together: str, apart: str) -> Workers:
    cost = {name: figures.median(name, "small cpu") for name in (one, together, apart)}
    return Workers(cost[one], cost[together], cost[apart], 2 * figures.ratio(one, apart, "small cpu"))
