"""What is counted of answers: status classes and latencies, each answer once."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import replace
from typing import Any

from servestate.runtime.router.records.counters import BOUNDS_MS, Counters
from tests.router import rig
from tests.router.rig import QUICK, Rig, ask, request, serving
from tests.router.upstreams import Received, Upstream, answer, chunk, entity, hangs, says, sse_head, table


def counted(r: Rig) -> dict[str, Any]:
    return r.router.report()["endpoints"]["chat-ep"]["entities"]["a"]


def test_each_answer_is_in_one_bucket_up_to_its_bound() -> None:
    counters = Counters()
    for ms in (0.0, 5.0, 5.1, 600_000.0, 600_001.0):
        counters.answered(2, ms / 1000)
    assert (counters.latencies.counts[0], counters.latencies.counts[1]) == (2, 1)
    assert counters.latencies.counts[-2:] == [1, 1]
    assert sum(counters.latencies.counts) == counters.statuses[2] == 5
    assert len(counters.latencies.counts) == len(BOUNDS_MS) + 1
    assert round(counters.latencies.sum, 4) == 1200.0111


def test_answers_by_class() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            for status, times in (
                ("200 OK", 3),
                ("404 No", 2),
                ("422 Odd", 1),
                ("500 Bad", 2),
                ("503 Busy", 1),
            ):
                up.script = says(answer(status=status))
                for _ in range(times):
                    await ask(r, request())
            report = counted(r)
            assert report["statuses"] == {"2xx": 3, "4xx": 3, "5xx": 3}
            latency = report["latency_ms"]
            assert (sum(latency["counts"]), list(latency["bounds"])) == (9, list(BOUNDS_MS))
            assert 0 <= latency["sum"] < 60_000
            assert (await ask(r, request(b"{"))).status == 400
            assert counted(r) == report, "what reached no entity counts with none"

    rig.run(body())


def test_latency_is_to_the_last_byte_and_a_broken_stream_is_an_error() -> None:
    async def body() -> None:
        whole = True

        async def slow(received: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(sse_head() + chunk(b"data: 1\n\n"))
            await asyncio.sleep(0.06)
            if whole:
                writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            else:
                writer.transport.abort()

        async with Upstream(slow) as up, serving(table(entity("a", 100, up.url))) as r:
            assert (await ask(r, request())).whole
            report = counted(r)
            assert report["statuses"] == {"2xx": 1, "4xx": 0, "5xx": 0}
            assert report["latency_ms"]["sum"] >= 59
            assert sum(report["latency_ms"]["counts"][bisect_left(BOUNDS_MS, 59) :]) == 1
            whole = False
            assert not (await ask(r, request())).whole
            assert counted(r)["statuses"] == {"2xx": 1, "4xx": 0, "5xx": 1}

    rig.run(body())


def test_what_no_client_waited_for_is_no_answer() -> None:
    async def body() -> None:
        limits = replace(QUICK, request_s=0.05)
        async with Upstream(hangs) as up, serving(table(entity("a", 100, up.url))) as r:
            _, writer = await r.connect()
            writer.write(request())
            await rig.until(lambda: len(up.received) == 1)
            writer.close()
            await rig.until(lambda: r.inflight() == 0)
            assert sum(counted(r)["statuses"].values()) == 0
        async with Upstream(hangs) as up, serving(table(entity("a", 100, up.url)), limits) as r:
            assert (await ask(r, request())).status == 504
            assert counted(r)["statuses"]["5xx"] == 1

    rig.run(body())
