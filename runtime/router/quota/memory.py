"""Numbers that all workers of one router see and that outlive any of them: of splits and of limits.

With one worker they are its own, and nothing is locked. With several they lie in one piece of memory without
a name, which the parent makes and whose descriptor each worker is given. Whoever changes a limit's numbers
does so between `enter` and `leave`, under a lock that the kernel takes from a process that dies, at whatever
instruction. One that is stopped there keeps it; the others wait a little, then raise `Uncountable`: what
cannot be counted must not be admitted.

Every number is written by one store of eight bytes. Changes are ordered so that one that a kill cuts short
leaves too much counted, never too little; `forget_worker` has sums made anew from their parts.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable
from hashlib import blake2b
from itertools import count
from math import inf
from typing import Final

from servestate.runtime.router.quota.mutex import MUTEX_BYTES, Mutex

MOST_WORKERS: Final = 64
WINDOWS = 32_768
"""How many windows there are for all limits and callers; where they are used up, the one of a caller that
was admitted last longest ago, among those near the new one, is forgotten. Untouched ones take no memory."""
_GAUGES: Final = 4_096
_SEQUENCES: Final = 16_384

# The layout of all of it stands here, since workers of different versions may meet.
NEEDED: Final = 1
EPOCH: Final = 2
TOTAL: Final = 3
"""In each row, after its owner's digest: until when it is needed, the epoch in which its sum was last made
from its parts, and that sum."""
HEAD: Final = 4
TAIL: Final = 5
BEGAN: Final = 6
ENTRIES: Final = 8
"""In a window: the numbers of its next and its oldest entry, when the newest was begun, and the entries, each
a time and an amount. They are kept in turn and numbered on for ever."""
MOST_ENTRIES: Final = 124
COLUMNS: Final = 4
"""In a gauge: what each worker has in flight."""
_WINDOW_WIDTH: Final = ENTRIES + 2 * MOST_ENTRIES
_GAUGE_WIDTH: Final = COLUMNS + MOST_WORKERS
_SEQUENCE_WIDTH: Final = 4

_NUMBER: Final = 8  # bytes
_FORMAT_AT: Final = 0
EPOCH_AT: Final = 1
_LATEST_AT: Final = 2
_LIMITS_MUTEX_AT: Final = 8
_DRAWS_MUTEX_AT: Final = _LIMITS_MUTEX_AT + MUTEX_BYTES // _NUMBER
_KEY_AT: Final = _DRAWS_MUTEX_AT + MUTEX_BYTES // _NUMBER
_KEY_BYTES: Final = 16
_SEQUENCES_START: Final = 512
_GAUGES_START: Final = _SEQUENCES_START + _SEQUENCES * _SEQUENCE_WIDTH
_WINDOWS_START: Final = _GAUGES_START + _GAUGES * _GAUGE_WIDTH
_BYTES: Final = (_WINDOWS_START + WINDOWS * _WINDOW_WIDTH) * _NUMBER
_FORMAT: Final = 0x5E57A7E_01
"""Changes with the layout, so that numbers of another version are never taken for ours."""

_NOBODY: Final = 0
_FORMER: Final = -1
"""A row that changes hands: unlike one that nobody ever had, it does not end the search."""
_REACH = 64
"""How far from its first place a row may lie."""


class Rows:
    """A table of rows of `width` numbers, each found by a digest. Full, it forgets a row near the first place
    of the new one: that which stopped being needed first. `wipe` makes a row ready for another owner."""

    __slots__ = ("_count", "_integers", "_start", "_times", "_width", "_wipe")

    def __init__(
        self, memory: Memory, start: int, rows: int, width: int, wipe: Callable[[int], None]
    ) -> None:
        self._integers = memory.integers
        self._times = memory.times
        self._start = start
        self._count = rows
        self._width = width
        self._wipe = wipe

    def find(self, digest: int, needed: float) -> int:
        """Where the row of `digest` begins; one that is made is needed until then."""
        integers = self._integers
        least, place = inf, -1
        for step in range(_REACH):
            at = self._start + (digest + step) % self._count * self._width
            owner = integers[at]
            if owner == digest:
                return at
            if owner == _NOBODY:
                if least >= 0.0:
                    place = at
                break
            until = -1.0 if owner == _FORMER else self._times[at + NEEDED]
            if until < least:
                least, place = until, at
        integers[place] = _FORMER
        self._wipe(place)
        self._times[place + NEEDED] = needed
        integers[place] = digest
        return place

    def places(self) -> range:
        """Where the rows begin."""
        return range(self._start, self._start + self._count * self._width, self._width)


class Sequence:
    """The numbers 0, 1, 2, ... of one key, each handed out once over all workers. `next` raises Uncountable
    where several workers share it and one of them holds it up."""

    __slots__ = ("next",)

    next: Callable[[], int]

    def __init__(self, draw: Callable[[], int]) -> None:
        self.next = draw


class Memory:
    """The numbers as one worker sees them, whole (`integers`) or as seconds (`times`) at the same places.
    `worker` is its column. `fd` is the descriptor for `attach`, None where they are one worker's own."""

    def __init__(self, buffer: mmap.mmap, worker: int, fd: int | None) -> None:
        self.integers = memoryview(buffer).cast("q")
        self.times = memoryview(buffer).cast("d")
        self.worker = worker
        self.fd = fd
        self._buffer = buffer
        self._counts: dict[str, Sequence] = {}
        self._mutex: Mutex | None = None
        self._draws: Mutex | None = None
        if fd is not None:
            self._mutex = Mutex(buffer, _LIMITS_MUTEX_AT * _NUMBER)
            self._draws = Mutex(buffer, _DRAWS_MUTEX_AT * _NUMBER)
        self.windows = Rows(self, _WINDOWS_START, WINDOWS, _WINDOW_WIDTH, self._wipe_window)
        self.gauges = Rows(self, _GAUGES_START, _GAUGES, _GAUGE_WIDTH, self._wipe_gauge)
        self._sequences = Rows(self, _SEQUENCES_START, _SEQUENCES, _SEQUENCE_WIDTH, self._wipe_sequence)

    @classmethod
    def private(cls) -> Memory:
        """The numbers of a router that has one worker."""
        return cls(_begun(mmap.mmap(-1, _BYTES)), 0, None)

    @classmethod
    def create(cls, workers: int) -> Memory:
        """Numbers to share, for up to `MOST_WORKERS` workers in all: while a router replaces another, those
        of both count. Raises ValueError, and OSError where the system has no such memory."""
        if not 1 <= workers <= MOST_WORKERS:
            raise ValueError(f"a router has 1 to {MOST_WORKERS} workers, not {workers}")
        fd = os.memfd_create("servestate-router", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, _BYTES)
        # A worker must not be able to take the ground from under the others.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        made = cls(_begun(mmap.mmap(fd, _BYTES)), 0, fd)
        for mutex in (made._mutex, made._draws):
            if mutex is not None:
                mutex.make()
        return made

    @classmethod
    def attach(cls, fd: int, worker: int) -> Memory:
        """The numbers behind `fd`, for the worker with that number, which no other one has at the time.
        Raises ValueError where they are not of this version's making."""
        if not 0 <= worker < MOST_WORKERS:
            raise ValueError(f"workers are numbered 0 to {MOST_WORKERS - 1}, not {worker}")
        if os.fstat(fd).st_size != _BYTES:
            raise ValueError("the shared numbers are of another version of the router")
        buffer = mmap.mmap(fd, _BYTES)
        attached = cls(buffer, worker, fd)
        if attached.integers[_FORMAT_AT] != _FORMAT:
            raise ValueError("the shared numbers are of another version of the router")
        return attached

    def enter(self, now: float) -> float:
        """Begin to change limits' numbers; `leave` must follow. Returns the time that holds meanwhile: `now`,
        or a later one that another worker has come with already. Raises Uncountable."""
        if self._mutex is None:
            return now
        self._mutex.take()
        latest = self.times[_LATEST_AT]
        if now < latest:
            return latest
        self.times[_LATEST_AT] = now
        return now

    def leave(self) -> None:
        """What `enter` began is done."""
        if self._mutex is not None:
            self._mutex.give()

    def digest(self, *parts: str) -> int:
        """A number by which a row is found. Whose rows lie together cannot be known outside."""
        key = self._buffer[_KEY_AT * _NUMBER : _KEY_AT * _NUMBER + _KEY_BYTES]
        hashed = blake2b(repr(parts).encode(), digest_size=8, key=key).digest()
        return (int.from_bytes(hashed, "little") >> 1) or 1

    def sequence(self, key: str) -> Sequence:
        """The numbers of `key`, which go on where they stood."""
        known = self._counts.get(key)
        if known is None:
            draw = count().__next__ if self._draws is None else self._draw(self._draws, self.digest(key))
            known = self._counts[key] = Sequence(draw)
        return known

    def forget_worker(self, worker: int) -> None:
        """A worker has died: what it had in flight is over, and sums that it was changing are made anew. To
        be called before another gets its number. Needs no lock, so it cannot be held up."""
        integers = self.integers
        for at in self.gauges.places():
            if integers[at] != _NOBODY:
                integers[at + COLUMNS + worker] = 0
        integers[EPOCH_AT] += 1

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def _draw(self, mutex: Mutex, digest: int) -> Callable[[], int]:
        integers, rows = self.integers, self._sequences
        at = -1

        def draw() -> int:
            nonlocal at
            mutex.take()
            try:
                if at < 0 or integers[at] != digest:
                    at = rows.find(digest, time.monotonic())
                drawn = integers[at + TOTAL]
                integers[at + TOTAL] = drawn + 1
            finally:
                mutex.give()
            return drawn

        return draw

    def _wipe_window(self, at: int) -> None:
        # Entries are numbered on, so that none of the former owner's can be taken for one of the next.
        self.integers[at + TAIL] = self.integers[at + HEAD]
        self.integers[at + TOTAL] = 0

    def _wipe_gauge(self, at: int) -> None:
        for place in range(at + TOTAL, at + _GAUGE_WIDTH):
            self.integers[place] = 0

    def _wipe_sequence(self, at: int) -> None:
        self.integers[at + TOTAL] = 0


def _begun(buffer: mmap.mmap) -> mmap.mmap:
    with memoryview(buffer).cast("q") as integers:
        integers[_FORMAT_AT] = _FORMAT
    buffer[_KEY_AT * _NUMBER : _KEY_AT * _NUMBER + _KEY_BYTES] = os.urandom(_KEY_BYTES)
    return buffer
