"""A router that keeps books: usage, inference tables and an access log, in files."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servestate.planner.table import RoutingTable
from servestate.providers.secrets import EnvSecrets
from servestate.runtime.keyring import Keyring, write_keyring
from servestate.runtime.router import Limits, RouterConfig
from servestate.runtime.router.records.keeping import AccessLogConfig, BooksConfig
from tests.router.rig import QUICK, Rig, running, until, write_table


@dataclass
class KeepingRig(Rig):
    """A rig whose router writes into `folder`."""

    folder: Path = Path()

    async def usage(self, count: int) -> list[dict[str, Any]]:
        """The lines of usage, once there are so many."""
        return await _lines(self.folder / "usage", count)

    async def payloads(self, count: int, table: str = "main.logs.chat") -> list[dict[str, Any]]:
        """The rows of an inference table, once there are so many."""
        return await _lines(self.folder / "inference" / table, count)

    async def access(self, count: int) -> list[dict[str, Any]]:
        """The lines of the access log, once there are so many."""
        return await _lines(self.folder / "log", count)


async def _lines(folder: Path, count: int) -> list[dict[str, Any]]:
    def read() -> list[dict[str, Any]]:
        files = sorted(folder.glob("*")) if folder.exists() else []
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    await until(lambda: len(read()) >= count)
    return read()


@asynccontextmanager
async def keeping(
    table: RoutingTable,
    folder: Path,
    limits: Limits = QUICK,
    keyring: Keyring | None = None,
    *,
    otlp: str = "",
) -> AsyncIterator[KeepingRig]:
    """See `rig.serving`. Whatever is to be kept is in files when the block is left."""
    path, keys = folder / "table.json", folder / "access.json"
    write_table(path, table)
    if keyring is not None:
        write_keyring(keys, keyring)
    config = RouterConfig(
        table_path=path,
        control_path=folder / "control.sock",
        host="127.0.0.1",
        port=0,
        secrets=EnvSecrets({}),
        limits=limits,
        keyring_path=keys if keyring is not None else None,
        books=BooksConfig(AccessLogConfig(folder / "log" / "access.jsonl"), folder, otlp),
    )
    async with running(config) as router:
        yield KeepingRig(router, config, folder)
