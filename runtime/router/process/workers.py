"""Several workers on the same addresses: processes that are started, watched, and started again.

| event                       | answer                                                               |
| --------------------------- | -------------------------------------------------------------------- |
| a worker cannot be prepared | at the start: the router does not start; later: as if it had died    |
| it dies                     | another takes its place at once, ever later if that keeps happening  |
| it is not ready for long    | it is killed                                                         |
| it gives no answer for long | it is killed                                                         |
| this process dies           | the kernel kills them all                                            |

This process holds every listening socket for as long as it lives, a set of its own for each place. What has
queued for a worker that died waits there for the next one, and no other worker notices anything. What it
counted as running in the shared memory is forgotten before the next one gets its number.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.runtime.backoff import Backoff
from servestate.runtime.router.process.listen import Sockets
from servestate.runtime.router.process.merging import Report, merged, merged_briefs, named_in, only
from servestate.runtime.router.process.place import Place
from servestate.runtime.router.process.server import RouterConfig
from servestate.runtime.router.quota.memory import Memory
from servestate.runtime.router.records.families import Snapshot

_SETTLED_S = 10.0
"""A worker that lived for so long did not die of its start."""
_OVERTIME_S = 5.0
"""Beyond the time to drain, before a worker that does not end is killed."""

Tell = Callable[[str], None]


_LONGEST_S = 2.0
"""Its sockets stay open meanwhile, and whoever connects to them waits."""


class Workers:
    """All workers of one router; the counterpart of `server.Router`. `numbers` are theirs in `memory`; `tell`
    hears a line for people about each that dies."""

    def __init__(self, config: RouterConfig, memory: Memory, numbers: Sequence[int], tell: Tell) -> None:
        self._config = config
        self._memory = memory
        self._numbers = numbers
        self._tell = tell
        self._began = time.time()
        self._places: list[Place] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._begin = asyncio.Event()
        self._stopping = asyncio.Event()
        self.url = self.management_url = ""

    async def prepare(self, sockets: Sockets) -> None:
        """Have every worker ready to begin on its share of the sockets, none of which is used yet. Raises
        InvalidInput: what a worker says, or SS641 where it said nothing."""
        assert self._memory.fd is not None, "several workers share their memory"
        shares = sockets.dealt(len(self._numbers))
        for index, (number, share) in enumerate(zip(self._numbers, shares, strict=True)):
            place = Place(self._config.share(index), number, share, self._memory.fd)
            self._places.append(place)
            self._keepers.append(asyncio.create_task(self._keep(place)))
        await self._all("prepared", "down")

    async def begin(self) -> None:
        """Answer. Raises InvalidInput as `prepare` does."""
        self._begin.set()
        await self._all("ready", "down")
        self.url, self.management_url = self._places[0].url, self._places[0].management_url

    async def stop(self) -> None:
        """As `Router.stop`, all at once; those that do not end are killed."""
        self._stopping.set()
        for place in self._places:
            place.tell(stop=True)
            if not place.prepared:  # it does not listen to us yet
                place.kill()
        try:
            async with asyncio.timeout(self._config.limits.drain_s + _OVERTIME_S):
                await asyncio.gather(*self._keepers, return_exceptions=True)
        except TimeoutError:
            for place in self._places:
                place.kill()

    def abort(self) -> None:
        """Close all connections at once."""
        for place in self._places:
            place.tell(abort=True)

    async def report(self) -> Report:
        """What all of them say of themselves as one. Raises Silent where one says nothing."""
        said = await asyncio.gather(*(place.ask("report") for place in self._places))
        running = [now for now, _ in said if now is not None]
        found = merged(running, [past for _, past in said])
        if running:
            for place in self._places:
                place.past.keep_report(found["endpoints"])
        return {
            **found,
            "pid": os.getpid(),
            "started_at": self._began,
            "listen": self.url,
            "management": self.management_url or None,
            "workers": [self._line(place, now) for place, (now, _) in zip(self._places, said, strict=True)],
        }

    async def brief(self) -> Report:
        """See `server.Router.brief`. Raises Silent."""
        said = await asyncio.gather(*(place.ask("brief") for place in self._places))
        return merged_briefs([now for now, _ in said if now is not None])

    async def troubles(self) -> dict[str, str]:
        """See `server.Router.troubles`; of each the reason that the first who has it gives. Raises Silent."""
        said = await asyncio.gather(*(place.ask("troubles") for place in self._places))
        running = [now for now, _ in said if now is not None]
        return {key: why for one in reversed(running) for key, why in one.items()}

    async def snapshots(self) -> list[Snapshot]:
        """The metrics of all of them. Raises Silent."""
        said = await asyncio.gather(*(place.ask("metrics") for place in self._places))
        running = [now for now, _ in said if now is not None]
        past = [past for _, past in said]
        if running:
            named = named_in(running)
            past = [only(one, named) for one in past]
            for place in self._places:
                place.past.keep_metrics(named)
        return [*running, *past]

    def _line(self, place: Place, now: Report | None) -> dict[str, Any]:
        version = None if now is None else now["table_version"]
        state = "draining" if self._stopping.is_set() and place.state == "ready" else place.state
        return {"pid": place.pid, "state": state, "restarts": place.restarts, "table_version": version}

    async def _all(self, *states: str) -> None:
        for place in self._places:
            await place.reached(*states)
            if place.state == "down":
                what = f"a worker of the router could not answer: it {place.end}"
                reasons = place.unable or [Diagnostic("SS641", what, "see what it wrote above")]
                await self.stop()
                raise InvalidInput(reasons)

    async def _keep(self, place: Place) -> None:
        """Have a process there, always."""
        while not self._stopping.is_set():
            began = time.monotonic()
            await place.live(self._begin)
            self._memory.forget_worker(place.number)
            if self._stopping.is_set() or not self._begin.is_set():
                break
            if time.monotonic() - began >= _SETTLED_S:
                place.restarts = 0
            delay_s = _delay(place.restarts)
            self._tell(_obituary(place, delay_s))
            if delay_s:
                place.rest()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay_s)
            place.restarts += 1
        place.rest()


def _delay(restarts: int) -> float:
    """Seconds until a worker is started again; the first time it is at once."""
    if not restarts:
        return 0.0
    delay_s = Backoff(restarts - 1).failed(0.0, random.random).next_try or 0.0
    return min(delay_s, _LONGEST_S)


def _obituary(place: Place, delay_s: float) -> str:
    when = f"in {delay_s:.1f} s" if delay_s else "at once"
    why = "".join(f"\n{one}" for one in place.unable)
    return f"servestate: worker {place.number} (pid {place.pid}) {place.end}; it is replaced {when}{why}"
