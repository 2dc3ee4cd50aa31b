"""Routers as processes of their own, clients that keep calling, and a ledger of what became of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.router.rig import Answer, bounded, read_answer, request, until

PROGRAM = """
import json, os, resource, sys
from pathlib import Path
from servestate.providers.site_secrets import SiteSecrets
from servestate.runtime.router import Limits, RouterConfig, run
from servestate.runtime.router.process.tls import TlsFiles
folder = Path(sys.argv[1])
given = json.loads(sys.argv[2])
if "files" in given:
    resource.setrlimit(resource.RLIMIT_NOFILE, (given["files"], given.pop("files")))
tls = given.pop("tls", None)
replace = given.pop("replace", False)
keyring = given.pop("keyring", None)
managed = given.pop("managed", False)
config = RouterConfig(
    folder / "table.json", folder / "control.sock", given.pop("host", "127.0.0.1"), given.pop("port", 0),
    SiteSecrets(folder / "engine.key", folder / "kept.json"), workers=given.pop("workers", 1),
    inflight=given.pop("bound", None),
    keyring_path=Path(keyring) if keyring else None, tls=TlsFiles(*map(Path, tls)) if tls else None,
    management=("127.0.0.1", 0) if managed else None, api_path=folder / "api.sock" if managed else None,
    limits=Limits(**given),
)
sys.exit(run(
    config, lambda url: print(url, flush=True), replace=replace,
    on_alone=lambda: print("alone", flush=True), tell=lambda line: print(line, file=sys.stderr, flush=True),
))
"""


@dataclass
class Process:
    """A router that runs. `said` is what it wrote on standard error, once it has ended."""

    process: subprocess.Popen[str]
    folder: Path
    url: str
    said: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def line(self) -> str:
        """The next line on standard output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, number: int = signal.SIGTERM, within_s: float = 20) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.wait(within_s)

    def wait(self, within_s: float = 20) -> int:
        """The exit code, once it has ended."""
        _, said = self.process.communicate(timeout=within_s)
        self.said += said
        return self.process.returncode


@contextmanager
def launched(folder: Path, environ: dict[str, str] | None = None, **given: Any) -> Iterator[Process]:
    """A router process that accepts connections, on the table in `folder`. `given` are `workers`, `host`,
    `port`, `bound` (on requests under way), `tls` (two paths), `keyring` (a path), `replace`, `files` (the
    bound on descriptors), `managed` (whether there is a management listener), and any of `Limits`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environ or {})},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, process.communicate(timeout=10)[1]
        yield Process(process, folder, url)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


async def connect(
    port: int, tls: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a router on this machine, over TLS to one called localhost."""
    name = "localhost" if tls else None
    return await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name)


async def ask(port: int, data: bytes = b"", tls: ssl.SSLContext | None = None) -> Answer:
    """One request on a connection of its own: `data`, or a chat."""
    reader, writer = await connect(port, tls)
    writer.write(data or request())
    try:
        return await bounded(read_answer(reader))
    finally:
        writer.close()


async def serves_again(port: int, within_s: float = 1.0) -> None:
    """Return once somebody new is answered."""
    end = time.monotonic() + within_s
    while True:
        with suppress(OSError):
            if (await ask(port)).status == 200:
                return
        assert time.monotonic() < end, "nobody new is served"


async def refuses(port: int) -> None:
    """Return once nobody listens on that port, as the system tells (proc(5)): whoever asked by connecting
    could be reset by the very end that is waited for."""
    listening = f":{port:04X} 00000000:0000 0A "
    await until(lambda: listening not in Path("/proc/net/tcp").read_text())


def status(folder: Path) -> dict[str, Any]:
    """What the router says on its control socket. Raises OSError, and ValueError for what is no status."""
    return json.loads(control(folder, "/status"))


def control(folder: Path, path: str) -> bytes:
    """The body of an answer of the control socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(folder / "control.sock"))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise ValueError(answer.decode())
    return body


async def when(folder: Path, holds: Any, within_s: float = 10) -> dict[str, Any]:
    """The status, once it is as wanted."""
    end = time.monotonic() + within_s
    while True:
        found = {}
        with suppress(OSError, ValueError):
            found = await asyncio.to_thread(status, folder)
            if holds(found):
                return found
        assert time.monotonic() < end, found
        await asyncio.sleep(0.01)


@dataclass
class Ledger:
    """What became of every call. `refused` are connections that could not be made, `broken` answers that did
    not come whole; `slowest` is the longest that one took, in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    entities: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def failures(self) -> list[str]:
        """Whatever was no whole answer with status 200, and that there was none at all."""
        others = [f"{count} times {status}" for status, count in self.statuses.items() if status != 200]
        return [*self.refused, *self.broken, *others, *([] if self.statuses[200] else ["nothing was served"])]

    def note(self, answer: Answer, began: float) -> None:
        """Enter an answer."""
        self.slowest = max(self.slowest, time.monotonic() - began)
        if not answer.whole:
            self.broken.append(f"{answer.status} {answer.body!r}")
            return
        self.statuses[answer.status] += 1
        self.entities[answer.fields.get("served-model-name", "")] += 1


@asynccontextmanager
async def load(
    port: int,
    clients: int = 8,
    *,
    host: str = "127.0.0.1",
    reuse: int = 20,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Ledger]:
    """Clients that call one after the other for as long as the body runs, each on a connection that it
    replaces after `reuse` calls, or when it was told that it closes."""
    ledger = Ledger()
    done = asyncio.Event()
    tasks = [asyncio.create_task(_client(ledger, done, host, port, reuse, tls)) for _ in range(clients)]
    try:
        yield ledger
    finally:
        done.set()
        await asyncio.gather(*tasks)


async def _client(
    ledger: Ledger, done: asyncio.Event, host: str, port: int, reuse: int, tls: ssl.SSLContext | None
) -> None:
    while not done.is_set():
        try:
            reader, writer = await asyncio.open_connection(
                host, port, ssl=tls, server_hostname="localhost" if tls else None
            )
        except OSError as error:
            ledger.refused.append(str(error))
            await asyncio.sleep(0.01)
            continue
        for _ in range(reuse):
            began = time.monotonic()
            try:
                writer.write(request())
                answer = await read_answer(reader)
            except OSError as error:
                ledger.broken.append(str(error))
                break
            ledger.note(answer, began)
            if done.is_set() or answer.closed:
                break
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
