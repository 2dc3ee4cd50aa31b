"""Hearing of changes: the events of every host, for what wears the marks of one lineage."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime

from servestate.providers.docker import marks
from servestate.providers.docker.api import Unreachable
from servestate.providers.docker.daemon import Daemon

EVENTS = ("die", "oom", "pause", "unpause", "rename", "update", "destroy", "start", "health_status")

PING_S = 10.0
"""How often a host that says nothing is asked whether it is still there."""

GAP_S = 10.0
"""How long nobody may have listened: a daemon keeps its last few hundred events only."""


class Watch:
    """What was heard so far of each host. Between two calls nothing is missed: the second one begins where
    the first one ended, by the hosts' own clocks."""

    def __init__(self) -> None:
        self._heard: dict[tuple[str, str], str] = {}
        self._until: dict[str, float] = {}

    async def change(self, daemons: Sequence[Daemon], lineage: str) -> None:
        """Return at the next event. The first call, and one after a pause, return at once: what happened
        before was heard by nobody. Raises Unreachable when a host is not heard any more."""
        now = asyncio.get_running_loop().time
        if now() - self._until.get(lineage, -math.inf) >= GAP_S:
            times = await asyncio.gather(*(_clock(daemon) for daemon in daemons))
            self._heard |= {(one.name, lineage): time for one, time in zip(daemons, times, strict=True)}
            self._until[lineage] = now()
            return
        try:
            await self._first([asyncio.ensure_future(self._event(one, lineage)) for one in daemons], daemons)
        finally:
            self._until[lineage] = now()

    async def _first(self, heard: Sequence[asyncio.Task[None]], daemons: Sequence[Daemon]) -> None:
        try:
            while not (await asyncio.wait(heard, timeout=PING_S, return_when=asyncio.FIRST_COMPLETED))[0]:
                await asyncio.gather(*(daemon.api.ping() for daemon in daemons))
            for task in heard:
                if task.done():
                    task.result()
        finally:
            for task in heard:
                task.cancel()
            await asyncio.gather(*heard, return_exceptions=True)

    async def _event(self, daemon: Daemon, lineage: str) -> None:
        filters = {"type": "container", "event": list(EVENTS), "label": f"{marks.LINEAGE}={lineage}"}
        since = self._heard[daemon.name, lineage]
        async with aclosing(daemon.api.events(filters, since)) as events:
            async for event in events:
                seconds, rest = divmod(int(event["timeNano"]) + 1, 10**9)
                self._heard[daemon.name, lineage] = f"{seconds}.{rest:09d}"
                return
        raise Unreachable(f"{daemon.api.where} ended the stream of its events")


async def _clock(daemon: Daemon) -> str:
    """The host's time now, as its events take it."""
    return f"{datetime.fromisoformat((await daemon.api.info())['SystemTime']).timestamp():.6f}"
