"""What the API has promised and not done yet, kept so that a killed process goes on where it was: updates of
endpoints that are under way or have failed, and which plans it has made.

The state says what is; this says what somebody has asked for. It is the API's counterpart of a bundle's YAML.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from servestate.planner.diagnostics import Diagnostic
from servestate.runtime.store.protocol import StoreError

_PLANS_KEPT = 1000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS updates (endpoint TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS plans (number INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT UNIQUE NOT NULL);
"""


class Status(StrEnum):
    """How an update stands; one that is done is in no ledger."""

    IN_PROGRESS = "IN_PROGRESS"
    FAILED = "UPDATE_FAILED"
    CANCELED = "UPDATE_CANCELED"


@dataclass(frozen=True, slots=True)
class EntityNote:
    """What became of one entity of an update: a `deployment` state of the serving API, and why."""

    deployment: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """A config that somebody wants an endpoint to have.

    `block` is the whole endpoint (CreateServingEndpoint, no secret in it) while it has no record yet, else
    `{"name", "config"}`; `before` is the digest of the config that it takes the place of, by which an apply
    of somebody else's is noticed; `units` where it is one of provisioned model units. `started` is in seconds
    since the epoch, `by` the caller. `entities` are notes by entity name, `message` says why it has ended.
    """

    endpoint: str
    block: Mapping[str, Any]
    before: str
    started: float
    by: str
    units: bool = False
    status: Status = Status.IN_PROGRESS
    message: str = ""
    entities: Mapping[str, EntityNote] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """The config that is wanted."""
        found: Mapping[str, Any] = self.block["config"]
        return found

    def ended(self, status: Status, message: str, entities: Mapping[str, EntityNote]) -> Update:
        """The update, having come to nothing."""
        return replace(self, status=status, message=message, entities=entities)


class Ledger:
    """One file. Every write is on disk when it returns; reads come from memory. Any thread may call."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError SS415 where the file cannot be opened, or this version cannot read it."""
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        except (sqlite3.Error, OSError) as error:
            raise _unreadable(path, error) from error
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
            rows = self._connection.execute("SELECT body FROM updates").fetchall()
            self._updates = {update.endpoint: update for update in (_decoded(body) for (body,) in rows)}
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            self._connection.close()
            raise _unreadable(path, error) from error

    def get(self, endpoint: str) -> Update | None:
        """The update of that endpoint that is under way or has failed last."""
        return self._updates.get(endpoint)

    def updates(self) -> dict[str, Update]:
        """All of them, by endpoint."""
        return dict(self._updates)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises StoreError where the file cannot be written; nothing was changed then."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                what = f"cannot write what was promised: {error}"
                fix = "free some space, or look after the disk"
                raise StoreError(Diagnostic("SS414", what, fix)) from error

    def put(self, update: Update) -> None:
        """Keep it, in place of an older one of the same endpoint. As all that writes, raises StoreError."""
        with self._writing():
            self._write(update)

    def end(self, update: Update, ended: Update | None) -> bool:
        """Put `ended` in the place of `update`, or nothing where it is done; False, and nothing changes,
        where another one has taken its place by now."""
        with self._writing():
            if self._updates.get(update.endpoint) is not update:
                return False
            if ended is None:
                self._connection.execute("DELETE FROM updates WHERE endpoint = ?", (update.endpoint,))
                del self._updates[update.endpoint]
            else:
                self._write(ended)
            return True

    def _write(self, update: Update) -> None:
        row = (update.endpoint, json.dumps(asdict(update)))
        self._connection.execute("INSERT OR REPLACE INTO updates VALUES (?, ?)", row)
        self._updates[update.endpoint] = update

    def add_plan(self, digest: str) -> None:
        """Remember that this plan was made here. The oldest of a thousand is forgotten."""
        with self._writing():
            self._connection.execute("INSERT OR IGNORE INTO plans (digest) VALUES (?)", (digest,))
            self._connection.execute(
                "DELETE FROM plans WHERE number <= (SELECT max(number) FROM plans) - ?", (_PLANS_KEPT,)
            )

    def knows_plan(self, digest: str) -> bool:
        """Whether that plan was made here."""
        with self._writing():
            found = self._connection.execute("SELECT 1 FROM plans WHERE digest = ?", (digest,)).fetchone()
        return found is not None

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()


def _unreadable(path: Path, error: Exception) -> StoreError:
    what = f"cannot read what the API has promised, {path}: {error}"
    fix = "run the servestate that wrote it, or move the file away: the updates in it are then forgotten"
    return StoreError(Diagnostic("SS415", what, fix))


def _decoded(body: str) -> Update:
    found = json.loads(body)
    entities = {name: EntityNote(**note) for name, note in found.pop("entities").items()}
    status = Status(found.pop("status"))
    return Update(**found, status=status, entities=entities)
