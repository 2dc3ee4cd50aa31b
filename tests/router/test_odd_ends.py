"""Requests and answers that are odd in ways that nobody means well, and what they must not leave behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from servestate.planner.table import Limit, Traffic
from servestate.runtime.router.messages.body import CHAT as CHAT_KIND
from servestate.runtime.router.messages.tokens import prefix_of, prompt_estimate, usage_in
from tests.router import rig
from tests.router.rig import QUICK, ask, read_answer, request, serving
from tests.router.upstreams import Received, Upstream, answer, chunk, entity, says, sse_head, table

TWO_AT_ONCE = Traffic(concurrency=2)


def deep(depth: int, head: str = '"model":"chat-ep","messages":[]') -> bytes:
    return f'{{{head},"x":{"[" * depth}{"]" * depth}}}'.encode()


@pytest.mark.parametrize("depth", [200, 254, 300, 1000])
@pytest.mark.parametrize("more", ["", ',"usage_context":{}'], ids=["plain", "with ours"])
def test_a_deep_body_is_answered_and_gives_its_place_back(depth: int, more: str) -> None:
    async def body() -> None:
        async with Upstream() as up:
            limited = table(entity("a", 100, up.url), traffic=TWO_AT_ONCE)
            async with serving(limited) as r:
                for _ in range(4):
                    got = await ask(r, request(deep(depth, '"model":"chat-ep","messages":[]' + more)))
                    assert got.status in (200, 400)
                assert (await ask(r, request())).status == 200
                assert r.inflight() == 0

    rig.run(body())


def test_deep_messages_are_estimated_like_others() -> None:
    document = {"messages": [[[]]]}
    for _ in range(5000):
        document = {"messages": [document["messages"]]}
    assert prompt_estimate(CHAT_KIND, document) == 0
    assert prefix_of(CHAT_KIND, document) == b""


@pytest.mark.parametrize("tokens", [1 << 41, 1 << 63, 1 << 64, -1])
def test_what_is_no_number_of_tokens_is_no_usage(tokens: int) -> None:
    assert usage_in(b'{"usage":{"prompt_tokens":%d,"completion_tokens":1}}' % tokens) is None


def test_an_absurd_usage_closes_no_limit() -> None:
    async def body() -> None:
        absurd = answer(b'{"usage":{"prompt_tokens":%d,"completion_tokens":1}}' % (1 << 63))
        async with Upstream(says(absurd)) as up:
            limits = (Limit("endpoint", "", 0, 100_000),)
            async with serving(table(entity("a", 100, up.url), limits=limits)) as r:
                for _ in range(3):
                    assert (await ask(r, request())).status == 200
                assert r.inflight() == 0

    rig.run(body())


def test_a_head_that_waits_for_its_content_keeps_its_own_length() -> None:
    """The second answer's head is the first's but for its length, and its content comes late."""

    async def body() -> None:
        async def script(received: Received, writer: asyncio.StreamWriter) -> None:
            content = b"x" * (5 if len(up.received) == 1 else 500)
            head, _, rest = answer(content).partition(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.0 if len(up.received) == 1 else 0.3)
            writer.write(rest)

        async with Upstream(script) as up:
            limits = replace(QUICK, peek_s=0.1)
            async with serving(table(entity("a", 100, up.url)), limits) as r:
                reader, writer = await r.connect()
                for expected in (5, 500):
                    writer.write(request())
                    got = await rig.bounded(read_answer(reader))
                    assert (got.status, len(got.body), got.whole) == (200, expected, True)
                writer.close()

    rig.run(body())


def test_a_comment_that_keeps_the_connection_alive_is_no_content() -> None:
    async def body() -> None:
        async def script(received: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(sse_head() + chunk(b": PING\n\n"))
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(chunk(b'data: {"error":{"message":"late","code":503}}\n\n') + b"0\r\n\r\n")

        async with (
            Upstream(script) as a,
            Upstream() as b,
            serving(
                table(entity("a", 100, a.url), entity("b", 0, b.url), traffic=Traffic(fallback=True))
            ) as r,
        ):
            got = await ask(r, request())
            assert (got.status, got.fields["served-model-name"]) == (200, "b")

    rig.run(body())


def test_a_pause_is_taken_only_where_it_was_asked_for() -> None:
    async def body() -> None:
        broken = answer(b"{}", "503 Service Unavailable")
        async with (
            Upstream(says(broken)) as up,
            serving(table(entity("a", 100, up.url), traffic=Traffic(fallback=True))) as r,
        ):
            got = await ask(r, request())
            assert (got.status, got.fields["x-servestate-queue-ms"]) == (503, "0")
            assert len(up.received) == 1

    rig.run(body())


def test_a_refusal_that_claims_to_be_a_stream_is_a_refusal() -> None:
    async def body() -> None:
        busy = b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/event-stream\r\n\r\nbusy"

        async def script(received: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(busy)
            writer.close()

        async with Upstream(script) as up, serving(table(entity("a", 100, up.url))) as r:
            assert (await ask(r, request())).status == 429

    rig.run(body())


def test_a_body_that_is_mostly_framing_is_refused() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            reader, writer = await r.connect()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            line = b"1;" + b"x" * 900 + b"\r\n \r\n"
            for _ in range(200):
                writer.write(line)
            got = await read_answer(reader)
            assert (got.status, got.closed) == (400, True)
            writer.close()
            assert not up.received

    rig.run(body())
