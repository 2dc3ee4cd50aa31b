"""Room for large request bodies, which are held whole until they are sent on.

Whoever gets no room at once is not read meanwhile, so what is on its way waits at the sender's side. Room is
taken for the whole body before its first byte is kept: bodies that grew against each other could all be
waiting for the last piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

Ready = Callable[[], None]


class Budget:
    """So many bytes for all bodies together; those that wait get theirs in order. Owned by the loop."""

    __slots__ = ("_waiting", "left")

    def __init__(self, most: int) -> None:
        self.left = most
        self._waiting: deque[tuple[int, Ready]] = deque()

    def take(self, size: int, ready: Ready) -> bool:
        """Whether there is room now. If not, `ready` is called once it has been taken."""
        if not self._waiting and size <= self.left:
            self.left -= size
            return True
        self._waiting.append((size, ready))
        return False

    def give(self, size: int) -> None:
        """Give room back."""
        self.left += size
        while self._waiting and self._waiting[0][0] <= self.left:
            wanted, ready = self._waiting.popleft()
            self.left -= wanted
            ready()

    def leave(self, ready: Ready) -> None:
        """Wait no longer; nothing happens where nobody waits."""
        self._waiting = deque(entry for entry in self._waiting if entry[1] != ready)
        self.give(0)  # the next one may fit where this one did not
