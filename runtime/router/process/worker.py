"""One of several workers: a process that answers on sockets which its parent holds.

Started by `workers.Workers` as `python -m servestate.runtime.router.process.worker`, with an order on
standard input.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import uvloop

from servestate.planner.diagnostics import InvalidInput
from servestate.runtime.order import dies_with
from servestate.runtime.router.process.link import Link, Message, Order, decode_order, open_link
from servestate.runtime.router.process.server import Router
from servestate.runtime.router.quota.memory import Memory


class _Worker:
    """Prepares itself, begins when it is told to, and ends when it is told to or its parent is gone."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._router: Router | None = None
        self._link: Link
        self._begin = asyncio.Event()
        self._end = asyncio.Event()
        self._orphaned = False

    async def live(self) -> int:
        """The exit code."""
        order = self._order
        self._link = await open_link(socket.socket(fileno=order.link), self._heard, self._lost)
        try:
            router = self._router = Router(order.config, Memory.attach(order.memory, order.number))
        except InvalidInput as error:
            self._link.tell(unable=[[one.code, one.what, one.fix, one.detail] for one in error.diagnostics])
            self._link.close()
            await asyncio.sleep(0)
            return 1
        self._link.tell(prepared=True)
        await self._begin.wait()
        if self._end.is_set():
            return 0
        await router.start(order.sockets())
        self._link.tell(ready=True, url=router.url, management_url=router.management_url)
        await self._end.wait()
        if not self._orphaned:
            await router.stop()
        return 0

    def _heard(self, message: Message) -> None:
        match message:
            case {"ask": "pulse", "id": number}:
                self._link.tell(id=number, answer=None)
            case {"ask": "report", "id": number}:
                assert self._router is not None  # not asked before it is ready
                self._link.tell(id=number, answer=self._router.report())
            case {"ask": "brief", "id": number}:
                assert self._router is not None
                self._link.tell(id=number, answer=self._router.brief())
            case {"ask": "troubles", "id": number}:
                assert self._router is not None
                self._link.tell(id=number, answer=self._router.troubles())
            case {"ask": "metrics", "id": number}:
                assert self._router is not None
                self._link.tell(id=number, answer=self._router.snapshot())
            case {"begin": True}:
                self._begin.set()
            case {"stop": True}:
                self._leave()
            case {"abort": True}:
                self._leave()
                if self._router is not None:
                    self._router.abort()

    def _lost(self) -> None:
        self._orphaned = True
        self._leave()

    def _leave(self) -> None:
        self._end.set()
        self._begin.set()


def main() -> int:
    """The exit code."""
    order = decode_order(sys.stdin.buffer.read())
    # A signal to the whole group, as service supervisors send it, must not stop workers one by one: the
    # parent hears it too and stops them together.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if not dies_with(order.parent, signal.SIGKILL):
        return 1
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Worker(order).live())


if __name__ == "__main__":
    sys.exit(main())
