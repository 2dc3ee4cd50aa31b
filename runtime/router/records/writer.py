"""What the loop hands over to be written, and the thread that writes it.

The loop never waits: what finds no room is dropped and counted. A disk that is full, slow or gone costs
records, once the room is used up, and nothing else; writing goes on when it is back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, Protocol, TypeVar

from servestate.runtime.router.records.rotation import RotatingFile

FLUSH_S = 0.2
"""How late a record is written at most, while the disk is well."""

T = TypeVar("T")


class Destination(Protocol[T]):
    """Where a writer's thread puts things. Both are called by that thread only."""

    def write(self, items: deque[T], *, last: bool) -> None:
        """Write what can be written, taking each off the front; what is left is offered again, with what came
        since, within `FLUSH_S`. Nothing comes after the `last`. Raises OSError."""

    def close(self) -> None:
        """Finish. Raises OSError."""


class Writer(Generic[T]):
    """A bounded queue and its thread. `dropped` counts what there was no room for, or what was lost with its
    destination; `error` says why nothing can be written at the moment, "" if it can."""

    def __init__(self, name: str, destination: Destination[T], most_bytes: int) -> None:
        self.name = name
        self.error = ""
        self._destination = destination
        self._most_bytes = most_bytes
        self._queue: deque[T] = deque()
        self._sizes: deque[int] = deque()
        self._waiting: deque[T] = deque()  # the thread's own
        # Each is written by one side only, so neither needs a lock.
        self._put_bytes = self._taken_bytes = 0
        self._refused = self._lost = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"write-{name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many were lost so far."""
        return self._refused + self._lost

    def put(self, item: T, size: int) -> None:
        """Have `item` written, which takes about `size` bytes until then."""
        if self._put_bytes - self._taken_bytes + size > self._most_bytes:
            self._refused += 1
            return
        self._put_bytes += size
        self._sizes.append(size)
        self._queue.append(item)

    def stop(self) -> None:
        """Have the thread write what is left and end."""
        self._stop.set()

    def close(self, within_s: float) -> None:
        """`stop`, and wait for it no longer than that."""
        self.stop()
        self._thread.join(within_s)
        if self._thread.is_alive():
            self.error = self.error or f"what was left could not be written within {within_s:g} s"

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_S):
            self._write(last=False)
        self._write(last=True)
        self._lost += len(self._waiting)
        try:
            self._destination.close()
        except OSError as error:
            self.error = str(error)

    def _write(self, *, last: bool) -> None:
        queue, waiting = self._queue, self._waiting
        while queue:
            waiting.append(queue.popleft())
        before = len(waiting)
        try:
            self._destination.write(waiting, last=last)
        except OSError as error:
            self.error = str(error)
        except Exception as error:  # one that cannot be written must not hold up all others for ever
            self.error = f"{type(error).__name__}: {error}"
            if waiting:
                waiting.popleft()
                self._lost += 1
        else:
            self.error = ""
        for _ in range(before - len(waiting)):
            self._taken_bytes += self._sizes.popleft()


class Lines:
    """A rotating file as the destination of whole lines."""

    def __init__(self, file: RotatingFile) -> None:
        self._file = file

    def write(self, items: deque[bytes], *, last: bool) -> None:
        """See `Destination.write`."""
        if items:
            self._file.append(items, time.monotonic())

    def close(self) -> None:
        """See `Destination.close`."""
        self._file.close()
