"""A router under test, in the test's own loop, and raw clients for it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import tempfile
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from servestate.planner.spec.site import Access
from servestate.planner.table import RoutingTable
from servestate.planner.table_file import encode
from servestate.providers.secrets import EnvSecrets, Secret
from servestate.runtime.keyring import Keyring, keyring_of, write_keyring
from servestate.runtime.router import Limits, Router, RouterConfig
from servestate.runtime.router.process.listen import control_socket, open_all
from servestate.runtime.router.process.service import Service
from servestate.runtime.router.process.status import ControlConnection
from servestate.runtime.router.records.exposition import expose

QUICK = Limits(tick_s=0.01, table_poll_s=0.01)
CHAT = b'{"model":"chat-ep","messages":[{"role":"user","content":"hi"}]}'


def chat(text: str = "hi", **more: Any) -> bytes:
    """A chat request's body with fields beyond those of `CHAT`."""
    return json.dumps({"model": "chat-ep", "messages": [{"role": "user", "content": text}], **more}).encode()


def run(body: Coroutine[Any, Any, None], *, spoilt: bool = False) -> None:
    """Run a test's coroutine on the loop that the router uses. What is raised where nobody catches it, in the
    callback of a connection or in a task, fails the test too: the loop by itself would log it and go on.
    `spoilt`: the test has taken something out of the router, which may well raise for the lack of it."""
    unhandled: list[str] = []

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        said = traceback.format_exception(error) if error is not None else []
        unhandled.append("".join([context["message"], "\n", *said]))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(note)
        runner.run(body)
    assert spoilt or not unhandled, unhandled[0]


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

    @property
    def management_port(self) -> int:
        return int(self.router.management_url.rsplit(":", 1)[1])

    async def connect(self, port: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", port or self.port, limit=1 << 25)

    def let_in(self, keyring: Keyring) -> None:
        assert self.config.keyring_path is not None
        write_keyring(self.config.keyring_path, keyring)

    def counters(self, endpoint: str, entity: str) -> dict[str, int]:
        return self.router.report()["endpoints"][endpoint]["entities"][entity]

    def inflight(self) -> int:
        report = self.router.report()
        entities = [e for p in report["endpoints"].values() for e in p["entities"].values()]
        return sum(e["inflight"] for e in entities) + sum(r["inflight"] for r in report["replicas"].values())


@asynccontextmanager
async def running(config: RouterConfig) -> AsyncIterator[Router]:
    """A router in this loop, less the process around it; whatever still runs at the end is cut off."""
    router = Router(config)
    await router.start(open_all((config.host, config.port), config.management))
    try:
        yield router
    finally:
        router.abort()
        await router.stop()


@asynccontextmanager
async def serving(
    table: RoutingTable,
    limits: Limits = QUICK,
    environ: Mapping[str, str] | None = None,
    *,
    api: Path | None = None,
    keyring: Keyring | None = None,
) -> AsyncIterator[Rig]:
    """A router. `api` is the socket of the management API, whose listener it then has too."""
    with tempfile.TemporaryDirectory(prefix="ss-router-") as folder:
        path = Path(folder, "table.json")
        write_table(path, table)
        keys = None
        if keyring is not None:
            keys = Path(folder, "access.json")
            write_keyring(keys, keyring)
        config = RouterConfig(
            table_path=path,
            control_path=Path(folder, "control.sock"),
            host="127.0.0.1",
            port=0,
            secrets=EnvSecrets(environ or {}),
            limits=limits,
            management=("127.0.0.1", 0) if api else None,
            api_path=api,
            keyring_path=keys,
        )
        async with running(config) as router:
            control = await asyncio.get_running_loop().create_unix_server(
                lambda: ControlConnection(_Reports(router), limits), sock=control_socket(config.control_path)
            )
            try:
                yield Rig(router, config)
            finally:
                control.close()


@dataclass(frozen=True)
class _Reports:
    """What the control socket tells of a router that has one process."""

    router: Router

    async def report(self) -> dict[str, Any]:
        return self.router.report()

    async def exposition(self) -> bytes:
        return expose(self.router.snapshot())


def config(folder: Path, **more: object) -> RouterConfig:
    """Of a router with the table in `folder`, on any free port, but for `more`."""
    values = {"host": "127.0.0.1", "port": 0, "secrets": EnvSecrets({}), "limits": QUICK, **more}
    return RouterConfig(folder / "table.json", folder / "control.sock", **values)  # type: ignore[arg-type]


def service(config: RouterConfig) -> Service:
    """The whole router of a configuration, not started yet."""
    return Service(config, print, lambda: None)


@dataclass
class Answer:
    """An answer as it came. `whole`: its framing says that nothing is missing. Of fields that came twice
    `fields` has the last; `head` has them all."""

    status: int
    fields: dict[str, str]
    body: bytes
    whole: bool
    closed: bool
    head: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    body: bytes = CHAT,
    target: str = "/v1/chat/completions",
    fields: str = "",
    method: str = "POST",
    host: str = "localhost",
) -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
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
    return Answer(status, fields, body, whole, closed, head)


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


def past_the_loop(writer: asyncio.StreamWriter) -> socket.socket:
    """The socket itself, to be closed by the caller: what is done to several of them without a wait is found
    by the loop all at once, in that order."""
    return socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the end, however that comes."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def ask(rig: Rig, data: bytes, port: int = 0) -> Answer:
    """One request on a connection of its own."""
    reader, writer = await rig.connect(port)
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


async def settled(number: Callable[[], int], for_s: float) -> int:
    """The number, once it is above 0 and has stayed the same for so long."""
    await until(lambda: number() > 0)
    while True:
        before = number()
        await asyncio.sleep(for_s)
        if number() == before:
            return before


async def bounded(awaitable: Awaitable[Any], seconds: float = 10.0) -> Any:
    return await asyncio.wait_for(awaitable, seconds)


class _SiteKey:
    """Secrets that know the site's key only."""

    def get(self, scope: str, key: str) -> Secret:
        return Secret("5a" * 32)


def keyring(*hosts: str, **tokens: Mapping[str, Any]) -> Keyring:
    """`TOKEN={...}`: tokens, each with its fields of `servestate.access.tokens` beside the hash."""
    entries = [
        {"sha256": hashlib.sha256(token.encode()).hexdigest(), **fields} for token, fields in tokens.items()
    ]
    return keyring_of(Access.model_validate({"tokens": entries, "hosts": hosts}), _SiteKey())


def bearer(token: str) -> str:
    """The header line."""
    return f"Authorization: Bearer {token}\r\n"
