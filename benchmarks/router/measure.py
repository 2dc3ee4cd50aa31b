"""The measurements, one after the other for all targets, so that those of one kind lie close together."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.router.figures import FAR, NAN, NEAR, UNKNOWN, Figures
from benchmarks.router.lineup import Bench, Target
from benchmarks.router.load import Measured
from benchmarks.router.peers import BARE
from benchmarks.router.processes import busy_s

DIRECT = "direct"
SMALL, LARGE = 1024, 32768
STREAMS, CHUNKS_PER_S, OPEN_STREAMS = 200, 50, 1000
RUNGS = (10, 25, 50, 100, 200, 300, 400, 600, 800, 1000, 1250, 1500, 1750, 2000, 2500, 3000, 3500, 4000)
DELAY_BOUND_US = 10_000
_SLOW_PER_S, _FEW_STREAMS = 2000, 20
"""Below so many requests a second a target gets few streams: it would take minutes to begin more."""
_FOREIGN = 0.06
_FAR_NS = 250
"""Cores that share a cache were 80 to 150 ns apart, others 350 to 430 (AMD EPYC of the year 2024)."""
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Effort:
    """How long, how often, and whether measurements in which other processes took more than 6 % of a core, or
    the cores were moved, are taken again."""

    rounds: int
    seconds: float
    careful: bool = True


class Measurements:
    """Takes figures from what runs."""

    def __init__(self, on: Bench, effort: Effort, say: Callable[[str], None]) -> None:
        self._on = on
        self.effort = effort
        self._say = say
        self.figures = Figures()
        self.why: dict[str, str] = {}
        """What a target last said when it failed."""

    def rounds(self, kinds: Iterable[str]) -> None:
        """All that is measured again and again."""
        of_kind = {
            "small": lambda target: self._requests(target, "small", SMALL),
            "large": lambda target: self._requests(target, "large", LARGE),
            "latency": self._latency,
            "half": self._half,
            "chunk": self._chunk,
        }
        for i in range(self.effort.rounds):
            for kind in kinds:
                self.figures.now = (i, UNKNOWN)
                self._say(f"round {i + 1} of {self.effort.rounds}: {kind}")
                if kind == "latency":
                    self._direct_latency()
                for target in self._on.targets:
                    of_kind[kind](target)

    # A closed loop, for the cost.

    def _requests(self, target: Target, label: str, size: int) -> None:
        request = target.request(size)
        measured = self._careful(
            target,
            lambda: self._on.client.requests(target.port, request, self.effort.seconds, target.process),
        )
        good = self._is_good(target, measured)
        self.figures.add(target.name, f"{label} per second", measured.per_second if good else NAN)
        self.figures.add(target.name, f"{label} cpu", measured.cpu_us if good else NAN)

    # Time that the target adds.

    def _direct_latency(self) -> None:
        request = self._on.direct(SMALL)
        alone = self._on.client.requests(self._on.ports[0], request, self.effort.seconds, connections=1)
        self.figures.add(DIRECT, "p50", alone.p50_us)

    def _latency(self, target: Target) -> None:
        request = target.request(SMALL)
        seconds = self.effort.seconds
        measured = self._careful(
            target,
            lambda: self._on.client.requests(target.port, request, seconds, target.process, connections=1),
        )
        good = self._is_good(target, measured)
        self.figures.add(
            target.name, "added p50", measured.p50_us - self.figures.last(DIRECT, "p50") if good else NAN
        )

    def _half(self, target: Target) -> None:
        """An open loop at half of what the closed one reached, beside the same load without a target."""
        rate = self.figures.median(target.name, "small per second") / 2
        if not rate >= 1:
            self.figures.add(target.name, "p99", NAN)
            return
        direct = self._on.direct(SMALL)
        alone = self._on.client.requests(self._on.ports[0], direct, self.effort.seconds, rate=rate)
        request = target.request(SMALL)
        measured = self._careful(
            target,
            lambda: self._on.client.requests(
                target.port, request, self.effort.seconds, target.process, rate=rate
            ),
        )
        self.figures.add(target.name, "p99", measured.p99_us if self._is_good(target, measured) else NAN)
        self.figures.add(target.name, "p99 direct", alone.p99_us)

    # Streams.

    def _chunk(self, target: Target) -> None:
        if target.name == BARE:
            return  # knows no streams
        request = target.request(SMALL, stream=True)
        count = self._streams_for(target)
        measured = self._careful(
            target,
            lambda: self._on.client.streams(target.port, request, self.effort.seconds, target.process, count),
        )
        good = self._is_good(target, measured) and not measured.ended
        self.figures.add(target.name, "chunk cpu", measured.cpu_us if good else NAN)
        self.figures.add(target.name, "lost", measured.lost)

    def _streams_for(self, target: Target) -> int:
        slow = self.figures.median(target.name, "small per second") < _SLOW_PER_S
        return _FEW_STREAMS if slow else STREAMS

    def ladder(self) -> None:
        """How many paced streams each target relays at a time without losing a chunk, nine of ten chunks less
        than 10 ms later than without it."""
        for target in self._on.targets:
            cost = self.figures.median(target.name, "chunk cpu")
            if not cost > 0:
                continue
            most = 1.5e6 / cost / CHUNKS_PER_S  # more does not fit on a core
            rungs = [count for count in RUNGS if count <= most] or [RUNGS[0]]
            self._say(f"ladder: {target.name}, up to {rungs[-1]}")
            failed = bisect_left(rungs, True, key=lambda count: not self._carries(target, count))
            self.figures.add(target.name, "streams", rungs[failed - 1] if failed else 0)
            if failed == len(rungs) and rungs[-1] == RUNGS[-1]:
                self.figures.add(target.name, "top of the ladder", 1)

    def _carries(self, target: Target, count: int) -> bool:
        """Whether it does so with `count` streams; one failure may be the machine's."""
        return any(self._carries_once(target, count) for _ in range(2))

    def _carries_once(self, target: Target, count: int) -> bool:
        client, seconds = self._on.client, max(self.effort.seconds, 1.0)
        direct = client.streams(self._on.ports[0], self._on.direct(SMALL, stream=True), seconds, None, count)
        request = target.request(SMALL, stream=True)
        measured = client.streams(target.port, request, seconds, target.process, count)
        whole = not (measured.lost or measured.ended or measured.failed)
        return whole and 0 <= measured.p90_us < direct.p90_us + DELAY_BOUND_US

    def memory(self) -> None:
        """Resident memory while a thousand streams are open, a chunk a second each."""
        for target in self._on.targets:
            self.figures.add(target.name, "rss at start", target.rss_mib)
            if target.name == BARE or self._streams_for(target) < STREAMS:
                continue  # knows no streams, or takes minutes to begin so many
            self._say(f"memory: {target.name}")
            seen: list[float] = []
            request = target.request(SMALL, stream=True, words="[slow]")
            look = lambda: seen.append(target.process.rss_mib())  # noqa: B023, E731
            measured = self._on.client.streams(
                target.port, request, max(self.effort.seconds, 2.0), target.process, OPEN_STREAMS, look
            )
            good = self._is_good(target, measured) and not measured.ended
            self.figures.add(target.name, "rss", max(seen) if good else NAN)

    # How sure a value is.

    def _careful(self, target: Target, measure: Callable[[], Measured]) -> Measured:
        """The measurement, taken again while other processes took too much of the machine or its cores were
        moved."""
        for tried in range(_TRIES):
            distance = self._distance()
            before, began = self._foreign_s(target), time.monotonic()
            measured = measure()
            share = (self._foreign_s(target) - before) / (time.monotonic() - began)
            moved = self._distance() != distance
            self.figures.now = (self.figures.now[0], UNKNOWN if moved else distance)
            if not self.effort.careful or (share <= _FOREIGN and not moved):
                return measured
            if tried < _TRIES - 1:
                self.figures.repeated += 1
        self.figures.disturbed += 1
        return measured

    def _distance(self) -> str:
        return FAR if self._on.distance_ns() > _FAR_NS else NEAR

    def _foreign_s(self, target: Target) -> float:
        """Processor time of everything but the target, the engines, the client and ourselves."""
        ours = os.times()
        known = target.process.cpu_s() + sum(engine.cpu_s() for engine in self._on.engines)
        return busy_s() - known - sum(ours[:4])

    def _is_good(self, target: Target, measured: Measured) -> bool:
        """Whether there were answers, and none of them an error."""
        if measured.count and not measured.failed:
            return True
        self.why[target.name] = measured.why or "no answer"
        return False
