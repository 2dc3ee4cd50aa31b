"""The router's process: sockets opened and closed, the sweep that watches deadlines and the table."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import uvloop

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.spec.access_rules import is_loopback
from servestate.providers.secrets import Secrets
from servestate.runtime.router.access import Access
from servestate.runtime.router.browser import own_names
from servestate.runtime.router.client import ClientConnection, Management
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.routing import LiveTable, Registry
from servestate.runtime.router.status import ControlConnection, endpoints_report, replicas_report
from servestate.runtime.router.table_watch import TableWatch
from servestate.runtime.router.upstream import Origin, UnixOrigin

OnReady = Callable[[str], None]

_BACKLOG = 1024
_SOCKET_PATH_BYTES = 107  # sockaddr_un of Linux, less the closing NUL


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Where the table is read, where to listen (port 0 = any free one), and within which limits.

    `management` is the host and port of the listener that also relays to the management API, whose socket is
    `api_path`; both or neither are given. `keyring_path` says who may call; None: everybody. `plaintext`
    names the listeners (`router`, `management`) that others than this machine may reach without TLS.
    """

    table_path: Path
    control_path: Path
    host: str
    port: int
    secrets: Secrets
    limits: Limits = field(default_factory=Limits)
    management: tuple[str, int] | None = None
    api_path: Path | None = None
    keyring_path: Path | None = None
    plaintext: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if (self.management is None) != (self.api_path is None):
            raise ValueError("management and api_path are given together")


def run(config: RouterConfig, on_ready: OnReady | None = None, on_management: OnReady | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Raises InvalidInput SS601..SS604 and SS610 if it cannot
    start."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config, on_ready, on_management))


async def serve(
    config: RouterConfig, on_ready: OnReady | None = None, on_management: OnReady | None = None
) -> int:
    """As `run`, in the running loop. Once requests are accepted `on_management`, where there is such a
    listener, and then `on_ready` are called with the URLs."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        router = Router(config)
        await router.start()
        if on_management is not None and router.management_url:
            on_management(router.management_url)
        if on_ready is not None:
            on_ready(router.url)
        await stop.wait()
        await router.stop()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return 0


class Router:
    """One running router. Everything here belongs to the loop it was started in."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self.access = Access(config.keyring_path, exposed=_is_exposed(config))
        self.limits = config.limits
        self.clients: set[ClientConnection] = set()
        self.stopping = False
        self._started = time.time()
        self._registry = Registry(config.limits, config.secrets, int(self._started))
        self._watch = TableWatch(config.table_path, self._registry.admit)
        self.table: LiveTable = self._watch.table
        self._loop: asyncio.AbstractEventLoop
        self._api: Origin | None = None
        self._servers: list[asyncio.Server] = []
        self._control: asyncio.Server
        self._empty = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.url = self.management_url = ""

    async def start(self) -> None:
        """Open all sockets. Raises InvalidInput SS603 (port), SS604 (control socket)."""
        self._loop = loop = asyncio.get_running_loop()
        config = self._config
        with contextlib.ExitStack() as opened:
            listening = opened.enter_context(_listen(config.host, config.port))
            managing = opened.enter_context(_listen(*config.management)) if config.management else None
            control = _listen_control(config.control_path)
            opened.pop_all()
        if managing is not None:
            await self._manage(managing, loop)
        self._servers.append(await self._serve(lambda: ClientConnection(self, loop), listening, loop))
        self._control = await loop.create_unix_server(
            lambda: ControlConnection(self.report, self.limits), sock=control
        )
        self.url = _url(listening)
        self._every(self.limits.tick_s, "sweep", self._sweep)
        self._every(self.limits.table_poll_s, "files", self._look_at_files)
        gc.collect()
        gc.freeze()  # what stands now stays for ever: no collection needs to look at it

    async def _manage(self, listening: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """Answer for the management API as well."""
        config = self._config
        assert config.management is not None
        assert config.api_path is not None
        self._api = UnixOrigin(config.api_path, config.limits)
        management = Management(self._api, own_names(config.management[0]))
        server = await self._serve(lambda: ClientConnection(self, loop, management), listening, loop)
        self._servers.append(server)
        self.management_url = _url(listening)

    async def _serve(
        self,
        connection: Callable[[], ClientConnection],
        listening: socket.socket,
        loop: asyncio.AbstractEventLoop,
    ) -> asyncio.Server:
        return await loop.create_server(connection, sock=listening, backlog=_BACKLOG)

    async def stop(self) -> None:
        """Stop accepting, let requests in flight end within `limits.drain_s`, close everything."""
        self.stopping = True
        for server in self._servers:
            server.close()
        for client in list(self.clients):
            client.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), self.limits.drain_s if self.clients else 0)
        for client in list(self.clients):
            client.abort()
        for timer in self._timers.values():
            timer.cancel()
        for origin in self._origins():
            origin.retire()
        self._control.close()
        self._config.control_path.unlink(missing_ok=True)
        await asyncio.sleep(0)

    def left(self, client: ClientConnection) -> None:
        """See `client.Desk`."""
        self.clients.discard(client)
        if self.stopping and not self.clients:
            self._empty.set()

    def report(self) -> dict[str, Any]:
        """The answer to `GET /status`."""
        return {
            "pid": os.getpid(),
            "started_at": self._started,
            "listen": self.url,
            "management": self.management_url or None,
            "access": "open" if self.access.open else "tokens",
            "access_error": self.access.error,
            "table_version": self.table.source.version,
            "table_error": self._watch.error,
            "table_copy_error": self._watch.copy_error,
            "connections": len(self.clients),
            "endpoints": endpoints_report(self.table),
            "replicas": replicas_report(self._registry.gauges),
        }

    def _every(self, seconds: float, name: str, work: Callable[[], None]) -> None:
        def again() -> None:
            self._timers[name] = self._loop.call_later(seconds, again)
            work()

        again()

    def _sweep(self) -> None:
        now = self._loop.time()
        for client in [client for client in self.clients if client.deadline < now]:
            client.expire()
        for origin in self._origins():
            origin.close_idle(before=now - self.limits.upstream_idle_s)

    def _origins(self) -> Iterable[Origin]:
        mine = () if self._api is None else (self._api,)
        return chain(self._registry.origins.values(), mine)

    def _look_at_files(self) -> None:
        self.access.poll(self._loop.time())
        if self._watch.poll():
            self.table = self._watch.table


