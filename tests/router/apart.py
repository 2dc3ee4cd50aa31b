"""A router in a process of its own: its memory, its processor time and its file limit are then its alone."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servestate.planner.table import RoutingTable
from servestate.runtime.router import Limits
from tests.router.rig import write_table

PROGRAM = """
import json, os, resource, sys
from pathlib import Path
from servestate.providers.secrets import EnvSecrets
from servestate.runtime.router import Limits, RouterConfig, run
folder, limits, files = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
if files:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
config = RouterConfig(
    table_path=folder / "table.json", control_path=folder / "control.sock", host="127.0.0.1", port=0,
    secrets=EnvSecrets(os.environ), limits=Limits(**limits),
)
sys.exit(run(config, lambda url: print(url, flush=True)))
"""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Apart:
    """The process, and where it listens."""

    process: asyncio.subprocess.Process
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
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def files(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    async def report(self) -> dict[str, Any]:
        """What the control socket answers to `GET /status`."""
        reader, writer = await asyncio.open_unix_connection(self.folder / "control.sock")
        writer.write(b"GET /status HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        raw = await reader.read()
        writer.close()
        found: dict[str, Any] = json.loads(raw.partition(b"\r\n\r\n")[2])
        return found

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
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
        given = json.dumps(_changed(limits or Limits()))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, name, given, str(files), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            url = await asyncio.wait_for(process.stdout.readline(), 30)
            yield Apart(process, int(url.rsplit(b":", 1)[1]), folder)
            assert process.returncode is None, "the router ended by itself"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
