"""What is known of a run from outside, in the form in which it is judged.

The router tells nobody when it admitted a call: that was some time from when the client sent it to when the
client had its answer. What is said of spans of time therefore holds wherever in there it was. Clients,
upstreams and router have one monotonic clock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from tests.load.limits.callers import Bound, Setup
from tests.load.limits.crowd import Call

SPAN_S = 60.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was done to the router. `anew`: what it had counted is gone from then on. `costly`: it
    may cost calls."""

    kind: str
    start: float
    end: float
    anew: bool = False
    costly: bool = False


@dataclass(frozen=True, slots=True)
class Life:
    """A time in which the same counts hold. One begins at some time of the fault that ends the one before:
    whatever overlaps with that may be of either."""

    start: tuple[float, float]
    end: tuple[float, float]

    def surely(self, call: Call) -> bool:
        """Whether the call was made in it."""
        return self.start[1] <= call.began and call.ended <= self.end[0]

    def perhaps(self, call: Call) -> bool:
        """Whether the call may have been made in it."""
        return self.start[0] <= call.ended and call.began <= self.end[1]

    @property
    def seconds(self) -> float:
        """How long it certainly is."""
        return self.end[0] - self.start[1]


@dataclass(frozen=True)
class Evidence:
    """A run from `began` to `ended`. `executed` are the numbers of calls, each as often as an upstream has
    executed it; `ahead` and `behind` how many lines the router logged at a time that is far off the real one,
    None where its clock was not stepped."""

    setup: Setup
    workers: int
    began: float
    ended: float
    calls: Sequence[Call]
    executed: Counter[int]
    faults: Sequence[Fault] = ()
    stepped: tuple[int, int] | None = None

    @property
    def lives(self) -> list[Life]:
        """From one loss of the counts to the next."""
        breaks = [(fault.start, fault.end) for fault in self.faults if fault.anew]
        edges = [(self.began, self.began), *breaks, (self.ended, self.ended)]
        return [Life(start, end) for start, end in pairwise(edges)]

    def ran(self, call: Call) -> bool:
        """Whether it was certainly admitted."""
        return call.number in self.executed

    def may_count(self, call: Call) -> bool:
        """Whether it may have been: of a call that got no answer nobody knows."""
        return self.ran(call) or (call.sent and call.status not in (429, 503))

    def of(self, bound: Bound) -> list[Call]:
        """The calls that the bound is for."""
        return [call for call in self.calls if call.caller in bound.callers]


@dataclass(frozen=True)
class Spans:
    """Times in each of which something happened, once. No one is as long as `SPAN_S`."""

    times: list[tuple[float, float]]
    starts: list[float] = field(init=False)
    ends: list[float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", sorted(start for start, _ in self.times))
        object.__setattr__(self, "ends", sorted(end for _, end in self.times))

    @classmethod
    def of(cls, calls: Iterable[Call]) -> Spans:
        """When calls were admitted."""
        return cls([(call.began, call.ended) for call in calls])

    def shortest(self, count: int) -> float:
        """The shortest time in which so many certainly happened."""
        pairs = zip(self.starts, self.ends[count - 1 :], strict=False)
        return min((end - start for start, end in pairs), default=inf)

    def most(self) -> int:
        """How many certainly happened in less than `SPAN_S`, at most."""
        return max(
            (bisect_left(self.ends, start + SPAN_S) - i for i, start in enumerate(self.starts)), default=0
        )

    def surely(self, after: float, until: float) -> int:
        """At least how many of them began after one time and ended by the other."""
        return max(bisect_right(self.ends, until) - bisect_right(self.starts, after), 0)

    def perhaps(self, after: float, until: float) -> int:
        """At most how many happened between two times."""
        return max(bisect_right(self.starts, until) - bisect_left(self.ends, after), 0)

    def within(self, after: float, before: float) -> Iterator[tuple[float, float]]:
        """Those that began after one time and before another."""
        if self.starts and bisect_right(self.starts, after) < bisect_left(self.starts, before):
            yield from (span for span in self.times if after < span[0] < before)