def _is_exposed(config: RouterConfig) -> bool:
    """Whether others than this machine reach a listener. Raises InvalidInput SS601 for one of which nobody
    said that tokens may cross the network readable by others."""
    listeners = {"router": config.host}
    if config.management is not None:
        listeners["management"] = config.management[0]
    exposed = {name: host for name, host in listeners.items() if not is_loopback(host)}
    for name, host in exposed.items():
        if name not in config.plaintext:
            raise _invalid(
                "SS601",
                f"refusing to listen on {host!r}: what is sent there, tokens too, is readable by others",
                "listen on 127.0.0.1, ::1 or localhost, or put a proxy that ends TLS in front and set "
                f"servestate.{name}.plaintext: true",
            )
    return bool(exposed)


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise _invalid(
            "SS603",
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            "stop what uses the port, choose another, or 0 for any free one",
        ) from None
    return sock


def _listen_control(path: Path) -> socket.socket:
    """The control socket, for this user only. A file left by a router that died is replaced."""
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise _invalid(
            "SS604",
            f"the control socket's path is longer than {_SOCKET_PATH_BYTES} bytes: {path}",
            "shorten it",
        )
    if _answers(path):
        raise _invalid("SS604", f"another router answers on {path}", "stop it first")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        sock.bind(os.fspath(path))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise _invalid(
            "SS604", f"cannot open the control socket {path}: {error.strerror or error}", "check its folder"
        ) from None
    finally:
        os.umask(mask)
    return sock


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


def _invalid(code: str, what: str, fix: str) -> InvalidInput:
    return InvalidInput([Diagnostic(code, what, fix)])
