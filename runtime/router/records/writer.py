"""What the loop hands over to be written, and the threads that write it.

The loop never waits: what finds no room is dropped and counted. A disk that is full, slow or gone costs
records, once the room is used up, and nothing else; writing goes on when it is back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from servestate.runtime.router.records.rotation import RotatingFile
from servestate.runtime.router.records.unwritable import unwritable

FLUSH_S = 0.2
"""How late a record is written at most, while the disk is well."""
_TURN_BYTES = 1 << 20
"""What one queue writes before the next one's turn."""
_LINES_OF_A_TURN = 4096
"""The same in lines of a log."""

T = TypeVar("T")


class Destination(Protocol[T]):
    """Where what was put goes. Both methods are called by the thread only."""

    @property
    def path(self) -> Path:
        """The file, or the folder of the files, for people."""

    def write(self, items: deque[T], *, last: bool) -> None:
        """Write what can be written, taking each off the front; what is left is offered again, with what came
        since, within `FLUSH_S`. Nothing comes after the `last`. Raises OSError."""

    def close(self) -> None:
        """Finish. Raises OSError."""


class Room:
    """How many bytes may wait, in all the queues that share it. Where there is no room, a queue that holds
    less than its part gets some from the one that holds most. `refused` counts what found no room or lost
    it, `lost` what could not be written."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.queues: list[Queue[Any]] = []
        # Each is written by one side only, so none needs a lock: the loop's, then the thread's.
        self.put_bytes = self.refused = 0
        self.taken_bytes = self.lost = 0

    @property
    def dropped(self) -> int:
        """How many were lost so far."""
        return self.refused + self.lost

    @property
    def tight(self) -> bool:
        """Whether more than half of it is taken: nothing should wait for more of its kind."""
        return (self.put_bytes - self.taken_bytes) * 2 > self._most_bytes

    def make(self, size: int, held: int) -> bool:
        """Whether there is room now for so many bytes of a queue that holds so many."""
        while self.put_bytes - self.taken_bytes + size > self._most_bytes:
            others = [queue for queue in self.queues if queue.pending]
            if (held + size) * len(self.queues) > self._most_bytes or not others:
                return False
            max(others, key=lambda queue: queue.held).give_back()
        return True


class Queue(Generic[T]):
    """What waits for one destination. `error` says why nothing can be written at the moment, "" if it can."""

    def __init__(self, name: str, destination: Destination[T], room: Room) -> None:
        self.name = name
        self.error = ""
        self.stopped = False
        self._destination = destination
        self._room = room
        self._queue: deque[tuple[T, int]] = deque()
        self._waiting: deque[T] = deque()  # the thread's own, and
        self._sizes: deque[int] = deque()  # how large each of those is
        self._put_bytes = self._taken_bytes = 0
        room.queues.append(self)

    # For the loop.

    @property
    def held(self) -> int:
        """Bytes that wait."""
        return self._put_bytes - self._taken_bytes

    @property
    def pending(self) -> bool:
        """Whether some of it could be given back."""
        return bool(self._queue)

    def put(self, item: T, size: int) -> None:
        """Have `item` written, which takes about `size` bytes until then."""
        if not self._room.make(size, self.held):
            self._room.refused += 1
            return
        self._room.put_bytes += size
        self._put_bytes += size
        self._queue.append((item, size))

    def give_back(self) -> None:
        """Drop what was put last, for the sake of others."""
        try:
            _, size = self._queue.pop()
        except IndexError:  # the thread was faster
            return
        self._room.put_bytes -= size
        self._put_bytes -= size
        self._room.refused += 1

    def stop(self) -> None:
        """Have the thread write what is left; nothing more is put."""
        self.stopped = True
        self._room.queues.remove(self)

    # For the thread.

    def write(self) -> bool:
        """Write of what waits as much as is one turn; whether there is more that could be."""
        if not self.error:  # else it stays where it could be given back
            self._take(_TURN_BYTES)
        self._write(last=False)
        return self.pending and not self.error

    def finish(self) -> None:
        """Write all that is left, and close the destination."""
        self._take_rest()
        self._write(last=True)
        self._room.lost += len(self._waiting)
        try:
            self._destination.close()
        except OSError as error:
            self.error = unwritable(self._destination.path, error)

    def _take(self, most_bytes: int) -> None:
        """Take over what was put, until that is as much."""
        while self._queue and most_bytes > 0:
            item, size = self._queue.popleft()
            self._waiting.append(item)
            self._sizes.append(size)
            most_bytes -= size

    def _take_rest(self) -> None:
        self._take(self.held)

    def _write(self, *, last: bool) -> None:
        waiting = self._waiting
        before = len(waiting)
        try:
            self._destination.write(waiting, last=last)
        except OSError as error:
            self.error = unwritable(self._destination.path, error)
        except Exception as error:  # one that cannot be written must not hold up all others for ever
            self.error = f"{type(error).__name__}: {error}"
            if waiting:
                waiting.popleft()
                self._room.lost += 1
        else:
            self.error = ""
        written = 0
        if waiting:
            for _ in range(before - len(waiting)):
                written += self._sizes.popleft()
        else:
            written = sum(self._sizes)
            self._sizes.clear()
        self._taken_bytes += written
        self._room.taken_bytes += written


class WriterThread:
    """Writes what is put into its queues, a turn of each after the other. It begins with the first."""

    def __init__(self, name: str) -> None:
        self._queues: tuple[Queue[Any], ...] = ()
        self._changing = threading.Lock()
        self._stop = threading.Event()
        self._worker = threading.Thread(target=self._run, name=f"write-{name}", daemon=True)

    def add(self, queue: Queue[Any]) -> None:
        """Write this one too, until it is stopped."""
        with self._changing:
            self._queues = (*self._queues, queue)
        if not self._worker.is_alive():
            self._worker.start()

    def stop(self) -> None:
        """Have the thread write what is left of all and end."""
        self._stop.set()

    def close(self, within_s: float) -> None:
        """`stop`, and wait for it no longer than that."""
        self.stop()
        if not self._worker.is_alive():
            return
        self._worker.join(within_s)
        if self._worker.is_alive():
            for queue in self._queues:
                queue.error = queue.error or f"what was left could not be written within {within_s:g} s"

    def _run(self) -> None:
        more = False
        while not self._stop.wait(0.0 if more else FLUSH_S):
            more = any([self._turn(queue) for queue in self._queues])  # of each, whatever the first says
        for queue in self._queues:
            queue.finish()

    def _turn(self, queue: Queue[Any]) -> bool:
        if not queue.stopped:
            return queue.write()
        queue.finish()
        with self._changing:
            self._queues = tuple(one for one in self._queues if one is not queue)
        return False


class Writer(Queue[bytes]):
    """A queue of lines with room and a thread of its own. Nobody shares the room, so nothing is ever given
    back, and lines can be taken over by the thousand: each costs a third of what it costs in a `Queue`."""

    def __init__(self, name: str, destination: Destination[bytes], most_bytes: int) -> None:
        super().__init__(name, destination, Room(most_bytes))
        self._most_bytes = most_bytes
        self._lines: list[bytes] = []
        self._worker = WriterThread(name)
        self._worker.add(self)

    @property
    def pending(self) -> bool:
        """See `Queue.pending`."""
        return bool(self._lines)

    def put(self, item: bytes, size: int) -> None:
        """See `Queue.put`."""
        room = self._room
        if room.put_bytes - room.taken_bytes + size > self._most_bytes:
            room.refused += 1
            return
        room.put_bytes += size
        self._put_bytes += size
        self._lines.append(item)

    def _take(self, most_bytes: int) -> None:
        self._take_lines(_LINES_OF_A_TURN)

    def _take_rest(self) -> None:
        self._take_lines(len(self._lines))

    def _take_lines(self, most: int) -> None:
        lines = self._lines
        # Each of the two is one step of the interpreter, and the loop only ever adds behind them.
        taken = lines[:most]
        del lines[: len(taken)]
        self._waiting.extend(taken)
        self._sizes.extend(map(len, taken))

    @property
    def dropped(self) -> int:
        """How many were lost so far."""
        return self._room.dropped

    def stop(self) -> None:
        """Have the thread write what is left and end."""
        self._worker.stop()

    def close(self, within_s: float) -> None:
        """`stop`, and wait for it no longer than that."""
        self._worker.close(within_s)


class Lines:
    """A rotating file as the destination of whole lines."""

    def __init__(self, file: RotatingFile) -> None:
        self._file = file

    @property
    def path(self) -> Path:
        """See `Destination.path`."""
        return self._file.path

    def write(self, items: deque[bytes], *, last: bool) -> None:
        """See `Destination.write`."""
        if items:
            self._file.append(items, time.monotonic())

    def close(self) -> None:
        """See `Destination.close`."""
        self._file.close()
