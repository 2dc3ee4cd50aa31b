"""Clients that are slow on purpose: they are shed in time, and nobody else notices that they are there."""

from __future__ import annotations

import asyncio
import resource
import socket
import statistics
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from servestate.runtime.router import Limits
from tests.router import rig
from tests.router.apart import Apart, apart
from tests.router.rig import bounded, read_answer, request
from tests.router.upstreams import Received, Upstream, answer, entity, table

LARGE = b'{"large":"' + b"x" * 8_000_000 + b'"}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n"
BODY = HEAD + b"Content-Length: 1000000\r\n\r\n"
ASKS = b'{"model":"chat-ep","messages":[],"want":"large"}'
GRACE_S = 5.0


async def serve(received: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(LARGE if b"large" in received.body else b"{}"))


@dataclass
class Siege:
    """Attackers at a router. `lived` are the seconds for which each that was closed had been open; `opened`
    counts them all."""

    port: int
    pace_s: float
    lived: list[float] = field(default_factory=list)
    opened: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    over: bool = False

    def start(self, attack: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
        self.tasks += [asyncio.create_task(self._again_and_again(attack)) for _ in range(count)]

    async def _again_and_again(self, attack: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop = asyncio.get_running_loop()
        while not self.over:
            began = loop.time()
            self.opened += 1
            with suppress(OSError):
                await attack()
            self.lived.append(loop.time() - began)
            await asyncio.sleep(self.pace_s)

    async def head(self) -> None:
        """A field that never ends, a byte at a time."""
        await self._drip(HEAD + b"X-A: ")

    async def body(self) -> None:
        """A body that never ends."""
        await self._drip(BODY)

    async def _drip(self, start: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(start)
        reading = asyncio.ensure_future(reader.read())
        try:
            while not (await asyncio.wait({reading}, timeout=self.pace_s))[0]:
                writer.write(b"a")
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            writer.transport.abort()

    async def answer(self) -> None:
        """A large answer that is asked for and not read, but for a byte now and then."""
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", self.port))
            await loop.sock_sendall(sock, request(ASKS))
            while await loop.sock_recv(sock, 1):
                await asyncio.sleep(self.pace_s)

    async def end(self) -> None:
        self.over = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def good_traffic(r: Apart, seconds: float) -> tuple[int, float]:
    """How many requests of four friendly clients failed, and the 99th percentile of their seconds."""
    loop = asyncio.get_running_loop()
    took: list[float] = []
    failed = 0

    async def friend() -> None:
        nonlocal failed
        reader, writer = await r.connect()
        while loop.time() < end:
            began = loop.time()
            writer.write(request())
            got = await bounded(read_answer(reader))
            took.append(loop.time() - began)
            failed += not (got.status == 200 and got.whole and not got.closed)
            await asyncio.sleep(0.01)
        writer.close()

    end = loop.time() + seconds
    await asyncio.gather(*(friend() for _ in range(4)))
    return failed, statistics.quantiles(took, n=100)[98]


@dataclass(frozen=True)
class Outcome:
    """What a siege did: failed requests and slowness of friends, attackers that stayed too long, memory."""

    failed: int
    quiet_p99_s: float
    p99_s: float
    longest_s: float
    opened: int
    grown: int
    left: int


async def besiege(limits: Limits, each: int, seconds: float, pace_s: float) -> Outcome:
    """`each` attackers of every kind for that long, beside good traffic."""
    async with Upstream(serve) as up, apart(table(entity("a", 100, up.url)), limits) as r:
        _, quiet = await good_traffic(r, min(seconds, 5))
        before = r.memory()
        siege = Siege(r.port, pace_s)
        for attack in (siege.head, siege.body, siege.answer):
            siege.start(attack, each)
        failed, p99 = await good_traffic(r, seconds)
        grown = r.most_memory() - before
        siege.over = True  # who is closed now does not come back
        left = await _left_at_last(r, deadline_of(limits) + GRACE_S)
        longest = max(siege.lived, default=seconds)
        opened = siege.opened
        await siege.end()
        return Outcome(failed, quiet, p99, longest, opened, grown, left)


async def _left_at_last(r: Apart, within_s: float) -> int:
    """How many clients are still connected when all should be gone."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while (left := int((await r.report())["connections"])) and loop.time() < end:
        await asyncio.sleep(0.1)
    return left


def deadline_of(limits: Limits) -> float:
    """The longest of the deadlines that the attackers run into."""
    return max(limits.header_s, limits.body_grace_s, limits.stall_s) + limits.linger_s


def faults(outcome: Outcome, limits: Limits) -> list[str]:
    found = []
    if outcome.failed:
        found.append(f"{outcome.failed} good requests failed")
    if outcome.left:
        found.append(f"{outcome.left} attackers are still connected")
    if outcome.longest_s > deadline_of(limits) + GRACE_S:
        found.append(f"an attacker stayed {outcome.longest_s:.1f} s")
    if outcome.grown > 100 << 20:
        found.append(f"memory grew by {outcome.grown >> 20} MiB")
    # Below some milliseconds it is the machine's own noise that doubles.
    if outcome.p99_s > max(2 * outcome.quiet_p99_s, 0.05):
        found.append(f"p99 {outcome.p99_s * 1000:.1f} ms, quiet {outcome.quiet_p99_s * 1000:.1f} ms")
    return found


QUICK = Limits(header_s=0.5, body_grace_s=0.5, stall_s=0.5, linger_s=0.2, tick_s=0.05)


def test_a_short_siege() -> None:
    async def body() -> None:
        outcome = await besiege(QUICK, each=10, seconds=1, pace_s=0.05)
        print(outcome)
        assert faults(outcome, QUICK) == []

    rig.run(body())


def unsent(port: int) -> int:
    """Bytes that the system still holds for clients of that port whose sockets are closed (proc(5))."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    sockets = [line.split() for line in lines]
    closed = [fields for fields in sockets if fields[1].endswith(f":{port:04X}") and fields[3] == "04"]
    return sum(int(fields[4].partition(":")[0], 16) for fields in closed)


def test_the_system_keeps_nothing_for_who_was_shed() -> None:
    """What a client did not read would stay in memory for minutes after its socket was closed."""

    async def body() -> None:
        async with Upstream(serve) as up, apart(table(entity("a", 100, up.url)), QUICK) as r:
            siege = Siege(r.port, 60.0)
            siege.start(siege.answer, 20)
            await _connected(r, 20)
            assert await _left_at_last(r, deadline_of(QUICK) + GRACE_S) == 0
            assert unsent(r.port) == 0
            await siege.end()

    rig.run(body())


async def _connected(r: Apart, count: int) -> None:
    async with asyncio.timeout(GRACE_S):
        while (await r.report())["connections"] < count:
            await asyncio.sleep(0.01)


@pytest.mark.slow
def test_a_thousand_slow_sockets_for_a_minute() -> None:
    """A thousand of all kinds at any time; each that is shed comes back."""

    async def body() -> None:
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 4000:
            pytest.skip("needs 4,000 open files")
        limits = Limits(stall_s=10.0)
        outcome = await besiege(limits, each=334, seconds=60, pace_s=1.0)
        print(outcome)
        assert faults(outcome, limits) == []
        assert outcome.opened >= 4000

    rig.run(body())


def test_the_check_notices_a_router_without_deadlines() -> None:
    async def body() -> None:
        never = Limits(header_s=1e6, body_grace_s=1e6, stall_s=1e6, idle_s=1e6, request_s=1e6)
        async with Upstream(serve) as up, apart(table(entity("a", 100, up.url)), never) as r:
            siege = Siege(r.port, 0.05)
            for attack in (siege.head, siege.body, siege.answer):
                siege.start(attack, 10)
            await asyncio.sleep(deadline_of(QUICK) + 1.0)
            assert siege.lived == []
            assert (await r.report())["connections"] == 30
            await siege.end()

    rig.run(body())
