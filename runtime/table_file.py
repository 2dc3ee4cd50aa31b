"""The routing table file: written whole, made durable, swapped in by rename, so a reader never sees half."""

from __future__ import annotations

import os
from pathlib import Path

from servestate.planner.table import RoutingTable
from servestate.planner.table_file import encode, identity_of


def write_table(path: Path, table: RoutingTable) -> None:
    """Replace the file at `path`. Raises OSError and leaves the old file when that fails."""
    write_durably(path, encode(table))


def read_version(path: Path, lineage: str) -> int | None:
    """The version of the table in the file; None when it is missing, changed by others, unreadable, or of
    another lineage, whose versions mean nothing here."""
    try:
        found, version = identity_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return version if found == lineage else None


def write_durably(path: Path, text: str, mode: int = 0o666) -> None:
    """Write, fsync, rename, fsync the folder. Raises OSError; the old content is then still there. `mode` is
    that of the file, less what the process's mask takes away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
