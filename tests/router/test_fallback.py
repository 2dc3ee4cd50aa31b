"""Fallback: what is tried elsewhere, in which order, and what is never tried twice."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from servestate.planner.table import RoutingTable, Traffic
from tests.router import rig
from tests.router.rig import QUICK, Rig, ask, read_answer, request, serving
from tests.router.upstreams import (
    BROKEN,
    BUSY,
    DOWN,
    Received,
    Script,
    Upstream,
    answer,
    breaks,
    chunk,
    entity,
    hangs_up,
    in_turn,
    says,
    sse_head,
    table,
)

FALLS_BACK = Traffic(fallback=True)


def two(first: str, second: str, **more: Any) -> RoutingTable:
    """All traffic to `a`; `b` gets none, and is there to fall back on."""
    return table(entity("a", 100, first), entity("b", 0, second, model="other-model"), **more)


async def in_flight_is_over(r: Rig) -> None:
    await rig.until(lambda: r.inflight() == 0)


@pytest.mark.parametrize("refusal", [BUSY, BROKEN, answer(b"", "503 Service Unavailable")])
def test_what_an_entity_refuses_the_next_one_answers(refusal: bytes) -> None:
    async def body() -> None:
        async with (
            Upstream(says(refusal)) as a,
            Upstream() as b,
            serving(two(a.url, b.url, traffic=FALLS_BACK)) as r,
        ):
            got = await ask(r, request())
            assert (got.status, got.body) == (200, b'{"ok":true}')
            assert got.fields["served-model-name"] == "b"
            assert got.fields["x-servestate-attempts"] == "2"
            assert json.loads(b.received[0].body)["model"] == "other-model", "rewritten for the other"
            assert (len(a.received), len(b.received)) == (1, 1)
            assert r.counters("chat-ep", "a")["assigned"] == 1, "the first choice is what counts"
            assert r.counters("chat-ep", "b")["assigned"] == 0
            await in_flight_is_over(r)

    rig.run(body())


def test_without_fallback_the_refusal_is_passed_on() -> None:
    async def body() -> None:
        async with Upstream(says(BUSY)) as a, Upstream() as b, serving(two(a.url, b.url)) as r:
            got = await ask(r, request())
            assert got.status == 429
            assert not b.received

    rig.run(body())


@pytest.mark.parametrize(
    "status", ["400 Bad Request", "401 Unauthorized", "404 Not Found", "422 Unprocessable"]
)
def test_no_other_4xx_is_tried_elsewhere(status: str) -> None:
    async def body() -> None:
        async with (
            Upstream(says(answer(b"{}", status))) as a,
            Upstream() as b,
            serving(two(a.url, b.url, traffic=FALLS_BACK)) as r,
        ):
            got = await ask(r, request())
            assert 400 <= got.status < 500
            assert not b.received

    rig.run(body())


def test_an_unreachable_entity_and_one_that_is_not_ready_are_passed_over() -> None:
    async def body() -> None:
        async with Upstream() as up:
            entities = entity("a", 100, DOWN), entity("asleep", 0), entity("c", 0, up.url)
            async with serving(table(*entities, traffic=FALLS_BACK)) as r:
                got = await ask(r, request())
                assert (got.status, got.fields["served-model-name"]) == (200, "c")
                assert got.fields["x-servestate-attempts"] == "3"

    rig.run(body())


def test_entities_are_tried_in_declared_order_each_once_and_the_last_error_goes_out() -> None:
    async def body() -> None:
        order: list[str] = []

        def notes(name: str, data: bytes) -> Script:
            async def script(received: Received, writer: asyncio.StreamWriter) -> None:
                order.append(name)
                writer.write(data)

            return script

        async with (
            Upstream(notes("a", BROKEN)) as a,
            Upstream(notes("b", BROKEN)) as b,
            Upstream(notes("c", BUSY)) as c,
        ):
            entities = entity("a", 0, a.url), entity("b", 100, b.url), entity("c", 0, c.url)
            # Where the last one asks for a pause beyond the deadline, its answer goes out at once.
            hurried = Traffic(fallback=True, deadline_s=0.5)
            async with serving(table(*entities, traffic=hurried)) as r:
                got = await ask(r, request())
                assert (got.status, got.fields["served-model-name"]) == (429, "c")
                assert got.fields["x-servestate-attempts"] == "3"
                assert order == ["b", "a", "c"]
                await in_flight_is_over(r)

    rig.run(body())


def test_a_pause_that_fits_the_deadline_is_waited_out_once() -> None:
    async def body() -> None:
        asks = answer(b"{}", "503 Service Unavailable", "Retry-After: 1\r\n")
        async with (
            Upstream(in_turn(asks, answer())) as up,
            serving(table(entity("a", 100, up.url), traffic=FALLS_BACK)) as r,
        ):
            got = await ask(r, request())
            assert got.status == 200
            assert got.fields["x-servestate-attempts"] == "2"
            assert int(got.fields["x-servestate-queue-ms"]) == 1000
            assert len(up.received) == 2
            up.script = says(asks)
            got = await ask(r, request())
            assert (got.status, got.fields["retry-after"]) == (503, "1")
            assert len(up.received) == 4, "one more try, not two"
            await in_flight_is_over(r)

    rig.run(body())


def test_a_pause_ends_when_the_client_leaves() -> None:
    async def body() -> None:
        asks = answer(b"{}", "503 Service Unavailable", "Retry-After: 1\r\n")
        async with (
            Upstream(says(asks)) as up,
            serving(table(entity("a", 100, up.url), traffic=FALLS_BACK)) as r,
        ):
            _, writer = await r.connect()
            writer.write(request())
            await rig.until(lambda: len(up.received) == 1)
            writer.transport.abort()
            await in_flight_is_over(r)
            await asyncio.sleep(1.2)
            assert len(up.received) == 1, "nothing is tried for nobody"

    rig.run(body())


def test_what_may_have_run_is_not_tried_elsewhere() -> None:
    async def body() -> None:
        async with (
            Upstream(hangs_up) as a,
            Upstream() as b,
            serving(two(a.url, b.url, traffic=FALLS_BACK)) as r,
        ):
            got = await ask(r, request())
            assert (got.status, got.fields["servestate-retry"]) == (504, "unsafe")
            assert got.fields["x-should-retry"] == "false"
            assert not b.received

    rig.run(body())


@pytest.mark.parametrize("script", [hangs_up, says(sse_head() + b"0\r\n\r\n")], ids=["lost", "empty stream"])
def test_the_operator_may_allow_it(script: Script) -> None:
    async def body() -> None:
        async with Upstream(script) as a, Upstream() as b:
            allowed = Traffic(fallback=True, after_send=True)
            async with serving(two(a.url, b.url, traffic=allowed)) as r:
                got = await ask(r, request())
                assert (got.status, got.fields["served-model-name"]) == (200, "b")

    rig.run(body())


def test_after_the_first_content_nothing_is_tried_elsewhere() -> None:
    async def body() -> None:
        async with Upstream(breaks) as a, Upstream() as b:
            allowed = Traffic(fallback=True, after_send=True)
            async with serving(two(a.url, b.url, traffic=allowed)) as r:
                got = await ask(r, request())
                assert got.status == 200
                assert not got.whole
                assert b"error" in got.body
                assert b"[DONE]" not in got.body
                assert not b.received

    rig.run(body())


def test_a_stream_that_begins_with_an_error_is_no_200() -> None:
    async def body() -> None:
        error = (
            sse_head()
            + chunk(b'data: {"error":{"message":"no room","code":503}}\n\n')
            + chunk(b"data: [DONE]\n\n")
        )
        async with (
            Upstream(says(error + b"0\r\n\r\n")) as a,
            Upstream() as b,
            serving(two(a.url, b.url)) as r,
        ):
            got = await ask(r, request())
            assert (got.status, got.json()["error"]["message"]) == (503, "no room")
            async with serving(two(a.url, b.url, traffic=FALLS_BACK)) as r:
                got = await ask(r, request())
                assert (got.status, got.fields["served-model-name"]) == (200, "b")

    rig.run(body())


def test_a_request_that_names_its_entity_gets_that_one_or_nothing() -> None:
    async def body() -> None:
        async with (
            Upstream(says(BUSY)) as a,
            Upstream() as b,
            serving(two(a.url, b.url, traffic=FALLS_BACK)) as r,
        ):
            got = await ask(r, request(rig.CHAT.replace(b'"chat-ep"', b'"chat-ep/a"')))
            assert got.status == 429
            got = await ask(r, request(target="/serving-endpoints/chat-ep/served-models/a/invocations"))
            assert got.status == 429
            assert not b.received

    rig.run(body())


def test_an_entity_that_takes_no_such_body_is_passed_over() -> None:
    async def body() -> None:
        async with Upstream(says(BUSY)) as a, Upstream() as b, Upstream() as c:
            entities = (
                entity("a", 100, a.url),
                entity("b", 0, b.url, task="llm/v1/embeddings"),
                entity("c", 0, c.url),
            )
            async with serving(table(*entities, traffic=FALLS_BACK)) as r:
                got = await ask(r, request())
                assert (got.status, got.fields["served-model-name"]) == (200, "c")
                assert not b.received

    rig.run(body())


def test_one_deadline_for_all_attempts() -> None:
    async def body() -> None:
        async def slowly(received: Received, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.25)
            writer.write(BROKEN)

        async with Upstream(slowly) as a, Upstream(slowly) as b, Upstream(slowly) as c:
            entities = entity("a", 100, a.url), entity("b", 0, b.url), entity("c", 0, c.url)
            hurried = Traffic(fallback=True, deadline_s=0.4)
            async with serving(table(*entities, traffic=hurried), QUICK) as r:
                got = await ask(r, request())
                assert got.status == 504
                assert (len(a.received), len(b.received), len(c.received)) == (1, 1, 0)
                await in_flight_is_over(r)

    rig.run(body())


def test_a_hundred_callers_fall_back_together_and_nothing_is_left_behind() -> None:
    async def body() -> None:
        async with (
            Upstream(says(BUSY)) as a,
            Upstream() as b,
            serving(two(a.url, b.url, traffic=FALLS_BACK)) as r,
        ):
            answers = await asyncio.gather(*(ask(r, request()) for _ in range(100)))
            assert [got.status for got in answers] == [200] * 100
            assert (len(a.received), len(b.received)) == (100, 100)
            await in_flight_is_over(r)

    rig.run(body())


def test_the_same_connection_serves_on_after_a_fallback() -> None:
    async def body() -> None:
        async with (
            Upstream(in_turn(BUSY, answer())) as a,
            Upstream() as b,
            serving(two(a.url, b.url, traffic=FALLS_BACK)) as r,
        ):
            reader, writer = await r.connect()
            for expected in ("b", "a", "a"):
                writer.write(request())
                got = await read_answer(reader)
                assert (got.status, got.fields["served-model-name"]) == (200, expected)
            writer.close()

    rig.run(body())
