"""What is now, as the API shows it: state and supervision, read again only when they have changed."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping

from servestate.planner.state import EndpointRecord, State
from servestate.runtime.file_stamps import FileStamp, stamp_of
from servestate.runtime.supervision import Supervised, Supervision, read_supervision, supervision_path
from servestate.runtime.workspace import Workspace

LOOK_S = 0.2
"""How often writes of others are looked for: an apply of a thousand endpoints commits thousands of times."""


class View:
    """The state as it was a moment ago; never older than the last write of this process. Any thread may
    call."""

    def __init__(self, workspace: Workspace) -> None:
        self._store = workspace.store
        self._supervision_path = supervision_path(workspace)
        self._lock = threading.Lock()
        self._state = State("")
        self._ids: dict[str, str] = {}
        self._stamp: object = None
        self._looked = 0.0
        self._supervision: Supervision | None = None
        self._supervision_stamp: FileStamp | None = None

    def state(self, *, now: bool = False) -> State:
        """The state; read again if it may have changed, at once where `now`. Raises StoreError."""
        with self._lock:
            clock = time.monotonic()
            if now or clock - self._looked >= LOOK_S:
                self._looked = clock
                self._read()
            return self._state

    def _read(self) -> None:
        # The stamp is taken first: what is written while the state is read is read again.
        stamp = self._store.stamp()
        if stamp == self._stamp:
            return
        self._state = self._store.read() or State("")
        self._stamp = stamp
        self._ids = {endpoint_id(self._state, record): name for name, record in self._state.endpoints.items()}

    def name_of(self, id: str) -> str | None:
        """The endpoint of that id."""
        self.state()
        return self._ids.get(id)

    def supervised(self) -> Mapping[str, Supervised]:
        """What the controller says, by the address of each entity; nothing where none runs."""
        stamp = stamp_of(self._supervision_path)
        with self._lock:
            if stamp != self._supervision_stamp:
                self._supervision_stamp = stamp
                self._supervision = read_supervision(self._supervision_path)
            found = self._supervision
        return found.entities if found is not None and found.alive else {}


def endpoint_id(state: State, record: EndpointRecord) -> str:
    """32 hex digits that name this endpoint, and none that later has its name."""
    made = record.history.serial if record.history is not None else 0
    return hashlib.sha256(f"{state.lineage}/{record.name}/{made}".encode()).hexdigest()[:32]
