"""The embedded store: one SQLite file, WAL with synchronous=FULL, so an acknowledged commit is on disk."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from servestate.planner.address import EndpointAddress
from servestate.planner.codec import (
    FormatError,
    decode_instance,
    decode_record,
    encode_instance,
    encode_record,
)
from servestate.planner.diagnostics import Diagnostic
from servestate.planner.owners import REPAIR_VERB
from servestate.planner.stamp import Stamp
from servestate.planner.state import FORMAT_VERSION, Event, State, apply_event, touched
from servestate.runtime.file_stamps import FileStamp, stamp_of
from servestate.runtime.store.protocol import JournalEntry, Lock, LockHeld, LostLock, Owner, StoreError

LOCK_SECONDS = 60.0
"""A lock that is not renewed for this long is taken for abandoned."""

_BUSY_SECONDS = 5.0
_BUSY_POLL_S = 0.02
_Answer = TypeVar("_Answer")
_SCHEMA = """
CREATE TABLE meta (
  one INTEGER PRIMARY KEY CHECK (one = 1), format_version INTEGER NOT NULL, lineage TEXT NOT NULL,
  serial INTEGER NOT NULL, table_serial INTEGER NOT NULL);
CREATE TABLE endpoints (name TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE instances (address TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE journal (
  serial INTEGER PRIMARY KEY, at REAL NOT NULL, event TEXT NOT NULL, address TEXT NOT NULL, by TEXT NOT NULL);
CREATE TABLE lock (
  one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, owner TEXT NOT NULL,
  created REAL NOT NULL, expires REAL NOT NULL);
"""


class SqliteStore:
    """See `StateStore`. `is_gone` tells whether the process of that identity has ended on this machine; it
    decides whether a lock may be broken without waiting for its expiry."""

    def __init__(self, path: Path, is_gone: Callable[[Owner], bool]) -> None:
        self._path = path
        self._is_gone = is_gone
        self._remembered: dict[str, tuple[str, Any]] | None = None
        self._connection: sqlite3.Connection | None = None

    def stamp(self) -> object:
        """See `StateStore.stamp`."""
        return tuple(map(stamp_of, (self._path, self._path.with_name(f"{self._path.name}-wal"))))

    def read(self) -> State | None:
        """See `StateStore.read`."""
        if not self._path.exists():
            return None
        with self._failing("read"):
            return self._ask(self._read) if self._connection is None else self._read(self._connection)

    def create(self, lineage: str) -> State:
        """See `StateStore.create`."""
        with self._failing("write"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._transaction() as connection:
                if not _has_schema(connection):
                    for statement in _SCHEMA.split(";"):
                        connection.execute(statement)
                    connection.execute("INSERT INTO meta VALUES (1, ?, ?, 0, 0)", (FORMAT_VERSION, lineage))
            state = self._read(self._writer())
            assert state is not None, "the schema and its row were committed together"
            return state

    def acquire(self, owner: Owner, now: float) -> tuple[Lock, Lock | None]:
        """See `StateStore.acquire`."""
        lock = Lock(uuid.uuid4().hex[:12], owner, now, now + LOCK_SECONDS)
        with self._failing("write"), self._transaction() as connection:
            held = _held(connection)
            if held is not None and not held.is_free(now, self._is_gone):
                raise LockHeld(held)
            row = (lock.id, json.dumps(asdict(owner)), lock.created, lock.expires)
            connection.execute("INSERT OR REPLACE INTO lock VALUES (1, ?, ?, ?, ?)", row)
        return lock, held

    def renew(self, lock: Lock, now: float) -> bool:
        """See `StateStore.renew`."""
        with self._failing("write"), self._transaction() as connection:
            found = connection.execute(
                "UPDATE lock SET expires = ? WHERE id = ?", (now + LOCK_SECONDS, lock.id)
            )
            return found.rowcount == 1

    def release(self, lock: Lock) -> None:
        """See `StateStore.release`."""
        self.break_lock(lock.id)

    def held(self) -> Lock | None:
        """See `StateStore.held`."""
        if not self._path.exists():
            return None
        with self._failing("read"):
            return self._ask(lambda connection: _held(connection) if _has_schema(connection) else None)

    def break_lock(self, id: str) -> bool:
        """See `StateStore.break_lock`."""
        if not self._path.exists():
            return False
        with self._failing("write"), self._transaction() as connection:
            return connection.execute("DELETE FROM lock WHERE id = ?", (id,)).rowcount == 1

    def commit(self, before: State, events: Sequence[Event], lock: Lock, now: float) -> State:
        """See `StateStore.commit`."""
        with self._failing("write"), self._transaction() as connection:
            # The condition is the fence: a holder that was frozen, or whose lock was broken, writes nothing.
            swapped = connection.execute(
                "UPDATE meta SET serial = ? WHERE serial = ? AND lineage = ?"
                " AND EXISTS (SELECT 1 FROM lock WHERE id = ?)",
                (before.serial + len(events), before.serial, before.lineage, lock.id),
            )
            if swapped.rowcount != 1:
                raise LostLock
            after = before
            for event in events:  # one state at a time: a batch of all of them would be quadratic in memory
                after = apply_event(after, event)
                _write_event(connection, after, event, lock, now)
            connection.execute("UPDATE meta SET table_serial = ?", (after.table_serial,))
        return after

    def journal(self, after_serial: int) -> list[JournalEntry]:
        """See `StateStore.journal`."""
        if not self._path.exists():
            return []
        with self._failing("read"):
            return self._ask(lambda connection: _journal(connection, after_serial))

    def removed(self, verb: str, *, own: bool = False) -> dict[str, Stamp]:
        """See `StateStore.removed`."""
        if not self._path.exists():
            return {}
        with self._failing("read"):
            return self._ask(lambda connection: _forgotten(connection, verb, own))

    def close(self) -> None:
        """See `StateStore.close`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, question: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Put a question and leave no trace.

        Without a -wal file the database file alone is the state, and SQLite is told to take it for immutable:
        it would create -wal and -shm for a mere reader, and fail where nothing may be written. Should the
        file turn out to have changed meanwhile, the question is put again the usual way.
        """
        before = self._at_rest()
        if before is not None:
            try:
                answer = self._put(question, "mode=ro&immutable=1")
            except (sqlite3.Error, FormatError):
                if self._at_rest() == before:
                    raise
            else:
                if self._at_rest() == before:
                    return answer
        return self._put(question, "mode=ro")

    def _put(self, question: Callable[[sqlite3.Connection], _Answer], how: str) -> _Answer:
        connection = self._open(how)
        try:
            return question(connection)
        finally:
            connection.close()

    def _at_rest(self) -> FileStamp | None:
        """Which file it is and when it was last written; None while a -wal file holds part of the state."""
        if self._path.with_name(f"{self._path.name}-wal").exists():
            return None
        return stamp_of(self._path)

    def _open(self, how: str) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?{how}"
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)

    def _writer(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = self._open("mode=rwc")
            try:
                _use_wal(connection)
                connection.execute("PRAGMA synchronous = FULL")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._writer()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _read(self, connection: sqlite3.Connection) -> State | None:
        connection.execute("BEGIN")  # one snapshot for all three tables
        try:
            if not _has_schema(connection):
                return None
            row = connection.execute("SELECT format_version, lineage, serial, table_serial FROM meta")
            version, lineage, serial, table_serial = row.fetchone()
            if version != FORMAT_VERSION:
                raise FormatError(f"it has format version {version}, this servestate reads {FORMAT_VERSION}")
            records = [
                self._decoded(name, body, decode_record) for name, body in _rows(connection, "endpoints")
            ]
            endpoints = {record.name: record for record in records}
            found = [self._decoded(at, body, decode_instance) for at, body in _rows(connection, "instances")]
            instances = {instance.address: instance for instance in found}
        finally:
            connection.execute("ROLLBACK")
        return State(lineage, serial, table_serial, endpoints, instances)

    def remember(self) -> None:
        """Keep what was read: of a state that is read again and again, only what has changed is decoded."""
        self._remembered = {}

    def _decoded(self, key: str, body: str, decode: Callable[[str], _Answer]) -> _Answer:
        if self._remembered is None:
            return decode(body)
        known = self._remembered.get(key)
        if known is None or known[0] != body:
            known = self._remembered[key] = (body, decode(body))
        found: _Answer = known[1]
        return found

    @contextmanager
    def _failing(self, verb: str) -> Iterator[None]:
        """Turn what the storage raises into one clear line."""
        try:
            yield
        except (sqlite3.Error, OSError, FormatError) as error:
            raise StoreError(self._diagnosis(verb, error)) from error

    def _diagnosis(self, verb: str, error: Exception) -> Diagnostic:
        what = f"cannot {verb} the state {self._path}: {error}"
        text = str(error)
        if "full" in text or "No space" in text or "disk I/O" in text:
            fix = "free some space, or look after the disk, and run the same command again: nothing is lost"
            return Diagnostic("SS402", what, fix)
        if "locked" in text:
            return Diagnostic("SS403", what, "another servestate is writing right now; run it again")
        if isinstance(error, FormatError):
            return Diagnostic("SS404", what, "use the servestate that wrote it, or restore a backup")
        if "malformed" in text or "not a database" in text:
            return Diagnostic("SS404", what, "restore a backup of the file; it must not be edited by hand")
        return Diagnostic("SS401", what, "check that the path exists and may be written by this user")


_TABLES = {
    "endpoints": "SELECT name, body FROM endpoints ORDER BY name",
    "instances": "SELECT address, body FROM instances ORDER BY address",
}


def _rows(connection: sqlite3.Connection, table: str) -> sqlite3.Cursor:
    return connection.execute(_TABLES[table])


def _use_wal(connection: sqlite3.Connection) -> None:
    """Change the journal mode. SQLite waits for a busy file everywhere but here, so that of several first
    writers at once all but one would fail."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
        time.sleep(_BUSY_POLL_S)


def _has_schema(connection: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'lock'"
    return connection.execute(query).fetchone() is not None


def _held(connection: sqlite3.Connection) -> Lock | None:
    row = connection.execute("SELECT id, owner, created, expires FROM lock").fetchone()
    if row is None:
        return None
    id, owner, created, expires = row
    return Lock(id, Owner(**json.loads(owner)), created, expires)


def _journal(connection: sqlite3.Connection, after_serial: int) -> list[JournalEntry]:
    rows = connection.execute(
        "SELECT serial, at, event, address, by FROM journal WHERE serial > ? ORDER BY serial",
        (after_serial,),
    )
    return [JournalEntry(*row) for row in rows]


def _forgotten(connection: sqlite3.Connection, verb: str, own: bool) -> dict[str, Stamp]:
    """Who forgot each endpoint last through that verb, see `StateStore.removed`."""
    if not _has_schema(connection):
        return {}
    rows = connection.execute(
        "SELECT address, event, at, by FROM journal WHERE event IN ('Published', 'Forgotten') AND address IN"
        " (SELECT address FROM journal WHERE event = 'Forgotten' AND by LIKE ?) ORDER BY serial",
        (f"% ({verb})",),
    )
    found: dict[str, Stamp | None] = {}
    others: set[str] = set()  # written by another verb in this life of the name
    for address, event, at, by in rows:
        person, through = _writer_in(by)
        found[address] = None
        if event == "Forgotten":
            if through == verb and (own or address in others):
                found[address] = Stamp(person, at, through)
            others.discard(address)
        elif through not in (verb, REPAIR_VERB):
            others.add(address)
    return {address: stamp for address, stamp in found.items() if stamp is not None and "/" not in address}


def _writer_in(by: str) -> tuple[str, str]:
    """Person and verb of a journal's line, as `_write_event` writes them."""
    person, _, verb = by.rpartition(" (")
    return person, verb.removesuffix(")")


def _write_event(connection: sqlite3.Connection, after: State, event: Event, lock: Lock, now: float) -> None:
    address = touched(event)
    if isinstance(address, EndpointAddress):
        record = after.endpoints.get(address.endpoint)
        body = encode_record(record) if record else None
        _put(connection, "endpoints", str(address), body)
    elif address is not None:
        instance = after.instances.get(address)
        body = encode_instance(instance) if instance else None
        _put(connection, "instances", str(address), body)
    by = f"{lock.owner.person} ({lock.owner.verb})"
    row = (after.serial, now, type(event).__name__, str(address or ""), by)
    connection.execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?)", row)


_PUT = {
    "endpoints": ("DELETE FROM endpoints WHERE name = ?", "INSERT OR REPLACE INTO endpoints VALUES (?, ?)"),
    "instances": (
        "DELETE FROM instances WHERE address = ?",
        "INSERT OR REPLACE INTO instances VALUES (?, ?)",
    ),
}


def _put(connection: sqlite3.Connection, table: str, key: str, body: str | None) -> None:
    delete, insert = _PUT[table]
    if body is None:
        connection.execute(delete, (key,))
    else:
        connection.execute(insert, (key, body))
