"""A router under test, in the test's own loop, and raw clients for it."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from servestate.planner.table import RoutingTable
from servestate.planner.table_file import encode
from servestate.providers.secrets import EnvSecrets
from servestate.runtime.router import Limits, Router, RouterConfig

QUICK = Limits(tick_s=0.01, table_poll_s=0.01)
CHAT = b'{"model":"chat-ep","messages":[{"role":"user","content":"hi"}]}'


def run(body: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine on the loop that the router uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body)


def write_table(path: Path, table: RoutingTable) -> None:
    part = path.with_suffix(".part")
    part.write_text(encode(table), "utf-8")
    os.replace(part, path)


@dataclass
class Rig:
    """A running router with its files."""

    router: Router
    config: RouterConfig

    @property
    def port(self) -> int:
        return int(self.router.url.rsplit(":", 1)[1])

    def install(self, table: RoutingTable) -> None:
        write_table(self.config.table_path, table)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 25)

    def counters(self, endpoint: str, entity: str) -> dict[str, int]:
        return self.router.report()["endpoints"][endpoint]["entities"][entity]

    def inflight(self) -> int:
        report = self.router.report()
        entities = [e for p in report["endpoints"].values() for e in p["entities"].values()]
        return sum(e["inflight"] for e in entities) + sum(r["inflight"] for r in report["replicas"].values())


@asynccontextmanager
async def serving(
    table: RoutingTable, limits: Limits = QUICK, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="ss-router-") as folder:
        path = Path(folder, "table.json")
        write_table(path, table)
        config = RouterConfig(
            path, Path(folder, "control.sock"), "127.0.0.1", 0, EnvSecrets(environ or {}), limits
        )
        router = Router(config)
        await router.start()
        try:
            yield Rig(router, config)
        finally:
            for client in list(router.clients):
                client.abort()
            await router.stop()


@dataclass
class Answer:
    """An answer as it came. `whole`: its framing says that nothing is missing."""

    status: int
    fields: dict[str, str]
    body: bytes
    whole: bool
    closed: bool
    surplus: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    body: bytes = CHAT, target: str = "/v1/chat/completions", fields: str = "", method: str = "POST"
) -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """The next answer, or what there is of it (status 0: nothing at all)."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        partial = getattr(error, "partial", b"")
        return Answer(0, {}, partial, whole=False, closed=True)
    lines = head.decode("latin-1").split("\r\n")[:-2]
    status = int(lines[0].split(" ")[1])
    fields = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines[1:])}
    body, whole = await _read_body(reader, status, fields)
    closed = reader.at_eof() or fields.get("connection") == "close" or not whole
    return Answer(status, fields, body, whole, closed)


async def _read_body(
    reader: asyncio.StreamReader, status: int, fields: Mapping[str, str]
) -> tuple[bytes, bool]:
    if status == 204 or 100 <= status < 200:
        return b"", True
    body = b""
    try:
        if fields.get("transfer-encoding") == "chunked":
            while True:
                size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
                data = await reader.readexactly(size + 2)
                if size == 0:
                    return body, True
                body += data[:-2]
        if "content-length" in fields:
            body = await reader.readexactly(int(fields["content-length"]))
            return body, True
        return await reader.read(-1), True
    except asyncio.IncompleteReadError as error:
        return body + error.partial, False
    except ConnectionError:
        return body, False


async def ask(rig: Rig, data: bytes) -> Answer:
    """One request on a connection of its own."""
    reader, writer = await rig.connect()
    writer.write(data)
    try:
        return await read_answer(reader)
    finally:
        writer.close()


async def until(condition: Callable[[], bool], within: float = 5.0) -> None:
    """Wait for the thing itself."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while not condition():
        assert loop.time() < end, "it did not happen in time"
        await asyncio.sleep(0.002)


async def bounded(awaitable: Awaitable[Any], seconds: float = 10.0) -> Any:
    return await asyncio.wait_for(awaitable, seconds)
