"""A run of the ledger: a site, clients, faults, and all that is known of it afterwards."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.load.book import Book
from tests.load.clients import Crowd
from tests.load.faults import KINDS, Planned, World
from tests.load.judgement import Evidence
from tests.load.place import SPARE, TOKEN, Clock, Place, Tail, served

LEAST_PACE = 510.0
"""Requests per second, whatever the machine can do."""
_CAPACITY_S = 5.0
_SETTLED_S = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """A run's measures, in requests per second, and its evidence."""

    capacity: float
    pace: float
    seconds: float
    evidence: Evidence


def run(folder: Path, seconds: float, faults: Sequence[Planned], seed: object) -> Run:
    """A site in `folder`, and requests at half of what it can do: for `seconds`, or until all faults have
    come and gone."""
    with served(folder) as (place, clock):
        return uvloop.run(_run(place, clock, seconds, faults, random.Random(str(seed))))


async def _run(
    place: Place, clock: Clock, seconds: float, faults: Sequence[Planned], source: random.Random
) -> Run:
    book, tail = Book(), Tail(place.logs)
    crowd = Crowd("127.0.0.1", place.port, book, TOKEN, SPARE, source)
    world = World(place, clock, crowd.mood, source)
    async with _watched(place, tail, book):
        async with crowd:
            await asyncio.sleep(_CAPACITY_S)
        capacity = len(book.outcomes) / _CAPACITY_S
        pace = max(capacity / 2, LEAST_PACE)
        began = time.monotonic()
        async with Crowd("127.0.0.1", place.port, book, TOKEN, SPARE, source, pace, crowd.mood):
            await _carry_out(world, faults, began)
            await asyncio.sleep(began + seconds - time.monotonic())
            seconds = time.monotonic() - began
        await asyncio.to_thread(world.recovered)
        await asyncio.sleep(_SETTLED_S)
        await asyncio.to_thread(place.scrape)
    await asyncio.to_thread(place.stop)
    tail.into(book)
    executed = Counter(place.executed())
    evidence = Evidence(book, executed, place.scrapes, world.happened, world.revoked)
    return Run(capacity, pace, seconds, evidence)


async def _carry_out(world: World, faults: Sequence[Planned], began: float) -> None:
    """Each at its time, or once those that it must not meet are over."""
    alone = asyncio.Lock()

    async def one(kind: str) -> None:
        async with alone if KINDS[kind].alone else nullcontext():
            await asyncio.to_thread(world.do, kind)

    async with asyncio.TaskGroup() as group:
        for fault in faults:
            await asyncio.sleep(began + fault.at - time.monotonic())
            group.create_task(one(fault.kind))


@asynccontextmanager
async def _watched(place: Place, tail: Tail, book: Book) -> AsyncIterator[None]:
    """Read the metrics every second, and the access log as it grows."""

    async def scrape() -> None:
        while True:
            await asyncio.to_thread(place.scrape)
            await asyncio.sleep(1)

    async def read() -> None:
        while True:
            tail.into(book)
            await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(scrape()), asyncio.create_task(read())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
