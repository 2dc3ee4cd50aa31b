"""The table's file: read at start, looked at again and again, and never trusted more than once checked.

A table that cannot be served is refused and the one in use stays. Each accepted one is copied beside itself
(`<table>.last-good`), which is what a router starts from when the file is gone or damaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.table import RoutingTable
from servestate.planner.table_file import decode
from servestate.runtime.file_stamps import reason, stamp_after, stamp_of
from servestate.runtime.router.routing import LiveTable

Admit = Callable[[RoutingTable], LiveTable]


class TableWatch:
    """The table in use, why the newest one is not, and why no copy was kept. Owned by the loop; `poll`
    is called by its sweep."""

    def __init__(self, path: Path, admit: Admit) -> None:
        self._path = path
        self._copy = path.with_name(path.name + ".last-good")
        self._admit = admit
        self._seen = stamp_of(path)
        self.error: str | None = None
        self.copy_error: str | None = None
        self.table = self._first()

    def poll(self) -> bool:
        """Look at the file; whether a new table came into use."""
        stamp = stamp_of(self._path)
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            text = self._path.read_text("utf-8")
            table = decode(text)
            self._check_order(table)
            self.table = self._admit(table)
        except OSError as error:
            self._seen = stamp_after(error, stamp)
            self.error = reason(self._path, error)
            return False
        except ValueError as error:
            self.error = reason(self._path, error)
            return False
        self.error = None
        self._keep_copy(text)
        return True

    def _check_order(self, table: RoutingTable) -> None:
        used = self.table.source
        if table.lineage == used.lineage and table.version < used.version:
            raise ValueError(f"version {table.version} is older than version {used.version}, which is in use")

    def _first(self) -> LiveTable:
        """The table to start with. Raises InvalidInput SS602 if neither file nor copy can be served."""
        reasons = []
        for path in (self._path, self._copy):
            try:
                text = path.read_text("utf-8")
                table = self._admit(decode(text))
            except (OSError, ValueError) as error:
                reasons.append(reason(path, error))
                continue
            self.error = reasons[0] if reasons else None
            if path == self._path:
                self._keep_copy(text)
            return table
        raise InvalidInput(
            [
                Diagnostic(
                    "SS602",
                    f"no routing table can be served from {self._path}",
                    "run `servestate apply`, which writes the table, then start the router again; "
                    "provide the secrets it names",
                    detail="\n".join(reasons),
                )
            ]
        )

    def _keep_copy(self, text: str) -> None:
        """Best effort: a full disk must not stop a table that is good, nor make it count as refused. The
        checksum tells a torn copy."""
        self.copy_error = None
        # Of its own: all workers adopt a table, and keep its copy, at about the same moment.
        part = self._copy.with_name(f"{self._copy.name}.{os.getpid()}.part")
        try:
            part.write_text(text, "utf-8")
            part.replace(self._copy)
        except OSError as error:
            self.copy_error = f"the copy {self._copy} could not be written: {error}"
            with suppress(OSError):  # there may be none, and the folder may be what is wrong
                part.unlink()
