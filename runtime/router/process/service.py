"""The whole router: its sockets, the processes that answer on them, its control socket, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

import uvloop

from servestate.planner.plural import counted
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.process.handover import Belongings, Predecessor, Succession, predecessor_of
from servestate.runtime.router.process.listen import (
    Sockets,
    check_alone,
    control_socket,
    identity_of,
    is_at,
    open_all,
    remove_control,
)
from servestate.runtime.router.process.merging import Report, with_predecessor
from servestate.runtime.router.process.server import Router, RouterConfig, descriptors_for
from servestate.runtime.router.process.status import ControlConnection, Reporting, Silent
from servestate.runtime.router.process.workers import Tell, Workers
from servestate.runtime.router.quota.memory import MOST_WORKERS, Memory
from servestate.runtime.router.records.exposition import expose
from servestate.runtime.router.records.families import Snapshot
from servestate.runtime.router.records.metrics import merge
from servestate.runtime.router.records.unwritable import check_access_log
from servestate.runtime.troubles import news

OnReady = Callable[[str], None]

_ASK_S = 0.2
_LOOK_S = 1.0
"""How often it is looked whether there is something that cannot be done."""


def run(
    config: RouterConfig,
    on_ready: OnReady | None = None,
    on_management: OnReady | None = None,
    *,
    replace: bool = False,
    on_alone: Callable[[], None] | None = None,
    tell: Tell | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, or until another router has taken over; the exit code. A second signal
    cuts what is still in flight. Raises InvalidInput SS601..SS604, SS610 and SS640..SS644 if it cannot start.

    Once requests are accepted, `on_management`, where there is such a listener, and then `on_ready` are
    called with the URLs. `replace`: take over from the router that runs, if one does. `on_alone` is called
    when no other one runs any more: after `on_ready`, or once the replaced one is gone. `tell` hears lines
    for people.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(
            serve(config, on_ready, on_management, replace=replace, on_alone=on_alone, tell=tell)
        )


async def serve(
    config: RouterConfig,
    on_ready: OnReady | None = None,
    on_management: OnReady | None = None,
    *,
    replace: bool = False,
    on_alone: Callable[[], None] | None = None,
    tell: Tell | None = None,
) -> int:
    """As `run`, in the running loop."""
    ending = _Ending()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.signalled)
    try:
        predecessor = predecessor_of(config.control_path) if replace else None
        service = Service(config, tell or (lambda line: None), ending.wanted.set)
        if not await _started(service, predecessor, ending):
            return 0
        if on_management is not None and service.management_url:
            on_management(service.management_url)
        if on_ready is not None:
            on_ready(service.url)
        alone = asyncio.create_task(_alone(service, on_alone or (lambda: None)))
        await ending.wanted.wait()
        alone.cancel()
        await service.stop()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return 0


async def _started(service: Service, predecessor: Predecessor | None, ending: _Ending) -> bool:
    """Start it; False where a signal came first, and nothing runs. Raises InvalidInput."""
    starting = asyncio.create_task(service.start(predecessor))
    signalled = asyncio.create_task(ending.wanted.wait())
    await asyncio.wait((starting, signalled), return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
    if starting.cancelled():
        return False
    starting.result()
    ending.service = service
    return True


async def _alone(service: Service, on_alone: Callable[[], None]) -> None:
    await service.alone()
    on_alone()


class _Ending:
    """What the signals mean: the first one the end, in order; the next one the end at once."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.service: Service | None = None

    def signalled(self) -> None:
        if self.wanted.is_set() and self.service is not None:
            self.service.abort()
        self.wanted.set()


