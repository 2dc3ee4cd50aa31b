"""A router in a process of its own: its memory, its processor time and its file limit are then its alone."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servestate.planner.table import RoutingTable
from servestate.runtime.router import Limits
from tests.router.processes import launched, status
from tests.router.rig import write_table

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Apart:
    """The process, and where it listens."""

    pid: int
    port: int
    folder: Path

    async def connect(
        self, port: int = 0, limit: int = 1 << 25
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", port or self.port, limit=limit)

    def memory(self) -> int:
        """Resident bytes."""
        return self._status("VmRSS")

    def most_memory(self) -> int:
        """The most resident bytes there ever were."""
        return self._status("VmHWM")

    def processor_s(self) -> float:
        """Seconds of processor time used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def files(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def report(self) -> dict[str, Any]:
        """What the control socket answers to `GET /status`."""
        return await asyncio.to_thread(status, self.folder)

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise LookupError(name)


def _changed(limits: Limits) -> dict[str, float]:
    """The budgets that are not the usual ones."""
    usual = Limits()
    names = (field.name for field in dataclasses.fields(limits))
    return {name: value for name in names if (value := getattr(limits, name)) != getattr(usual, name)}


@asynccontextmanager
async def apart(table: RoutingTable, limits: Limits | None = None, files: int = 0) -> AsyncIterator[Apart]:
    """A router that serves `table`. `files` bounds its open files; 0 leaves the bound as it is."""
    with tempfile.TemporaryDirectory(prefix="ss-apart-") as name:
        folder = Path(name)
        write_table(folder / "table.json", table)
        given = {**_changed(limits or Limits()), **({"files": files} if files else {})}
        running = launched(folder, **given)
        router = await asyncio.to_thread(running.__enter__)
        try:
            yield Apart(router.pid, router.port, folder)
            assert router.process.poll() is None, "the router ended by itself"
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)
