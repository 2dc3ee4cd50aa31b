"""The bound on requests in flight over HTTP: exact, and freed on every way out. And its deadlines."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from servestate.planner.table import Guard, Limit, RoutingTable, Traffic
from servestate.runtime.router.quota.rates import Admission
from tests.router import rig
from tests.router.leftovers import nothing_is_left
from tests.router.rig import Rig, ask, read_answer, request, serving, until
from tests.router.upstreams import (
    BUSY,
    DONE,
    EVENT,
    Gate,
    Received,
    Script,
    Upstream,
    answer,
    begins,
    breaks,
    entity,
    hangs,
    hangs_up,
    says,
    sse_head,
    table,
)

CUSTOM = b'{"instances":[[1]]}'
INVOKE = "/serving-endpoints/chat-ep/invocations"


def bounded(
    *urls: str, most: int = 1, task: str = "", traffic: dict[str, Any] | None = None, **more: Any
) -> RoutingTable:
    """All traffic to the first of `urls`."""
    entities = [
        entity(n, 0 if i else 100, url, task=task)
        for i, (n, url) in enumerate(zip("abc", urls, strict=False))
    ]
    return table(*entities, traffic=Traffic(concurrency=most, **(traffic or {})), **more)


def refused(r: Rig) -> dict[str, int]:
    rates = r.router.desk.table.endpoints["chat-ep"].rates
    assert rates is not None
    return rates.refused


def test_so_many_are_in_flight_and_the_next_is_told_to_wait() -> None:
    async def body() -> None:
        gate = Gate()
        async with Upstream(gate) as up, serving(bounded(up.url, most=3)) as r:
            running = [asyncio.ensure_future(ask(r, request())) for _ in range(3)]
            await until(lambda: len(up.received) == 3)
            got = await ask(r, request())
            assert (got.status, got.fields["retry-after"]) == (429, "1")
            assert got.json()["error"]["type"] == "rate_limit_error"
            assert "concurrency" in got.json()["error"]["message"]
            assert not [name for name in got.fields if name.startswith("x-ratelimit")]
            got = await ask(r, request(target=INVOKE))
            assert (got.status, got.json()["error_code"]) == (429, "REQUEST_LIMIT_EXCEEDED")
            gate.open()
            assert {g.status for g in await asyncio.gather(*running)} == {200}
            assert (await ask(r, request())).status == 200
            assert refused(r) == {"concurrency": 2}
            assert r.router.report()["endpoints"]["chat-ep"]["limited"] == 2
            assert (len(up.received), r.counters("chat-ep", "a")["assigned"]) == (4, 4)
            await nothing_is_left(r, up)

    rig.run(body())


def test_never_more_whatever_comes_at_once() -> None:
    async def body() -> None:
        running = most = 0

        async def counts(received: Received, writer: asyncio.StreamWriter) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.002)
            running -= 1
            writer.write(answer())

        async with Upstream(counts) as up, serving(bounded(up.url, most=5)) as r:
            answers = await asyncio.gather(*(ask(r, request()) for _ in range(100)))
            statuses = Counter(got.status for got in answers)
            assert statuses[200] + statuses[429] == 100
            assert statuses[200] >= 5
            assert most == 5
            await nothing_is_left(r, up)

    rig.run(body())


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (says(answer()), 200),
        (says(answer(b"{}", "400 Bad Request")), 400),
        (says(answer(b"{}", "500 Broken")), 500),
        (says(BUSY), 429),
        (says(b"nonsense\r\n\r\n"), 500),
        (hangs_up, 504),
        (breaks, 200),
        (says(sse_head() + b"0\r\n\r\n"), 504),
        (says(sse_head() + EVENT + DONE), 200),
        (hangs, 504),
        (begins, 200),
    ],
    ids=["answer", "4xx", "5xx", "429", "nonsense", "lost", "cut", "empty", "stream", "late", "stalled"],
)
def test_however_a_request_ends_its_place_is_free(script: Script, status: int) -> None:
    async def body() -> None:
        traffic = {"deadline_s": 0.05, "stall_s": 0.05}
        async with Upstream(script) as up, serving(bounded(up.url, traffic=traffic)) as r:
            for _ in range(3):
                got = await ask(r, request())
                assert got.status == status
                assert "limit of the endpoint" not in got.body.decode("latin-1"), "not ours"
            assert not refused(r)
            await nothing_is_left(r, up)

    rig.run(body())


@pytest.mark.parametrize("script", [hangs, begins], ids=["waiting", "mid-stream"])
def test_a_client_that_leaves_gives_its_place_back(script: Script) -> None:
    async def body() -> None:
        async with Upstream(script) as up, serving(bounded(up.url)) as r:
            for count in range(1, 4):
                reader, writer = await r.connect()
                writer.write(request())
                await until(lambda c=count: len(up.received) == c)
                if script is begins:
                    await reader.readuntil(b'"x"')
                writer.transport.abort()
                await until(lambda: r.inflight() == 0)
            assert not refused(r)
            await nothing_is_left(r, up)

    rig.run(body())


def test_a_fallback_keeps_its_place_and_gives_it_back_once() -> None:
    async def body() -> None:
        gate = Gate()
        async with (
            Upstream(says(BUSY)) as a,
            Upstream(gate) as b,
            serving(bounded(a.url, b.url, traffic={"fallback": True})) as r,
        ):
            running = asyncio.ensure_future(ask(r, request()))
            await until(lambda: len(b.received) == 1)
            assert (await ask(r, request())).status == 429
            gate.open()
            assert (await running).status == 200
            for _ in range(3):
                assert (await ask(r, request())).status == 200
            assert refused(r) == {"concurrency": 1}
            await nothing_is_left(r, a, b)

    rig.run(body())


def test_what_is_refused_after_it_was_let_in_gives_its_place_back() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(bounded(up.url, task="llm/v1/chat")) as r:
            for _ in range(3):
                assert (await ask(r, request(CUSTOM, INVOKE))).status == 400
            assert (await ask(r, request())).status == 200

    rig.run(body())


def test_guards_do_not_hold_places() -> None:
    async def body() -> None:
        said = b'{"choices":[{"message":{"content":"the secret plan"}}]}'
        guard = Guard(("secret plan",))
        bad = rig.CHAT.replace(b"hi", b"secret plan")
        async with (
            Upstream(says(answer(said))) as up,
            serving(bounded(up.url, guard_input=guard, guard_output=guard)) as r,
        ):
            for content in (bad, bad, rig.CHAT, rig.CHAT, bad):
                assert (await ask(r, request(content))).status == 400
            assert len(up.received) == 2
            assert not refused(r)
            await nothing_is_left(r, up)

    rig.run(body())


def test_an_entity_that_is_not_ready_holds_no_place() -> None:
    async def body() -> None:
        routes = table(entity("a", 100), traffic=Traffic(concurrency=1))
        async with serving(routes) as r:
            for _ in range(3):
                assert (await ask(r, request())).status == 503

    rig.run(body())


def test_in_shadow_it_only_counts() -> None:
    async def body() -> None:
        gate = Gate()
        async with Upstream(gate) as up, serving(bounded(up.url, traffic={"shadow": True})) as r:
            running = [asyncio.ensure_future(ask(r, request())) for _ in range(4)]
            await until(lambda: len(up.received) == 4)
            gate.open()
            assert {got.status for got in await asyncio.gather(*running)} == {200}
            rates = r.router.desk.table.endpoints["chat-ep"].rates
            assert rates is not None
            assert (rates.refused, rates.shadowed) == ({}, {"concurrency": 3})
            assert r.router.report()["endpoints"]["chat-ep"]["limited"] == 0
            assert (await ask(r, request())).status == 200
            assert rates.shadowed == {"concurrency": 3}, "those were not counted as in flight"

    rig.run(body())


def test_what_runs_still_counts_after_a_reload() -> None:
    async def body() -> None:
        gate = Gate()
        async with Upstream(gate) as up, serving(bounded(up.url)) as r:
            running = asyncio.ensure_future(ask(r, request()))
            await until(lambda: len(up.received) == 1)
            r.install(RoutingTable(2, "lineage-1", bounded(up.url).endpoints))
            await until(lambda: r.router.report()["table_version"] == 2)
            assert (await ask(r, request())).status == 429
            gate.open()
            assert (await running).status == 200
            assert (await ask(r, request())).status == 200

    rig.run(body())


def test_calls_refused_for_concurrency_cost_no_call_of_the_limit() -> None:
    async def body() -> None:
        gate = Gate()
        limits = (Limit("endpoint", "", calls=2),)
        async with Upstream(gate) as up, serving(bounded(up.url, limits=limits)) as r:
            running = asyncio.ensure_future(ask(r, request()))
            await until(lambda: len(up.received) == 1)
            for _ in range(5):
                got = await ask(r, request())
                assert (got.status, got.fields["x-ratelimit-remaining-requests"]) == (429, "1")
            gate.open()
            assert (await running).status == 200
            assert (await ask(r, request())).status == 200
            assert (await ask(r, request())).status == 429

    rig.run(body())


# Deadlines of an endpoint.


async def _timed(work: Callable[[], Awaitable[Any]]) -> tuple[Any, float]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    return await work(), loop.time() - began


def test_an_endpoint_has_its_own_deadline() -> None:
    async def body() -> None:
        async with Upstream(hangs) as up:
            slow = table(entity("a", 100, up.url), name="slow", traffic=Traffic(deadline_s=30)).endpoints
            routes = table(entity("a", 100, up.url), traffic=Traffic(deadline_s=0.1))
            async with serving(RoutingTable(1, "lineage-1", (*routes.endpoints, *slow))) as r:
                patient = asyncio.ensure_future(ask(r, request(rig.CHAT.replace(b"chat-ep", b"slow"))))
                got, seconds = await _timed(lambda: ask(r, request()))
                assert (got.status, got.fields["servestate-retry"]) == (504, "unsafe")
                assert "0.1 s" in got.json()["error"]["message"]
                assert 0.1 <= seconds < 5
                assert not patient.done()
                patient.cancel()
                await asyncio.gather(patient, return_exceptions=True)
                await nothing_is_left(r, up)

    rig.run(body())


def test_a_deadline_is_for_the_first_content_and_a_stall_for_all_that_follows() -> None:
    async def body() -> None:
        async def drips(received: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(sse_head())
            for _ in range(8):
                writer.write(EVENT)
                await writer.drain()
                await asyncio.sleep(0.05)
            writer.write(DONE)

        async with Upstream(drips) as up:
            traffic = Traffic(deadline_s=0.3, stall_s=0.3)
            async with serving(table(entity("a", 100, up.url), traffic=traffic)) as r:
                got, seconds = await _timed(lambda: ask(r, request()))
                assert (got.status, got.whole) == (200, True)
                assert seconds > 0.3
                up.script = begins
                got, seconds = await _timed(lambda: ask(r, request()))
                assert (got.status, got.whole) == (200, False)
                assert b"error" in got.body
                assert b"[DONE]" not in got.body
                assert 0.3 <= seconds < 5
                truncated = r.router.snapshot()["servestate_stream_truncated_total"]
                assert truncated == [[["chat-ep", "a", "stalled"], 1]]
                await nothing_is_left(r, up)

    rig.run(body())


def test_a_json_answer_that_stalls_is_not_whole() -> None:
    async def body() -> None:
        async def half(received: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(answer(b"x" * 1000)[:-500])
            await asyncio.sleep(3600)

        async with (
            Upstream(half) as up,
            serving(table(entity("a", 100, up.url), traffic=Traffic(stall_s=0.05))) as r,
        ):
            reader, writer = await r.connect()
            writer.write(request())
            got = await read_answer(reader)
            assert (got.status, got.whole, got.closed) == (200, False, True)
            writer.close()
            await nothing_is_left(r, up)

    rig.run(body())


def test_the_check_notices_a_place_that_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "ended", lambda *_: None)

    async def body() -> None:
        async with Upstream() as up, serving(bounded(up.url)) as r:
            assert (await ask(r, request())).status == 200
            assert (await ask(r, request())).status == 429

    rig.run(body())
