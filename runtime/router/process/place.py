"""One place among the workers of a router, and the process that has it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from socket import socketpair
from typing import Any

from servestate.planner.diagnostics import Diagnostic
from servestate.runtime.router.process.link import Link, Message, Order, open_link
from servestate.runtime.router.process.listen import Sockets
from servestate.runtime.router.process.merging import Past
from servestate.runtime.router.process.server import RouterConfig
from servestate.runtime.router.process.status import Silent

_ANSWER_S = 1.5
"""How long a worker may take to answer, one that is being started to be there. Whoever asks for the status
waits 2 s."""
_PULSE_S = 1.0
_HUNG_AFTER_S = 10.0


Said = tuple[Any, Any]
"""What a worker answers, and what is to be added of those that had its place before."""


class _Gone(Exception):
    """The worker has died before it answered."""


class Place:
    """A process that is started here again and again. `state` is `starting`, `ready`, or `down` where none
    runs and none is started; `number` is its own in the shared memory. `prepared`: it waits to begin.
    `unable` is why it could not be prepared, `end` how the last one ended, for people."""

    def __init__(self, config: RouterConfig, number: int, sockets: Sockets, memory: int) -> None:
        self.number = number
        self.state = "starting"
        self.pid = 0
        self.restarts = 0
        self.url = self.management_url = ""
        self.unable: list[Diagnostic] = []
        self.end = ""
        self.past = Past()
        self._config = config
        self._sockets = sockets
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Link | None = None
        self._asked: dict[int, tuple[str, asyncio.Future[Said]]] = {}
        self._ids = count(1)
        self._changed = asyncio.Event()
        self._killed = ""  # why, where it was for its silence
        self.prepared = False

    async def live(self, begin: asyncio.Event) -> None:
        """Run a process to its end. It answers once `begin` is set."""
        try:
            process = await self._start()
        except OSError as error:
            self.end = f"could not be started: {error}"
            return
        beginning = asyncio.create_task(self._begin(begin))
        watching = asyncio.create_task(self._watch(begin))
        try:
            await _ended(process)
        except OSError as error:  # no descriptor to watch it by: it must not run unseen
            process.kill()
            how = f"could not be watched: {error}"
        else:
            how = "ended"
        finally:
            for task in (beginning, watching):
                task.cancel()
        code = process.wait()
        self._process = None
        self._lost(self.pid)
        how = f"{how} by signal {-code}" if code < 0 else f"{how} with code {code}"
        self.end = f"was killed: {self._killed}" if self._killed else how

    async def ask(self, what: str) -> Said:
        """Its answer; None where there is no process, and none is being started. Raises Silent.

        With it comes what those before it had counted at that very moment: a death between the two would be
        counted twice, and the next sum be lower.
        """
        try:
            async with asyncio.timeout(_ANSWER_S):
                while self.state != "down":
                    if self.state == "ready":
                        with suppress(_Gone):
                            return await self._answer(what)
                    else:
                        await self._changed.wait()
        except TimeoutError:
            doing = "is still being started" if self.state == "starting" else "does not answer"
            raise Silent(f"worker {self.number} (pid {self.pid}) {doing}") from None
        return None, self.past.settled(what)

    async def reached(self, *states: str) -> None:
        """Return once it is in one of those states, or prepared where `prepared` is one."""
        while self.state not in states and not (self.prepared and "prepared" in states):
            await self._changed.wait()

    def tell(self, **message: bool) -> None:
        """Tell the process, where there is one."""
        if self._link is not None:
            self._link.tell(**message)

    def kill(self) -> None:
        """End the process at once, where there is one."""
        if self._process is not None:
            self._process.kill()

    async def _start(self) -> subprocess.Popen[bytes]:
        """Raises OSError, and no process runs then."""
        self.unable = []
        self._killed = ""
        ours, its = socketpair()
        with its:
            listening = self._sockets
            order = Order(
                self._config,
                os.getpid(),
                self.number,
                its.fileno(),
                self._memory,
                tuple(sock.fileno() for sock in listening.router),
                tuple(sock.fileno() for sock in listening.management),
            )
            try:
                process = _spawned(order)
            except OSError:
                ours.close()
                raise
        self._process, self.pid = process, process.pid
        self._become("starting")
        pid = self.pid
        self._link = await open_link(ours, lambda said: self._heard(pid, said), lambda: self._lost(pid))
        return process

    async def _begin(self, begin: asyncio.Event) -> None:
        await begin.wait()
        self.tell(begin=True)

    async def _watch(self, begin: asyncio.Event) -> None:
        """Kill it when it does not get ready, or gives no sign of life, for long."""
        patience_s = self._config.limits.worker_start_s
        try:
            await asyncio.wait_for(self.reached("prepared", "ready"), patience_s)
            await begin.wait()
            await asyncio.wait_for(self.reached("ready"), patience_s)
        except TimeoutError:
            self._kill_for(f"it was not ready within {patience_s:g} s")
            return
        answered = time.monotonic()
        while time.monotonic() - answered < _HUNG_AFTER_S:
            await asyncio.sleep(_PULSE_S)
            with suppress(Silent):
                await self.ask("pulse")
                answered = time.monotonic()
        self._kill_for(f"it gave no answer for {_HUNG_AFTER_S:g} s")

    def _kill_for(self, why: str) -> None:
        self._killed = why
        self.kill()

    async def _answer(self, what: str) -> Said:
        if self._link is None:
            raise _Gone
        number = next(self._ids)
        answer: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
        self._asked[number] = what, answer
        self._link.tell(ask=what, id=number)
        try:
            return await answer
        finally:
            self._asked.pop(number, None)

    def _heard(self, pid: int, message: Message) -> None:
        if pid != self.pid:  # the last words of the one before
            return
        match message:
            case {"id": number, "answer": found}:
                self._answered(number, found)
            case {"prepared": True}:
                self.prepared = True
                self._become(self.state)
            case {"ready": True, "url": url, "management_url": management_url}:
                self.url, self.management_url = url, management_url
                self._become("ready")
            case {"unable": reasons}:
                self.unable = [
                    Diagnostic(code, what, fix, None, detail) for code, what, fix, detail in reasons
                ]

    def _answered(self, number: int, found: Any) -> None:
        what, answer = self._asked.pop(number, ("", None))
        if answer is not None and not answer.done():
            self.past.told(what, found)
            answer.set_result((found, self.past.settled(what)))

    def _lost(self, pid: int) -> None:
        """The process has closed its end: it is dead, or dying. The place counts as being filled again, until
        it is known that it will not be at once."""
        if pid != self.pid:
            return
        self._link = None
        self.prepared = False
        self.past.settle()
        self._become("starting" if self.state != "down" else "down")
        for _, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(_Gone())
        self._asked.clear()

    def rest(self) -> None:
        """No process is started in this place for now."""
        self._become("down")

    def _become(self, state: str) -> None:
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()


def _spawned(order: Order) -> subprocess.Popen[bytes]:
    """A worker with its order. Raises OSError."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "servestate.runtime.router.process.worker"],
        stdin=subprocess.PIPE,
        pass_fds=order.inherited,
        process_group=0,  # Ctrl-C is for this process, which stops the workers in their turn
    )
    assert process.stdin is not None
    # One that has ended already does not read; its end says so.
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(order.encode())
    return process


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Return when the process is dead. Raises OSError."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    pidfd = os.pidfd_open(process.pid)
    try:
        loop.add_reader(pidfd, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
