"""Three times what an upstream can do: what is too much is told so at once, the rest goes on as before."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pytest

from servestate.planner.table import Traffic
from tests.cli.harness import until
from tests.load.book import Book
from tests.load.clients import Crowd
from tests.load.outcome import Outcome
from tests.load.place import HERE
from tests.ports import free_port
from tests.router import rig
from tests.router.processes import Process, launched, status
from tests.router.upstreams import entity, table

SLOTS, WORK_S = 16, 0.04
BOUND = 32
"""Requests that are let in at once: each slot's, and as many that wait."""
SHED_WITHIN_S, NORMAL_AFTER_S = 0.05, 2.0


@contextmanager
def engine(folder: Path) -> Iterator[str]:
    """An upstream that can do so much; its URL."""
    folder.mkdir()
    port = free_port()
    program = [sys.executable, "-I", "-S", str(HERE / "upstream.py"), str(port), str(folder)]
    with subprocess.Popen([*program, str(SLOTS), str(WORK_S)]) as process:
        try:
            until(lambda: list(folder.iterdir()), "the engine is there")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@dataclass
class Load:
    """Requests at some pace, and what became of them."""

    book: Book
    seconds: float

    @property
    def done_per_s(self) -> float:
        """Whole answers per second."""
        return self.book.counts()[Outcome.WHOLE] / self.seconds

    def times(self, *statuses: int, since_s: float = 0.0) -> list[float]:
        """Seconds that answers of these statuses took, of what was asked so long after the beginning."""
        book = self.book
        first = book.began[0] + since_s
        return sorted(
            book.ended[n] - book.began[n]
            for n, status in enumerate(book.statuses)
            if status in statuses and book.began[n] >= first
        )


async def load(port: int, clients: int, pace: float, seconds: float) -> Load:
    """So many requests per second, or without a pace as many as so many clients can make."""
    book = Book()
    source = random.Random(1)
    async with Crowd("127.0.0.1", port, book, "t", "t", source, pace, count=clients, spares=0, streaming=0.0):
        await asyncio.sleep(seconds)
    return Load(book, seconds)


async def most_inflight(router: Process, done: asyncio.Event) -> int:
    """The most requests that were seen on the upstream at once."""
    most = 0
    while not done.is_set():
        told = await asyncio.to_thread(status, router.folder)
        most = max(most, told["replicas"]["a#0"]["inflight"])
        await asyncio.sleep(0.1)
    return most


def at(times: list[float], share: float) -> float:
    """The time within which that share was answered, for ever where there is none."""
    return times[int(share * (len(times) - 1))] if times else inf


@dataclass(frozen=True)
class Seen:
    """Loads on one router: what it can do, three times that, and half of it afterwards. `inflight` is the
    most that was on the upstream at once."""

    capacity: Load
    over: Load
    after: Load
    inflight: int


async def overload(router: Process, seconds: float) -> Seen:
    """Three times what the router's upstream can do, for that long."""
    capacity = await load(router.port, BOUND - 4, 0.0, 4.0)
    assert set(capacity.book.statuses) == {200}
    done = asyncio.Event()
    watching = asyncio.create_task(most_inflight(router, done))
    over = await load(router.port, 200, 3 * capacity.done_per_s, seconds)
    after = await load(router.port, 64, capacity.done_per_s / 2, 4.0)
    done.set()
    return Seen(capacity, over, after, await watching)


def missed(seen: Seen, refusal: int) -> Iterator[str]:
    """What should have been otherwise."""
    capacity, over, after = seen.capacity, seen.over, seen.after
    if set(over.book.statuses) != {200, refusal}:
        yield f"not all was answered or refused: {Counter(over.book.statuses)}"
    if over.book.unpaced:
        yield f"{len(over.book.unpaced)} were not told when to come again"
    if over.done_per_s < 0.8 * capacity.done_per_s:
        yield f"{over.done_per_s:.0f}/s done of {capacity.done_per_s:.0f}/s"
    shed = at(over.times(refusal), 0.99)
    if shed > SHED_WITHIN_S:
        yield f"refused within {shed * 1000:.0f} ms (p99)"
    if not 0 < seen.inflight <= BOUND:
        yield f"{seen.inflight} in flight at once"
    if after.times(refusal, since_s=NORMAL_AFTER_S):
        yield "some are still refused afterwards"
    usual, later = at(capacity.times(200), 0.99), at(after.times(200, since_s=NORMAL_AFTER_S), 0.99)
    if later > 1.5 * usual:
        yield f"{later * 1000:.0f} ms afterwards, {usual * 1000:.0f} ms before (p99)"


def found(folder: Path, traffic: Traffic, refusal: int, seconds: float, **budgets: int) -> list[str]:
    """What an overload of a router with these bounds shows."""
    said: list[str] = []

    async def body(router: Process) -> None:
        seen = await overload(router, seconds)
        shed = seen.over.times(refusal)
        print(
            f"capacity {seen.capacity.done_per_s:.0f}/s; at three times that: {seen.over.done_per_s:.0f}/s "
            f"done, {len(shed) / seconds:.0f}/s refused within {at(shed, 0.99) * 1000:.1f} ms (p99)"
        )
        said.extend(missed(seen, refusal))

    with engine(folder / "records") as url:
        routed = table(entity("a", 100, url), name="ledger", traffic=traffic)
        rig.write_table(folder / "table.json", routed)
        with launched(folder, **budgets) as router:
            rig.run(body(router))
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("traffic", "budgets", "refusal", "seconds"),
    [(Traffic(concurrency=BOUND), {}, 429, 15.0), (Traffic(), {"inflight": BOUND}, 503, 60.0)],
)
def test_what_is_too_much_is_refused_at_once(
    tmp_path: Path, traffic: Traffic, budgets: dict[str, int], refusal: int, seconds: float
) -> None:
    assert found(tmp_path, traffic, refusal, seconds, **budgets) == []


@pytest.mark.slow
def test_the_check_notices_a_router_without_bounds(tmp_path: Path) -> None:
    """Whatever is too much waits: nobody is refused, and the queue is as long as there are clients."""
    said = found(tmp_path, Traffic(), 503, 5.0)
    assert any("not all was answered or refused" in one for one in said)
    assert any("in flight at once" in one for one in said)
