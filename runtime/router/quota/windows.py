"""What a limit counts: a window over the last 60 s, and a gauge of what is in flight. Arithmetic on the rows
of a `Memory`, between its `enter` and `leave`.

Every admission is kept until 60 s after it. Where a limit is high, those of half a second are kept as one,
with the time of the last: they are forgotten up to half a second late, never early.
"""

from __future__ import annotations

from typing import Final

from servestate.runtime.router.quota.memory import (
    BEGAN,
    COLUMNS,
    ENTRIES,
    EPOCH,
    EPOCH_AT,
    HEAD,
    MOST_ENTRIES,
    MOST_WORKERS,
    NEEDED,
    TAIL,
    TOTAL,
    Memory,
)

SPAN_S: Final = 60.0
_GRAIN_S: Final = 0.5
_ALL_S: Final = 3600.0
"""How much longer than a caller's the numbers that are not one caller's are kept, should room run out."""


class Window:
    """At most `most` calls or tokens in any 60 s, of those that `digest` stands for. `lasting` where that is
    not one caller of many. Times are of one clock that never goes back, on all workers."""

    # Every look at a shared number costs as much as ten lines, so what `left` has seen `add` need not.
    __slots__ = (
        "_at",
        "_digest",
        "_grain_s",
        "_head",
        "_integers",
        "_keep_s",
        "_rows",
        "_shared",
        "_tail",
        "_times",
        "_total",
        "most",
    )

    def __init__(self, memory: Memory, digest: int, most: int, *, lasting: bool) -> None:
        self.most = most
        self._shared = memory.fd is not None
        self._head = self._tail = self._total = 0
        self._integers = memory.integers
        self._times = memory.times
        self._rows = memory.windows
        self._digest = digest
        self._at = 0  # no row begins there
        self._keep_s = _ALL_S if lasting else SPAN_S
        self._grain_s = _GRAIN_S if most > MOST_ENTRIES else 0.0

    def left(self, now: float) -> int:
        """How much may still be admitted; below 0 where more was used than had been reserved. To be asked
        before all else at a time: it forgets what is over."""
        integers, at = self._integers, self._at
        if integers[at] != self._digest:
            at = self._at = self._rows.find(self._digest, now + self._keep_s)
        if self._shared and integers[at + EPOCH] != integers[EPOCH_AT]:
            self._add_up()
        tail, head = integers[at + TAIL], integers[at + HEAD]
        total = integers[at + TOTAL]
        while tail != head:
            entry = at + ENTRIES + 2 * (tail % MOST_ENTRIES)
            if self._times[entry] + SPAN_S > now:
                break
            tail += 1
            integers[at + TAIL] = tail
            total -= integers[entry + 1]
            integers[at + TOTAL] = total
        self._tail, self._head, self._total = tail, head, total
        return self.most - total

    def add(self, amount: int, now: float) -> int:
        """Count an admission; the number of its entry. To be called right after `left`."""
        integers, times, at = self._integers, self._times, self._at
        integers[at + TOTAL] = self._total + amount
        head = self._head
        kept = head - self._tail
        if kept and (kept == MOST_ENTRIES or now - times[at + BEGAN] < self._grain_s):
            head -= 1
            entry = at + ENTRIES + 2 * (head % MOST_ENTRIES)
            times[entry] = now
            integers[entry + 1] += amount
            if kept == MOST_ENTRIES:
                times[at + NEEDED] = now + self._keep_s
        else:
            entry = at + ENTRIES + 2 * (head % MOST_ENTRIES)
            times[entry] = times[at + BEGAN] = now
            integers[entry + 1] = amount
            integers[at + HEAD] = head + 1
            times[at + NEEDED] = now + self._grain_s + self._keep_s
        return head

    def settle(self, number: int, more: int) -> None:
        """What was added with entry `number` is so much more after all, or less. Nothing where that is
        over by now."""
        integers, at = self._integers, self._at
        if integers[at] != self._digest or number < integers[at + TAIL]:
            return
        entry = at + ENTRIES + 2 * (number % MOST_ENTRIES)
        if more > 0:
            integers[at + TOTAL] += more
            integers[entry + 1] += more
        else:
            integers[entry + 1] += more
            integers[at + TOTAL] += more

    def opens(self, amount: int, now: float) -> float:
        """When there will be room for `amount`; after the whole span where there never is."""
        integers, at = self._integers, self._at
        excess = integers[at + TOTAL] + amount - self.most
        for number in range(integers[at + TAIL], integers[at + HEAD]):
            entry = at + ENTRIES + 2 * (number % MOST_ENTRIES)
            excess -= integers[entry + 1]
            if excess <= 0:
                return self._times[entry] + SPAN_S
        return now + SPAN_S

    def over(self, now: float) -> float:
        """When all that is counted now is over."""
        integers, at = self._integers, self._at
        head = integers[at + HEAD]
        if head == integers[at + TAIL]:
            return now
        return self._times[at + ENTRIES + 2 * ((head - 1) % MOST_ENTRIES)] + SPAN_S

    def _add_up(self) -> None:
        """A worker died: it may have changed the sum and not the entries."""
        integers, at = self._integers, self._at
        epoch = integers[EPOCH_AT]
        kept = range(integers[at + TAIL], integers[at + HEAD])
        integers[at + TOTAL] = sum(integers[at + ENTRIES + 2 * (n % MOST_ENTRIES) + 1] for n in kept)
        integers[at + EPOCH] = epoch


class Gauge:
    """At most `most` requests in flight, over all workers."""

    __slots__ = ("_at", "_column", "_digest", "_integers", "_rows", "_times", "most")

    def __init__(self, memory: Memory, digest: int, most: int) -> None:
        self.most = most
        self._integers = memory.integers
        self._times = memory.times
        self._rows = memory.gauges
        self._digest = digest
        self._column = COLUMNS + memory.worker
        self._at = 0

    def full(self, now: float) -> bool:
        """Whether one more would be too many. To be asked before `enter`."""
        integers, at = self._integers, self._find(now)
        if integers[at + EPOCH] != integers[EPOCH_AT]:
            self._add_up()
        return integers[at + TOTAL] >= self.most

    def enter(self, now: float) -> None:
        """One more is in flight."""
        integers, at = self._integers, self._at
        integers[at + TOTAL] += 1
        integers[at + self._column] += 1
        self._times[at + NEEDED] = now + _ALL_S

    def leave(self, now: float) -> None:
        """One of this worker's is over."""
        integers, at = self._integers, self._find(now)
        if integers[at + self._column] > 0:  # else its row was forgotten
            integers[at + self._column] -= 1
            integers[at + TOTAL] -= 1

    def _find(self, now: float) -> int:
        if self._integers[self._at] != self._digest:
            self._at = self._rows.find(self._digest, now + _ALL_S)
        return self._at

    def _add_up(self) -> None:
        integers, at = self._integers, self._at
        epoch = integers[EPOCH_AT]
        columns = integers[at + COLUMNS : at + COLUMNS + MOST_WORKERS]
        integers[at + TOTAL] = sum(columns)
        integers[at + EPOCH] = epoch
