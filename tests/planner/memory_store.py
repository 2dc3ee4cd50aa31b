"""A `StateStore` without a disk, for tests that need thousands of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from servestate.planner.stamp import Stamp
from servestate.planner.state import Event, State, apply_event, touched
from servestate.runtime.store.protocol import JournalEntry, Lock, LockHeld, LostLock, Owner

LOCK_SECONDS = 60.0


class MemoryStore:
    """A `StateStore` without a disk; compare-and-swap and lock as in the real one."""

    def __init__(self) -> None:
        self.state: State | None = None
        self.lock: Lock | None = None
        self.history: list[JournalEntry] = []
        self.commits = 0
        self._ids = count(1)

    def stamp(self) -> object:
        return self.commits

    def read(self) -> State | None:
        return self.state

    def create(self, lineage: str) -> State:
        if self.state is None:
            self.state = State(lineage)
        return self.state

    def acquire(self, owner: Owner, now: float) -> tuple[Lock, Lock | None]:
        held = self.lock
        if held is not None and held.expires > now:
            raise LockHeld(held)
        self.lock = Lock(f"lock-{next(self._ids)}", owner, now, now + LOCK_SECONDS)
        return self.lock, held

    def renew(self, lock: Lock, now: float) -> bool:
        return self.lock is not None and self.lock.id == lock.id

    def release(self, lock: Lock) -> None:
        self.break_lock(lock.id)

    def held(self) -> Lock | None:
        return self.lock

    def break_lock(self, id: str) -> bool:
        mine = self.lock is not None and self.lock.id == id
        if mine:
            self.lock = None
        return mine

    def commit(self, before: State, events: Sequence[Event], lock: Lock, now: float) -> State:
        after, entries = before, []
        for event in events:
            after = apply_event(after, event)
            address = str(touched(event) or "")
            entries.append(JournalEntry(after.serial, now, type(event).__name__, address, lock.owner.person))
        if not self._may_write(before, lock):
            raise LostLock
        self.state, self.commits = after, self.commits + 1
        self.history += entries
        return after

    def _may_write(self, before: State, lock: Lock) -> bool:
        assert self.state is not None
        same = (self.state.serial, self.state.lineage) == (before.serial, before.lineage)
        return same and self.lock is not None and self.lock.id == lock.id

    def journal(self, after_serial: int) -> list[JournalEntry]:
        return [entry for entry in self.history if entry.serial > after_serial]

    def removed(self, verb: str, *, own: bool = False) -> dict[str, Stamp]:
        return {}

    def close(self) -> None:
        pass
