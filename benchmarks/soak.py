"""Nothing grows: half an hour of streams over 200 sockets, and what the router's processes hold meanwhile.

    .venv/bin/python -m benchmarks.soak [--minutes 30] [--write]

`servestate serve` with two workers and four upstreams, 200 clients at a steady pace, half of their requests
for a stream. Memory and descriptors are read from the kernel every second, for each process of the router.
Clients connect anew after so many requests, and the kernel deals them to the workers by chance: so what must
not become more is all descriptors of all processes, and of each process those that no open connection
accounts for. The lag of its loops is measured from outside, which bounds it from above: a process of its own
asks fifty times a second for the list of models, which the router answers by itself. Processes have no count
of tasks to tell; what a task of the router lives for is a connection or a request, and both are counted by
it: at the end there has to be none of either. The first sixth is warm-up, five minutes of thirty. Ends with 1
where a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.descriptors import Descriptors, descriptors
from tests.load.book import Book
from tests.load.clients import Crowd
from tests.load.outcome import Outcome
from tests.load.place import SPARE, TOKEN, Place, served

RESULTS = Path(__file__).parent / "results" / "soak.md"
SOCKETS, PACE, STREAMING = 200, 400.0, 0.5
SLOPE_BAR, LAG_BAR_MS = 1.0, 20.0
"""MiB in ten minutes, and milliseconds (p99)."""
_FEW = 8
"""Descriptors of all processes, more or fewer, that mean nothing: connections to upstreams that are made as
they are needed."""
_FEW_OTHERS = 1
"""The same of one process for what no open connection accounts for: a file that is being looked at."""
_LAST_S = 6.0
"""Until idle connections to upstreams are closed: `Limits.upstream_idle_s`, and some time to do so."""

PACER = """
import asyncio, sys, time

