"""One process that answers: its connections, and the sweep that watches deadlines and files."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from socket import socket
from typing import Any, cast

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.spec.access_rules import is_loopback
from servestate.planner.table import RoutingTable
from servestate.providers.secrets import Secrets
from servestate.runtime.router.access import Access
from servestate.runtime.router.balance.prober import Prober
from servestate.runtime.router.client import ClientConnection, Management
from servestate.runtime.router.http.browser import own_names
from servestate.runtime.router.http.upstream import Origin, UnixOrigin
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.parties import Desk
from servestate.runtime.router.process.handshakes import TlsServer
from servestate.runtime.router.process.listen import BACKLOG, Sockets, url_of
from servestate.runtime.router.process.status import (
    endpoints_report,
    limited_report,
    replicas_report,
    states_report,
)
from servestate.runtime.router.process.tls import Certificate, TlsFiles
from servestate.runtime.router.quota.memory import Memory
from servestate.runtime.router.records.books import Books
from servestate.runtime.router.records.families import Snapshot
from servestate.runtime.router.records.keeping import BooksConfig
from servestate.runtime.router.routing import LiveTable, Registry
from servestate.runtime.router.table_watch import TableWatch

_RESERVED_FILES = 64
"""Descriptors for all else: listeners, control, files that are looked at and written."""


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Where the table is read, where to listen (port 0 = any free one), and within which limits.

    `management` is the host and port of the listener that also relays to the management API, whose socket is
    `api_path`; both or neither are given. `keyring_path` says who may call; None: everybody. `keyring_draft`
    is read in its place as long as it is there. `tls` and `management_tls` have a listener end TLS itself;
    `plaintext` names the listeners (`router`, `management`) that others than this machine may reach without.
    `workers` is how many processes answer; with more than one, `secrets` has to be of a kind that can be
    pickled (`SiteSecrets`). `inflight` bounds the requests to models under way of all workers together, where
    that is wanted. `books` says what is kept of requests beyond metrics.
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
    keyring_draft: Path | None = None
    plaintext: frozenset[str] = frozenset()
    tls: TlsFiles | None = None
    management_tls: TlsFiles | None = None
    workers: int = 1
    inflight: int | None = None
    books: BooksConfig = field(default_factory=BooksConfig)

    def __post_init__(self) -> None:
        if (self.management is None) != (self.api_path is None):
            raise ValueError("management and api_path are given together")

    def share(self, index: int) -> RouterConfig:
        """As the worker at that place is told: of `inflight` its part, one more for the first few where it
        does not divide; one at least, since a worker without any would refuse whatever comes to it."""
        if self.inflight is None:
            return self
        part, more = divmod(self.inflight, self.workers)
        own = max(1, part + (index < more))
        return replace(self, inflight=None, limits=replace(self.limits, inflight=own))


_SWITCH_S = 0.001
"""How long a thread that writes or judges may keep the loop waiting for the interpreter."""


class Router:
    """One process's router. Everything here belongs to the loop it was started in. `memory` holds what all
    workers count together."""

    def __init__(self, config: RouterConfig, memory: Memory | None = None) -> None:
        """Raises InvalidInput SS601, SS602, SS610, SS611 and SS640."""
        self._config = config
        access = Access(config.keyring_path, draft=config.keyring_draft, exposed=_is_exposed(config))
        self.limits = _within_reach(config.limits)
        self._started = time.time()
        self._memory = memory or Memory.private()
        self._registry = Registry(config.limits, config.secrets, int(self._started), self._memory)
        self.books = Books(config.books, config.secrets, self._memory.worker)
        self._watch = TableWatch(config.table_path, self._admit)
        self._empty = asyncio.Event()
        self.desk = Desk(access, self.limits, self.books, self._watch.table, self._empty.set)
        self._adopt()
        self._tls = _certificate(config.tls)
        self._management_tls = _certificate(config.management_tls)
        self._prober = Prober(lambda: self.desk.table, config.limits.health, self.books.metrics.ejections.add)
        self._loop: asyncio.AbstractEventLoop
        self._api: Origin | None = None
        self._servers: list[asyncio.Server] = []
        self._tls_servers: list[TlsServer] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.url = self.management_url = ""

    async def start(self, sockets: Sockets) -> None:
        """Answer on those sockets, which are closed with `stop`."""
        self._loop = asyncio.get_running_loop()
        if sockets.management:
            await self._manage(sockets.management)
        await self._serve(self._accepted, sockets.router, self._tls)
        self.url = url_of(sockets.router, _scheme(self._tls))
        self._prober.start(self._loop)
        sys.setswitchinterval(_SWITCH_S)
        self._every(self.limits.tick_s, "sweep", self._sweep)
        self._every(self.limits.table_poll_s, "files", self._look_at_files)
        gc.collect()
        gc.freeze()  # what stands now stays for ever: no collection needs to look at it

    async def _manage(self, sockets: tuple[socket, ...]) -> None:
        """Answer for the management API as well."""
        config = self._config
        assert config.management is not None
        assert config.api_path is not None
        self._api = UnixOrigin(config.api_path, config.limits)
        reports = UnixOrigin(config.control_path, config.limits)
        management = Management(self._api, reports, own_names(config.management[0]))
        tls = self._management_tls
        await self._serve(lambda: self._accepted(management), sockets, tls)
        self.management_url = url_of(sockets, _scheme(tls))

    async def _serve(
        self, connection: Callable[[], asyncio.Protocol], sockets: Iterable[socket], tls: Certificate | None
    ) -> None:
        for sock in sockets:
            if tls is None:
                self._servers.append(await self._loop.create_server(connection, sock=sock, backlog=BACKLOG))
            else:
                self._tls_servers.append(
                    TlsServer(connection, sock, tls.context, self.limits.header_s, self._has_room)
                )

    @property
    def _connections(self) -> int:
        return len(self.desk.clients) + sum(server.pending for server in self._tls_servers)

    def _has_room(self) -> bool:
        return self._connections < self.limits.client_sockets

    def _accepted(self, management: Management | None = None) -> asyncio.Protocol:
        """What a new connection is given to: one of the too many is told so, one of far too many is not."""
        if self._connections >= 2 * self.limits.client_sockets:
            return _Dropped()
        return cast(asyncio.Protocol, ClientConnection(self.desk, self._loop, management))

    async def stop(self) -> None:
        """Stop accepting, let requests in flight end within `limits.drain_s`, close everything."""
        self.desk.stopping = True  # from now on every answer says that the connection closes
        for server in self._servers:
            server.close()
        for tls_server in self._tls_servers:
            tls_server.close()
        deadline = self._loop.time() + self.limits.drain_s
        for client in list(self.desk.clients):
            if not client.idle:
                client.stop()
        await self._emptied(min(self.limits.farewell_s, self.limits.drain_s))
        for tls_server in self._tls_servers:
            tls_server.abort()
        for client in list(self.desk.clients):
            client.stop()
        await self._emptied(deadline - self._loop.time())
        self.abort()
        self._prober.stop()
        for timer in self._timers.values():
            timer.cancel()
        for origin in self._origins():
            origin.retire()
        await asyncio.sleep(0)
        self.desk.guards.close()
        self.books.close()

    def abort(self) -> None:
        """Close all connections at once."""
        for client in list(self.desk.clients):
            client.abort()
        for tls_server in self._tls_servers:
            tls_server.abort()

    async def _emptied(self, within_s: float) -> None:
        """Until nobody is connected, or that time is over."""
        await asyncio.sleep(0)  # what the loop has accepted is handed to us in its next turn
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                for tls_server in self._tls_servers:
                    await tls_server.shaken()
                while self.desk.clients:
                    self._empty.clear()
                    await self._empty.wait()

    def brief(self) -> dict[str, Any]:
        """Of `report`, what is asked again and again while something ends; of the replicas those alone that
        requests run on. It costs little, however many endpoints there are."""
        gauges = self._registry.gauges
        return {
            "table_version": self.desk.table.source.version,
            "table_error": self._watch.error,
            "connections": self._connections,
            "inflight": self.desk.inflight,
            "replicas": {name: {"inflight": one.inflight} for name, one in gauges.items() if one.inflight},
        }

    def report(self) -> dict[str, Any]:
        """What this process says of itself; see `status.merged`."""
        return {
            "pid": os.getpid(),
            "started_at": self._started,
            "listen": self.url,
            "management": self.management_url or None,
            "access": "open" if self.desk.access.open else "tokens",
            "table_version": self.desk.table.source.version,
            **self._file_errors(),
            "connections": self._connections,
            "inflight": self.desk.inflight,
            "endpoints": endpoints_report(self.desk.table),
            "replicas": replicas_report(self._registry.gauges, time.monotonic()),
            "books": self.books.report(),
        }

    def troubles(self) -> dict[str, str]:
        """Of `report`, what cannot be done at the moment, with the reason; see `troubles.TROUBLES`."""
        errors = {**self._file_errors(), **self.books.errors()}
        return {key: error for key, error in errors.items() if error}

    def _file_errors(self) -> dict[str, str | None]:
        return {
            "access_error": self.desk.access.error,
            "tls_error": next((tls.error for tls in self._certificates() if tls.error), None),
            "table_error": self._watch.error,
            "table_copy_error": self._watch.copy_error,
        }

    def snapshot(self) -> Snapshot:
        """The metrics of this process."""
        limited, states = limited_report(self.desk.table), states_report(self.desk.table, time.monotonic())
        return self.books.snapshot(self.desk.table, self._connections, limited, states)

    def _every(self, seconds: float, name: str, work: Callable[[], None]) -> None:
        def again() -> None:
            self._timers[name] = self._loop.call_later(seconds, again)
            work()

        again()

    def _sweep(self) -> None:
        now = self._loop.time()
        for client in self.desk.clients:
            if client.moves_s:
                client.deadline = now + client.moves_s
                client.moves_s = 0.0
        for client in [client for client in self.desk.clients if client.deadline < now]:
            client.expire()
        for origin in self._origins():
            origin.close_idle(before=now - self.limits.upstream_idle_s)

    def _origins(self) -> Iterable[Origin]:
        mine = () if self._api is None else (self._api,)
        return chain(self._registry.origins.values(), mine)

    def _certificates(self) -> Iterable[Certificate]:
        return [tls for tls in (self._tls, self._management_tls) if tls is not None]

    def _look_at_files(self) -> None:
        self.desk.access.poll(self._loop.time())
        for certificate in self._certificates():
            certificate.poll()
        if self._watch.poll():
            self._adopt()

    def _admit(self, table: RoutingTable) -> LiveTable:
        self.books.check(table)
        return self._registry.admit(table)

    def _adopt(self) -> None:
        self.desk.table = self._watch.table
        self.books.adopt(self.desk.table)


class _Dropped(asyncio.Protocol):
    """A connection for which there is nothing left, not even an answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