class Service:
    """One router, however many processes answer for it. `handed` is called when another one has taken over,
    upon which this one has to be stopped."""

    def __init__(self, config: RouterConfig, tell: Tell, handed: Callable[[], None]) -> None:
        self._config = config
        self._tell = tell
        self._when_handed = handed
        self._sockets: Sockets
        self._memory: Memory | None = None
        self._numbers: tuple[int, ...] = ()
        self._answering: _Single | Workers
        self._control = _Control(config, self)
        self._predecessor: Predecessor | None = None
        self._watching: asyncio.Task[None] | None = None
        self._draining = self._replaced = False
        self._succession = Succession(
            config.control_path, self._belongings, self.brief, self._control.open, self._handed
        )

    @property
    def url(self) -> str:
        """Where the models are called."""
        return self._answering.url

    @property
    def management_url(self) -> str:
        """Where the management API is called, "" where that is nowhere."""
        return self._answering.management_url

    async def start(self, predecessor: Predecessor | None = None) -> None:
        """Answer requests, in the place of `predecessor` where there is one: it stops once this is done, and
        knows of nothing where this raises. Raises InvalidInput. Cancelled, it closes what it has opened."""
        config = self._config
        _raise_file_limit(config.limits)
        self._predecessor = predecessor
        kept = Sockets() if predecessor is None else predecessor.belongings.sockets
        async with contextlib.AsyncExitStack() as undoing:
            if predecessor is None:
                check_alone(config.control_path)  # here first: that its port is taken would be said of any
            else:
                undoing.callback(predecessor.leave)
            check_access_log(config.books.access_log)
            self._sockets = open_all((config.host, config.port), config.management, config.workers, kept)
            undoing.callback(self._sockets.close)
            self._answering = self._answerers(predecessor)
            undoing.push_async_callback(self._answering.stop)
            await self._answering.prepare(self._sockets)
            await self._control.open(replacing=predecessor is not None)
            undoing.callback(self._control.close)
            await self._answering.begin()
            self._succession.open()
            undoing.push_async_callback(self._succession.close)
            if predecessor is not None:
                self._succession.open_for_all = False
                await predecessor.follow()
            undoing.pop_all()
        self._watching = asyncio.create_task(self._watch())
        kept.without(self._sockets).close()  # where nobody listens any more, nobody shall wait

    def _answerers(self, predecessor: Predecessor | None) -> _Single | Workers:
        config = self._config
        self._memory, self._numbers = _memory(config.workers, predecessor)
        if config.workers == 1:
            return _Single(Router(config.share(0), self._memory))
        assert self._memory is not None
        return Workers(config, self._memory, self._numbers, self._tell)

    async def alone(self) -> None:
        """Return when no other router runs any more."""
        if self._predecessor is None:
            return
        await self._predecessor.gone.wait()
        if self._memory is not None:
            for number in self._predecessor.belongings.numbers:
                self._memory.forget_worker(number)
        self._predecessor = None
        self._succession.open_for_all = True

    async def stop(self) -> None:
        """Stop accepting, let requests in flight end within `limits.drain_s`, close everything."""
        if self._watching is not None:
            self._watching.cancel()
        self._sockets.close()
        if not self._replaced:  # else it was said then
            self._tell(f"servestate: stopping: {await self._underway()}")
        self._draining = True
        await self._answering.stop()
        self._control.close()
        await self._succession.close()
        if self._memory is not None:
            self._memory.close()

    async def _underway(self) -> str:
        """What `stop` waits for, for people."""
        longest = f"at most {self._config.limits.drain_s:g} s"
        try:
            async with asyncio.timeout(_ASK_S):  # meanwhile they all still accept
                count = (await self._answering.brief())["inflight"]
        except (Silent, TimeoutError):
            return longest
        return f"{counted(count, 'request')} in flight, {longest}" if count else "nothing in flight"

    async def _watch(self) -> None:
        """Tell people what cannot be done, once when that begins and once when it ends."""
        said: dict[str, str] = {}
        while True:
            await asyncio.sleep(_LOOK_S)
            with contextlib.suppress(Silent):  # a worker that is started anew: the next look tells
                now = await self._answering.troubles()
                for line in news(said, now):
                    self._tell(f"servestate: {line}")
                said = now

    def abort(self) -> None:
        """Close all connections at once; to be called while `stop` waits for them."""
        self._answering.abort()

    async def report(self) -> Report:
        """See `status.Reporting`."""
        return {**self._with_predecessor(await self._answering.report()), "draining": self._draining}

    async def brief(self) -> Report:
        """See `status.Reporting`."""
        return self._with_predecessor(await self._answering.brief())

    async def exposition(self) -> bytes:
        """See `status.Reporting`."""
        return expose(merge(await self._answering.snapshots()))

    def _with_predecessor(self, found: Report) -> Report:
        predecessor = self._predecessor
        if predecessor is None:
            return found
        if predecessor.report is None:
            raise Silent("the router that is being replaced has not said yet what it still does")
        return {**with_predecessor(found, predecessor.report), "replacing": predecessor.pid}

    def _belongings(self) -> Belongings:
        memory = None if self._memory is None else self._memory.fd
        return Belongings(self._sockets, memory, self._numbers)

    def _handed(self, successor: int) -> None:
        self._replaced = True
        self._when_handed()
        self._tell(f"servestate: replaced by the router with pid {successor}; ending what is in flight")


