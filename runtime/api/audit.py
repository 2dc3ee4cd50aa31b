"""The audit log: one line of JSON for every write that was asked for, and for every refusal of access: who,
what, from where, and what came of it. Bodies are not in it; they may hold secrets."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

LARGEST = 64 << 20
"""Bytes, after which the log is put aside and begun anew."""
KEPT = 4
"""How many that were put aside are kept."""


class AuditLog:
    """One file, for this user alone. Any thread may write."""

    def __init__(self, path: Path, largest: int = LARGEST) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._largest = largest
        self._lock = threading.Lock()

    def write(self, caller: str, peer: str, verb: str, path: str, status: int, code: str, id: str) -> None:
        """Add a line; it is in the file when this returns. Raises OSError."""
        entry = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "caller": caller,
            "peer": peer,
            "verb": verb,
            "path": path,
            "status": status,
            "error_code": code,
            "request_id": id,
        }
        line = json.dumps(entry, ensure_ascii=True) + "\n"
        with self._lock:
            self._make_room()
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(fd, line.encode("ascii"))
            finally:
                os.close(fd)

    def _make_room(self) -> None:
        try:
            if self._path.stat().st_size < self._largest:
                return
        except FileNotFoundError:
            return
        for number in range(KEPT - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