def _is_exposed(config: RouterConfig) -> bool:
    """Whether others than this machine reach a listener. Raises InvalidInput SS601 for one of which nobody
    said that tokens may cross the network readable by others."""
    listeners = {"router": (config.host, config.tls)}
    if config.management is not None:
        listeners["management"] = (config.management[0], config.management_tls)
    exposed = {name: one for name, one in listeners.items() if not is_loopback(one[0])}
    for name, (host, tls) in exposed.items():
        if tls is None and name not in config.plaintext:
            what = f"refusing to listen on {host!r}: what is sent there, tokens too, is readable by others"
            fix = (
                f"give it a certificate (servestate.{name}.tls), listen on 127.0.0.1, ::1 or localhost, "
                f"or put a proxy that ends TLS in front and set servestate.{name}.plaintext: true"
            )
            raise InvalidInput([Diagnostic("SS601", what, fix)])
    return bool(exposed)


def descriptors_for(clients: int) -> int:
    """How many a process needs that lets so many clients in: one for each, one for its upstream, and as many
    again for those that are told that they are too many."""
    return 3 * clients + _RESERVED_FILES


def _within_reach(limits: Limits) -> Limits:
    """No more clients than there are descriptors for: whoever is let in can be served, and files be read."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or most >= descriptors_for(limits.client_sockets):
        return limits
    return replace(limits, client_sockets=max(1, (most - _RESERVED_FILES) // 3))


def _certificate(files: TlsFiles | None) -> Certificate | None:
    return None if files is None else Certificate(files)


def _scheme(tls: Certificate | None) -> str:
    return "http" if tls is None else "https"