async def main():
    port, token, until = int(sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3])
    fields = f"Host: localhost\\r\\nAuthorization: Bearer {token}\\r\\n"
    request = f"GET /v1/models HTTP/1.1\\r\\n{fields}\\r\\n".encode()
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(50):
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\\r\\n")[0]))
            print(time.perf_counter() - began)
            await asyncio.sleep(0.02)
        writer.close()

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the processes hold at `at`: resident bytes and descriptors of each, by pid."""

    at: float
    memory: dict[int, int]
    descriptors: dict[int, Descriptors]


@dataclass(frozen=True, slots=True)
class Soak:
    """A run. `lags` are seconds, `left` what the router says is still open or under way at the end."""

    seconds: float
    book: Book
    samples: list[Sample]
    lags: list[float]
    left: int

    @property
    def settled(self) -> list[Sample]:
        """What was seen after the warm-up, the clients still there."""
        first = self.samples[0].at + self.seconds / 6
        return [sample for sample in self.samples if sample.at >= first]

    def slope(self, pid: int) -> float:
        """By how many MiB the process grows in ten minutes."""
        times = [sample.at for sample in self.settled]
        sizes = [sample.memory[pid] / 2**20 for sample in self.settled]
        return statistics.linear_regression(times, sizes).slope * 600

    def others(self, pid: int) -> tuple[int, int]:
        """Descriptors of the process that no open connection accounts for, first and last."""
        return first_and_last([sample.descriptors[pid].others for sample in self.settled])

    def all_descriptors(self) -> tuple[int, int]:
        """Those of all processes together, first and last."""
        return first_and_last([sum(d.all for d in s.descriptors.values()) for s in self.settled])

    def lag_ms(self, share: float) -> float:
        """The lag that so many do not exceed."""
        return sorted(self.lags)[int(share * (len(self.lags) - 1))] * 1000


def first_and_last(counts: Sequence[int]) -> tuple[int, int]:
    """Medians of the first tenth and of the last: what is there for a moment means nothing."""
    tenth = max(1, len(counts) // 10)
    return round(statistics.median(counts[:tenth])), round(statistics.median(counts[-tenth:]))


def run(folder: Path, seconds: float) -> Soak:
    """A site in `folder`, and clients for that long."""
    with served(folder) as (place, _):
        return uvloop.run(_run(place, seconds))


async def _run(place: Place, seconds: float) -> Soak:
    book, samples = Book(), []
    found = await asyncio.to_thread(place.processes)
    pids = [*found["router"], *found["workers"]]
    upstreams = place.upstreams()
    pacer = subprocess.Popen(
        [sys.executable, "-c", PACER, str(place.port), TOKEN, str(seconds)], stdout=subprocess.PIPE, text=True
    )
    reading = asyncio.create_task(asyncio.to_thread(pacer.communicate))
    source = random.Random(1)
    async with Crowd(
        "127.0.0.1", place.port, book, TOKEN, SPARE, source, PACE, count=SOCKETS, streaming=STREAMING
    ):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            samples.append(_sample(pids, [os.getpid(), pacer.pid], upstreams))
            await asyncio.sleep(1)
    lags = [float(line) for line in (await reading)[0].split()]
    await asyncio.sleep(_LAST_S)
    told = await asyncio.to_thread(place.status)
    left = told["connections"] + sum(replica["inflight"] for replica in told["replicas"].values())
    return Soak(seconds, book, samples, lags, left)


def _sample(pids: list[int], clients: list[int], upstreams: list[int]) -> Sample:
    memory = {pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in pids}
    return Sample(time.monotonic(), memory, descriptors(pids, clients, upstreams, _LAST_S))


def missed(soak: Soak) -> Iterator[str]:
    """The bars that are not met."""
    for pid in soak.samples[0].memory:
        if soak.slope(pid) >= SLOPE_BAR:
            yield f"process {pid} grows by {soak.slope(pid):.2f} MiB in ten minutes"
        first, last = soak.others(pid)
        if abs(last - first) > _FEW_OTHERS:
            yield f"process {pid} has {last - first:+d} descriptors without an open connection"
    first, last = soak.all_descriptors()
    if abs(last - first) > _FEW:
        yield f"all processes together have {last - first:+d} descriptors"
    if soak.lag_ms(0.99) > LAG_BAR_MS:
        yield f"the loops lag by {soak.lag_ms(0.99):.1f} ms (p99)"
    if soak.left:
        yield f"{soak.left} connections or requests are left at the end"
    if soak.book.counts().keys() != {Outcome.WHOLE}:
        yield f"not all requests went well: {dict(soak.book.counts())}"


def report(soak: Soak, command: str) -> str:
    """Markdown."""
    said = list(missed(soak))
    return "\n".join(
        (
            "# Soak",
            "",
            f"Made by `{command}`: {len(soak.book.outcomes):,} requests over {SOCKETS} sockets in "
            f"{soak.seconds:.0f} s, all but the first sixth of which counts.",
            f"Bars missed: {len(said) or 'none'}.",
            *(f"- {one}" for one in said),
            "",
            "| process | MiB after the warm-up | at the end | in ten minutes |",
            "| --- | ---: | ---: | ---: |",
            *_memory(soak),
            "",
            "| descriptors of | clients | upstreams | others after the warm-up | at the end | more others |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
            *_descriptors(soak),
            "",
            "Those of clients and upstreams, as they are at the end, are connections that the other side",
            "keeps as well: which worker one comes to is up to the kernel, whenever a client connects anew.",
            "All processes together had {} after the warm-up and {} at the end.".format(
                *soak.all_descriptors()
            ),
            "",
            f"Lag of the loops, from outside, in {len(soak.lags):,} looks: median {soak.lag_ms(0.5):.2f} ms,",
            f"p99 {soak.lag_ms(0.99):.2f} ms, longest {soak.lag_ms(1.0):.1f} ms.",
            f"Connections and requests left at the end: {soak.left}.",
            "",
        )
    )


def _memory(soak: Soak) -> Iterator[str]:
    first, last = soak.settled[0].memory, soak.settled[-1].memory
    for name, pid in _named(soak):
        yield f"| {name} | {first[pid] / 2**20:.1f} | {last[pid] / 2**20:.1f} | {soak.slope(pid):+.2f} |"


def _descriptors(soak: Soak) -> Iterator[str]:
    for name, pid in _named(soak):
        found = [sample.descriptors[pid] for sample in soak.settled]
        _, clients = first_and_last([of_one.clients for of_one in found])
        _, upstreams = first_and_last([of_one.upstreams for of_one in found])
        first, last = soak.others(pid)
        yield f"| {name} | {clients} | {upstreams} | {first} | {last} | {last - first:+d} |"


def _named(soak: Soak) -> Iterator[tuple[str, int]]:
    for index, pid in enumerate(soak.samples[0].memory):
        yield f"worker {index - 1}" if index else "parent", pid


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.name} as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ss-soak-") as folder:
        found = run(Path(folder, "site"), given.minutes * 60)
    text = report(found, f"python -m benchmarks.soak --minutes {given.minutes:g}")
    print(text)
    if given.write:
        RESULTS.write_text(text)
    return 1 if any(missed(found)) else 0


if __name__ == "__main__":
    sys.exit(main())
