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
from pathlib import Path

import pytest

from servestate.planner.table import Traffic
from tests.cli.harness import free_port, until
from tests.load.book import Book
from tests.load.clients import Crowd
from tests.load.outcome import Outcome
from tests.load.place import HERE
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
    """The time within which that share was answered."""
    return times[int(share * (len(times) - 1))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("traffic", "budgets", "refusal", "seconds"),
    [(Traffic(concurrency=BOUND), {}, 429, 15.0), (Traffic(), {"inflight": BOUND}, 503, 60.0)],
)
def test_what_is_too_much_is_refused_at_once(
    tmp_path: Path, traffic: Traffic, budgets: dict[str, int], refusal: int, seconds: float
) -> None:
    async def body() -> None:
        with engine(tmp_path / "records") as url:
            routed = table(entity("a", 100, url), name="ledger", traffic=traffic)
            rig.write_table(tmp_path / "table.json", routed)
            with launched(tmp_path, **budgets) as router:
                await holds(router)

    async def holds(router: Process) -> None:
        capacity = await load(router.port, BOUND - 4, 0.0, 4.0)
        assert set(capacity.book.statuses) == {200}
        done = asyncio.Event()
        watching = asyncio.create_task(most_inflight(router, done))
        over = await load(router.port, 200, 3 * capacity.done_per_s, seconds)
        after = await load(router.port, 64, capacity.done_per_s / 2, 4.0)
        done.set()
        inflight = await watching
        shed = over.times(refusal)
        print(
            f"capacity {capacity.done_per_s:.0f}/s; at three times that: {over.done_per_s:.0f}/s done, "
            f"{len(shed) / seconds:.0f}/s refused within {at(shed, 0.99) * 1000:.1f} ms (p99)"
        )
        assert set(over.book.statuses) == {200, refusal}
        assert over.book.unpaced == []
        assert over.done_per_s >= 0.8 * capacity.done_per_s
        assert at(shed, 0.99) <= SHED_WITHIN_S
        assert inflight <= BOUND
        usual = at(capacity.times(200), 0.99)
        assert (
            Counter(after.book.statuses)[refusal] == 0 or after.times(refusal, since_s=NORMAL_AFTER_S) == []
        )
        assert at(after.times(200, since_s=NORMAL_AFTER_S), 0.99) <= 1.5 * usual

    rig.run(body())
