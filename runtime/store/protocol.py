"""Where state lives: read, lock, compare-and-swap, journal. The data is the planner's, the storage ours.

The lock is a courtesy that keeps two applies from working at once; the compare-and-swap on serial and lock id
at every commit is what keeps state correct when the lock fails (a frozen holder, a clock step).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from servestate.planner.diagnostics import Diagnostic
from servestate.planner.stamp import Stamp
from servestate.planner.state import Event, State


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock: the verb, the person, the process (`process` is its identity, pid + start time +
    boot) and where it runs; `ci_url` is the page of the CI job, empty outside CI."""

    verb: str
    person: str
    host: str
    process: str
    ci_url: str = ""


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that is held. Times are seconds since the epoch; it expires unless its holder renews it."""

    id: str
    owner: Owner
    created: float
    expires: float

    def is_free(self, now: float, is_gone: Callable[[Owner], bool]) -> bool:
        """Whether somebody else may take it: it has expired, or the process of its holder has ended."""
        return self.expires <= now or is_gone(self.owner)


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One write of the history: which event on which address led to `serial`, when, and by whom."""

    serial: int
    at: float
    event: str
    address: str
    by: str


class StoreError(Exception):
    """The store cannot be read or written; nothing was changed by the call that raised it."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        self.diagnostic = diagnostic
        super().__init__(str(diagnostic))


class LockHeld(Exception):
    """Somebody else holds the lock."""

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        super().__init__(f"locked by {lock.owner.person} ({lock.owner.verb})")


class LostLock(Exception):
    """The serial or the lock is no longer what it was: somebody else writes now. Nothing was written, and
    the caller must do nothing further."""


class StateStore(Protocol):
    """One state. Methods raise StoreError when the storage fails."""

    def stamp(self) -> object:
        """Another value whenever the state may have changed; costs no reading of it."""

    def read(self) -> State | None:
        """The state now; None while there is none. Takes no lock and changes nothing."""

    def create(self, lineage: str) -> State:
        """A new, empty state of that lineage. If another one came first, that one is returned."""

    def acquire(self, owner: Owner, now: float) -> tuple[Lock, Lock | None]:
        """The lock, and the one that was broken for it: expired, or of a process that is gone. Raises
        LockHeld. Taking it twice is two locks; the first then loses."""

    def renew(self, lock: Lock, now: float) -> bool:
        """Push the expiry out. False when the lock is no longer held."""

    def release(self, lock: Lock) -> None:
        """Give the lock back. A lock that is lost already is no error."""

    def held(self) -> Lock | None:
        """The lock as it stands, for `lock list`."""

    def break_lock(self, id: str) -> bool:
        """Remove the lock with exactly that id. False when it is not the one that is held."""

    def commit(self, before: State, events: Sequence[Event], lock: Lock, now: float) -> State:
        """Apply `events` to `before` and write the result, in one transaction that is on disk when this
        returns. Raises LostLock and writes nothing when the stored serial is not `before.serial` or
        `lock` is not held any more."""

    def journal(self, after_serial: int) -> list[JournalEntry]:
        """The history after a serial, oldest first."""

    def removed(self, verb: str, *, own: bool = False) -> dict[str, Stamp]:
        """The endpoints that were last forgotten through that verb: those that another had written, with
        `own` also those that it had made alone."""

    def close(self) -> None:
        """Let go of the storage."""