class _Single:
    """The only process that answers: this one. The counterpart of `Workers`."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._stopping = False
        self._sockets = Sockets()
        self.url = self.management_url = ""

    async def prepare(self, sockets: Sockets) -> None:
        self._sockets = sockets

    async def begin(self) -> None:
        await self._router.start(self._sockets.duplicate())
        self.url, self.management_url = self._router.url, self._router.management_url

    async def stop(self) -> None:
        self._stopping = True
        if self.url:
            await self._router.stop()

    def abort(self) -> None:
        self._router.abort()

    async def report(self) -> dict[str, Any]:
        report = self._router.report()
        version = report["table_version"]
        state = "draining" if self._stopping else "ready"
        worker = {"pid": os.getpid(), "state": state, "restarts": 0, "table_version": version}
        return {**report, "workers": [worker]}

    async def brief(self) -> dict[str, Any]:
        return self._router.brief()

    async def troubles(self) -> dict[str, str]:
        return self._router.troubles()

    async def snapshots(self) -> list[Snapshot]:
        return [self._router.snapshot()]


class _Control:
    """The control socket, and who answers on it."""

    def __init__(self, config: RouterConfig, reporting: Reporting) -> None:
        self._path = config.control_path
        self._limits: Limits = config.limits
        self._reporting = reporting
        self._server: asyncio.Server | None = None
        self._identity = (0, 0)

    async def open(self, *, replacing: bool = True) -> None:
        """Answer there, with `replacing` in the place of whoever does. Raises InvalidInput SS604."""
        if self._server is not None and is_at(self._path, self._identity):
            return
        sock = control_socket(self._path, replacing=replacing)
        self.close()
        self._identity = identity_of(self._path)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: ControlConnection(self._reporting, self._limits), sock=sock
        )

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            remove_control(self._path, self._identity)


def _memory(workers: int, predecessor: Predecessor | None) -> tuple[Memory | None, tuple[int, ...]]:
    """What is counted together, and our numbers in it: that of the router we replace, where it has one and
    there is room beside its workers. None for a process that has nobody to share it with."""
    if predecessor is not None and (fd := predecessor.belongings.memory) is not None:
        taken = predecessor.belongings.numbers
        free = [number for number in range(MOST_WORKERS) if number not in taken][:workers]
        if len(free) == workers:
            with contextlib.suppress(ValueError):  # of another version: what it counted cannot be read
                return Memory.attach(fd, free[0]), tuple(free)
    if workers == 1:
        return None, ()
    return Memory.create(workers), tuple(range(workers))


def _raise_file_limit(limits: Limits) -> None:
    """Descriptors are what connections cost: take as many as are needed and may be had without asking. No
    more, since processes that are started from here have as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = descriptors_for(limits.client_sockets)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
