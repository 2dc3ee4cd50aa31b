"""The threads in which guards look at texts, and how many texts may wait for them.

They are few on purpose: judging is work for the processor under the interpreter's one lock, so more threads
would judge no faster and leave the loop fewer turns. A second one is there so that a long text holds up its
own kind only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition, Thread
from time import monotonic

from servestate.runtime.router.http import errors
from servestate.runtime.router.http.errors import Refused

_THREADS = 2
_WAITING = 256
_WAITING_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """A text that waits to be looked at, of so many bytes."""

    judge: Callable[[], bytes]
    size: int
    judged: Future[bytes]


class GuardThreads:
    """The threads of one process, which begin with the first text. Requests may fill half of the room only:
    an answer has cost its model's time already, and is worth more than another request's beginning."""

    def __init__(
        self, threads: int = _THREADS, waiting: int = _WAITING, waiting_bytes: int = _WAITING_BYTES
    ) -> None:
        """At most so many texts wait, of so many bytes together; one alone may be of any size."""
        self._most_threads = threads
        self._most = waiting
        self._most_bytes = waiting_bytes
        self._threads: list[Thread] = []
        self._idle = 0
        self._bytes = 0
        self._waiting: deque[_Look] = deque()
        self._changed = Condition()
        self._closed = False

    def look(
        self, judge: Callable[[], bytes], size: int, loop: asyncio.AbstractEventLoop, *, answer: bool
    ) -> asyncio.Future[bytes]:
        """What `judge` says of a text of `size` bytes, or raises. A caller who no longer waits cancels it:
        one that has not begun is then forgotten. Raises Refused (503) where there is no room."""
        looking = _Look(judge, size, Future())
        with self._changed:
            part = 1 if answer else 2
            full = len(self._waiting) >= self._most // part or self._bytes + size > self._most_bytes // part
            if self._closed or (full and self._waiting):
                raise Refused(errors.unavailable("the guards have as much to look at as they may"))
            self._waiting.append(looking)
            self._bytes += size
            if len(self._waiting) > self._idle and len(self._threads) < self._most_threads:
                self._begin()
            self._changed.notify()
        looking.judged.add_done_callback(lambda _: self._forget(looking))
        return asyncio.wrap_future(looking.judged, loop=loop)

    def close(self, within_s: float = 1.0) -> None:
        """End the threads, and wait that long for what they are at; what waits is cancelled. Blocks."""
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            self._changed.notify_all()
        for looking in left:
            looking.judged.cancel()
        until = monotonic() + within_s
        for thread in self._threads:
            thread.join(max(until - monotonic(), 0.0))

    def _begin(self) -> None:
        number = len(self._threads)
        thread = Thread(target=self._run, name=f"guard-{number}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _forget(self, looking: _Look) -> None:
        """It is over; one that was cancelled may still be waiting, with its text."""
        with self._changed:
            if looking in self._waiting:
                self._waiting.remove(looking)
                self._bytes -= looking.size

    def _run(self) -> None:
        while self._look_at_one():
            pass  # nothing is held here while the thread waits: the texts may be large

    def _look_at_one(self) -> bool:
        """False once there are to be no more."""
        looking = self._next()
        if looking is None:
            return False
        if looking.judged.set_running_or_notify_cancel():
            try:
                result = looking.judge()
            except BaseException as error:  # whatever it is, whoever waits is told, and the thread goes on
                looking.judged.set_exception(error)
            else:
                looking.judged.set_result(result)
        return True

    def _next(self) -> _Look | None:
        """The text that has waited longest; None once there are to be no more."""
        with self._changed:
            self._idle += 1
            while not self._waiting and not self._closed:
                self._changed.wait()
            self._idle -= 1
            if self._closed:
                return None
            looking = self._waiting.popleft()
            self._bytes -= looking.size
            return looking
