"""The router's process: sockets opened and closed, the sweep that watches deadlines and the table."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.providers.secrets import Secrets
from servestate.runtime.router.client import ClientConnection
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.routing import LiveTable, Registry
from servestate.runtime.router.status import ControlConnection, endpoints_report, replicas_report
from servestate.runtime.router.table_watch import TableWatch

OnReady = Callable[[str], None]

_BACKLOG = 1024
_SOCKET_PATH_BYTES = 107  # sockaddr_un of Linux, less the closing NUL


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Where the table is read, where to listen (port 0 = any free one), and within which limits."""

    table_path: Path
    control_path: Path
    host: str
    port: int
    secrets: Secrets
    limits: Limits = field(default_factory=Limits)


def run(config: RouterConfig, on_ready: OnReady | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Raises InvalidInput SS601..SS604 if it cannot start."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config, on_ready))


async def serve(config: RouterConfig, on_ready: OnReady | None = None) -> int:
    """As `run`, in the running loop. `on_ready` is called with the URL once requests are accepted."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        router = Router(config)
        await router.start()
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
        require_loopback(config.host)
        self._config = config
        self.limits = config.limits
        self.clients: set[ClientConnection] = set()
        self.stopping = False
        self._started = time.time()
        self._registry = Registry(config.limits, config.secrets, int(self._started))
        self._watch = TableWatch(config.table_path, self._registry.admit)
        self.table: LiveTable = self._watch.table
        self._loop: asyncio.AbstractEventLoop
        self._servers: list[asyncio.Server] = []
        self._empty = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.url = ""

    async def start(self) -> None:
        """Open both sockets. Raises InvalidInput SS603 (port), SS604 (control socket)."""
        self._loop = loop = asyncio.get_running_loop()
        listening = _listen(self._config.host, self._config.port)
        try:
            control = _listen_control(self._config.control_path)
        except BaseException:
            listening.close()
            raise
        self._servers = [
            await loop.create_server(lambda: ClientConnection(self, loop), sock=listening, backlog=_BACKLOG),
            await loop.create_unix_server(lambda: ControlConnection(self.report, self.limits), sock=control),
        ]
        host, port = listening.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._every(self.limits.tick_s, "sweep", self._sweep)
        self._every(self.limits.table_poll_s, "table", self._look_at_table)
        gc.collect()
        gc.freeze()  # what stands now stays for ever: no collection needs to look at it

    async def stop(self) -> None:
        """Stop accepting, let requests in flight end within `limits.drain_s`, close everything."""
        self.stopping = True
        self._servers[0].close()
        for client in list(self.clients):
            client.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), self.limits.drain_s if self.clients else 0)
        for client in list(self.clients):
            client.abort()
        for timer in self._timers.values():
            timer.cancel()
        for origin in self._registry.origins.values():
            origin.retire()
        self._servers[1].close()
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
        for origin in self._registry.origins.values():
            origin.close_idle(before=now - self.limits.upstream_idle_s)

    def _look_at_table(self) -> None:
        if self._watch.poll():
            self.table = self._watch.table


def require_loopback(host: str) -> None:
    """Raises InvalidInput SS601 unless `host` can only be reached from this machine: without caller keys
    whoever reaches the port may use every model behind it."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise _invalid(
            "SS601",
            f"refusing to listen on {host!r}: no caller keys are configured",
            "listen on 127.0.0.1, ::1 or localhost",
        )


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
