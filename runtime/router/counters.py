"""What the router counts: by endpoint and entity, for reports and metrics."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS_MS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 120000, 300000, 600000)
"""Upper bounds, inclusive, of all but the last bucket; those of the serving API's `request_latency_ms`."""
_BOUNDS_S = tuple(bound / 1000 for bound in BOUNDS_MS)  # floats: compared with integers they cost double


class Counters:
    """What happened to one entity since the router started.

    `statuses` counts whole answers by the hundreds of their status; one that broke off counts as a 5xx
    whatever its status line said, and one that the client did not wait for not at all. `latencies` are their
    numbers by `BOUNDS_MS`, each in one bucket only, and `latency_s` the sum in seconds: from the whole
    request to the whole answer, by the loop's clock, which counts milliseconds.
    """

    __slots__ = ("direct", "errors", "inflight", "latencies", "latency_s", "requests", "statuses")

    def __init__(self) -> None:
        self.requests = self.errors = self.direct = self.inflight = 0
        self.statuses = [0] * 6
        self.latencies = [0] * (len(BOUNDS_MS) + 1)
        self.latency_s = 0.0

    def answered(self, hundreds: int, seconds: float) -> None:
        """Count an answer by the hundreds of its status, so long after its request."""
        self.statuses[hundreds] += 1
        self.latencies[bisect_left(_BOUNDS_S, seconds)] += 1
        self.latency_s += seconds
