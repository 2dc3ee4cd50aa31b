"""A run: a site, 64 clients, what is done to the router meanwhile, and all that is known of it afterwards."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.load.limits.callers import Setup
from tests.load.limits.crowd import Crowd
from tests.load.limits.evidence import Evidence, Fault
from tests.load.limits.site import Place, served

_SETTLED_S = 0.5
_FAR_S = 1800.0
CLOCK = "wall clock"


@dataclass(frozen=True, slots=True)
class _Planned:
    """What is done once `share` of the time after the lead-in is over. `anew`: a router with one worker loses
    its counts by it."""

    share: float
    kind: str
    does: Callable[[Place], None]
    anew: bool = False
    costly: bool = False


def _stepped(seconds: int) -> Callable[[Place], None]:
    def step(place: Place) -> None:
        assert place.wall is not None, "there is one"
        place.wall.step(seconds)

    return step


PLAN = (
    _Planned(0.1, f"{CLOCK} +1 h", _stepped(3600)),
    _Planned(0.35, f"{CLOCK} -1 h", _stepped(-3600)),
    _Planned(0.6, "worker killed", Place.kill_worker, anew=True, costly=True),
    _Planned(0.7, f"{CLOCK} set right", _stepped(0)),
    _Planned(0.8, "router replaced", lambda place: place.serve("--replace"), anew=True),
)
ONE_WORKER_KILLED = "router killed, and started again"


def run(
    folder: Path, workers: int, seconds: float, given: Setup, lead_s: float = 0.0, control: str = ""
) -> Evidence:
    """A site in `folder`, `lead_s` seconds in which its limits are just used up, and `seconds` in which more
    is wanted. Without a lead-in they are used up at once. `control` is that of `site.served`."""
    with served(folder, workers, given, control) as place:
        return uvloop.run(_run(place, seconds, lead_s))


async def _run(place: Place, seconds: float, lead_s: float) -> Evidence:
    began, clock = time.monotonic(), time.time()
    faults: list[Fault] = []
    crowd = Crowd(place.port, place.setup.parties, lead_s, random.Random(1))
    async with crowd:
        for planned in PLAN:
            if planned.kind.startswith(CLOCK) and place.wall is None:
                continue
            await asyncio.sleep(began + lead_s + planned.share * seconds - time.monotonic())
            faults.append(await asyncio.to_thread(_happened, planned, place))
        await asyncio.sleep(began + lead_s + seconds - time.monotonic())
        ended = time.monotonic()
    await asyncio.sleep(_SETTLED_S)
    await asyncio.to_thread(place.stop)
    stepped = None
    if place.wall is not None:
        logged = place.logged_at()
        ahead = sum(1 for at in logged if at > time.time() + _FAR_S)
        stepped = ahead, sum(1 for at in logged if at < clock - _FAR_S)
    executed = Counter(place.executed())
    return Evidence(place.setup, place.workers, began, ended, crowd.calls, executed, faults, stepped)


def _happened(planned: _Planned, place: Place) -> Fault:
    """Once all workers are there again from the one before."""
    place.ready()
    start = time.monotonic()
    planned.does(place)
    alone = place.workers == 1
    kind = ONE_WORKER_KILLED if planned.costly and alone else planned.kind
    return Fault(kind, start, time.monotonic(), planned.anew and alone, planned.costly)
