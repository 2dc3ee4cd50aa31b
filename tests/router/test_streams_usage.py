"""Usage over HTTP: what is asked of the model's server, what callers see of it, and what is counted."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from servestate.planner.table import Limit, RoutingTable, Traffic
from servestate.runtime.router.messages.tokens import Meter
from tests.router import rig, upstreams
from tests.router.kept import keeping
from tests.router.leftovers import nothing_is_left
from tests.router.rig import Answer, Rig, ask, bearer, read_answer, request, serving, until
from tests.router.upstreams import Received, Script, Upstream, answer, chunk, entity, says, sse_head, table

INVOKE = "/serving-endpoints/chat-ep/invocations"
USAGE = b'{"prompt_tokens":11,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}'
PIECES = tuple(
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % word
    for word in (b"abcd", b"\xc3\xa9fgh", b"ijkl")
)
EXTRA = b'data: {"id":"c","choices":[],"usage":%b}\n\n' % USAGE
DONE = b"data: [DONE]\n\n"


def tracked(url: str, **more: Any) -> RoutingTable:
    return table(entity("a", 100, url), **{"usage": True, **more})


chat = partial(rig.chat, "hello, you")
streams = partial(upstreams.streams, usage=EXTRA)
STREAM = chat(stream=True)
ASKING = chat(stream=True, stream_options={"include_usage": True})


def in_two(content: bytes, at: int) -> Script:
    """The bytes of an answer, in two pieces that arrive apart."""

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(content[:at])
        await writer.drain()
        await asyncio.sleep(0.001)
        writer.write(content[at:])

    return script


def sums(r: Rig) -> dict[str, Any]:
    """The only sum of usage that there is."""
    (found,) = r.router.report()["books"]["usage"]
    return {key: found[key] for key in ("requests", "input_tokens", "output_tokens", "estimated")}


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"other": 1}])
def test_the_extra_event_is_hidden_from_who_did_not_ask(options: Any) -> None:
    async def body() -> None:
        content = STREAM if options is None else chat(stream=True, stream_options=options)
        async with Upstream(streams(*PIECES)) as up, serving(tracked(up.url)) as r:
            got = await ask(r, request(content))
            assert got.whole
            assert [line for line in got.body.split(b"\n") if line] == [
                line for line in b"".join((*PIECES, DONE)).split(b"\n") if line
            ]
            sent = json.loads(up.received[0].body)
            assert sent["stream_options"] == {**(options or {}), "include_usage": True}
            assert list(sent)[:3] == ["model", "messages", "stream"]
            assert sums(r) == {"requests": 1, "input_tokens": 11, "output_tokens": 3, "estimated": False}
            await nothing_is_left(r, up)

    rig.run(body())


def test_who_asks_gets_it_and_the_request_is_not_touched() -> None:
    async def body() -> None:
        async with Upstream(streams(*PIECES)) as up, serving(tracked(up.url)) as r:
            got = await ask(r, request(ASKING))
            assert got.body == b"".join((*PIECES, EXTRA, DONE))
            assert up.received[0].body == ASKING.replace(b'"chat-ep"', b'"engine-model"')
            assert sums(r) == {"requests": 1, "input_tokens": 11, "output_tokens": 3, "estimated": False}

    rig.run(body())


def test_where_nobody_counts_nothing_is_asked() -> None:
    async def body() -> None:
        async with Upstream(streams(*PIECES)) as up, serving(tracked(up.url, usage=False)) as r:
            got = await ask(r, request(STREAM))
            assert got.body == b"".join((*PIECES, DONE))
            assert up.received[0].body == STREAM.replace(b'"chat-ep"', b'"engine-model"')

    rig.run(body())


def test_a_usage_of_null_in_every_event_hides_none_of_them() -> None:
    async def body() -> None:
        pieces = [piece.replace(b'"id"', b'"usage":null,"id"') for piece in PIECES]
        async with Upstream(streams(*pieces)) as up, serving(tracked(up.url)) as r:
            got = await ask(r, request(STREAM))
            assert got.body.count(b"data: {") == 3
            assert sums(r)["input_tokens"] == 11

    rig.run(body())


def test_text_that_speaks_of_usage_is_none() -> None:
    async def body() -> None:
        said = json.dumps({"choices": [{"message": {"content": '"usage": {"prompt_tokens": 999}'}}]}).encode()
        async with Upstream(says(answer(said))) as up, serving(tracked(up.url)) as r:
            assert (await ask(r, request(chat()))).body == said
            assert sums(r)["estimated"]
            assert sums(r)["input_tokens"] < 999

    rig.run(body())


@pytest.mark.parametrize("content", [STREAM, ASKING], ids=["hidden", "asked"])
def test_a_stream_that_arrives_in_two_reads_at_any_byte(content: bytes) -> None:
    whole = b"".join(chunk(event) for event in (*PIECES, EXTRA, DONE)) + b"0\r\n\r\n"
    expected = (*PIECES, EXTRA, DONE) if content is ASKING else (*PIECES, DONE)

    async def one(up: Upstream, r: Rig, at: int) -> None:
        got = await ask(r, request(content))
        lines = [line for line in got.body.split(b"\n") if line]
        assert (at, got.whole, lines) == (at, True, [e.strip() for e in expected])

    async def body() -> None:
        head = sse_head()
        cuts = iter(range(len(head), len(head) + len(whole)))

        async def script(received: Received, writer: asyncio.StreamWriter) -> None:
            await in_two(head + whole, next(cuts))(received, writer)

        async with Upstream(script) as up, serving(tracked(up.url)) as r:
            for first in range(0, len(whole), 40):
                batch = range(first, min(first + 40, len(whole)))
                await asyncio.gather(*(one(up, r, at) for at in batch))
            count = len(whole)
            assert sums(r) == {
                "requests": count,
                "input_tokens": 11 * count,
                "output_tokens": 3 * count,
                "estimated": False,
            }
            await nothing_is_left(r, up)

    rig.run(body())


def test_a_json_answer_that_arrives_in_two_reads_at_any_byte() -> None:
    said = b'{"choices":[{"message":{"content":"hi"}}],"usage":%b,"x":"%b"}' % (USAGE, b"y" * 50)
    whole = answer(said)

    async def body() -> None:
        cuts = iter(range(1, len(whole)))

        async def script(received: Received, writer: asyncio.StreamWriter) -> None:
            await in_two(whole, next(cuts))(received, writer)

        async with Upstream(script) as up, serving(tracked(up.url)) as r:
            count = len(whole) - 1
            for first in range(0, count, 40):
                answers = await asyncio.gather(
                    *(ask(r, request(chat())) for _ in range(first, min(first + 40, count)))
                )
                assert {got.body for got in answers} == {said}
            assert sums(r)["input_tokens"] == 11 * count
            assert not sums(r)["estimated"]

    rig.run(body())


@pytest.mark.parametrize("content", [chat(), STREAM], ids=["json", "stream"])
def test_what_no_server_says_is_estimated_and_marked(content: bytes) -> None:
    async def body() -> None:
        said = answer(b'{"choices":[{"message":{"content":"abcdefghijkl"}}]}')
        stream = sse_head() + b"".join(map(chunk, (*PIECES, DONE))) + b"0\r\n\r\n"
        async with (
            Upstream(says(stream if content is STREAM else said)) as up,
            serving(tracked(up.url)) as r,
        ):
            assert (await ask(r, request(content))).whole
            prompt = (len("hello, you") + 1) // 4
            assert sums(r) == {"requests": 1, "input_tokens": prompt, "output_tokens": 3, "estimated": True}
            metrics = dict(
                zip("abcd", r.router.desk.table.endpoints["chat-ep"].entities[0].counters.tokens, strict=True)
            )
            assert metrics == {"a": 0, "b": 0, "c": prompt, "d": 3}

    rig.run(body())


def test_a_stream_that_is_cut_is_charged_for_what_came(tmp_path: Path) -> None:
    async def breaks(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(sse_head() + b"".join(map(chunk, PIECES[::2])))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()

    async def body() -> None:
        async with Upstream(breaks) as up, keeping(tracked(up.url), tmp_path) as r:
            got = await ask(r, request(STREAM))
            assert not got.whole
            (line,) = await r.usage(1)
            assert (line["input_token_count"], line["output_token_count"]) == (2, 2)
            assert line["estimated"]
            (told,) = await r.access(1)
            assert told["cut"] == "lost"

    rig.run(body())


@pytest.mark.parametrize("begun", [True, False], ids=["mid-stream", "before"])
def test_a_client_that_leaves_is_charged_for_what_came(begun: bool, tmp_path: Path) -> None:
    async def never_ends(received: Received, writer: asyncio.StreamWriter) -> None:
        if begun:
            writer.write(sse_head() + b"".join(map(chunk, PIECES)))
        await asyncio.sleep(3600)

    async def body() -> None:
        async with Upstream(never_ends) as up, keeping(tracked(up.url), tmp_path) as r:
            reader, writer = await r.connect()
            writer.write(request(STREAM))
            if begun:
                await reader.readuntil(b"ijkl")
            await until(lambda: len(up.received) == 1)
            writer.transport.abort()
            (line,) = await r.usage(1)
            expected = (2, 3, True) if begun else (None, None, False)
            counts = line["input_token_count"], line["output_token_count"], line["estimated"]
            assert counts == expected
            await nothing_is_left(r, up)

    rig.run(body())


def test_the_line_of_a_request(tmp_path: Path) -> None:
    async def body() -> None:
        keys = rig.keyring(ann={"user_name": "ann@example.com", "rights": ["query"]})
        async with (
            Upstream(says(answer(b'{"model":"engine-model","usage":%b}' % USAGE))) as up,
            keeping(tracked(up.url), tmp_path, keyring=keys) as r,
        ):
            content = chat(client_request_id="order-7", usage_context={"team": "blue", "n": 1})
            got = await ask(r, request(content, INVOKE, bearer("ann")))
            assert got.status == 200
            assert set(json.loads(up.received[0].body)) == {"model", "messages"}, "those are the router's"
            (line,) = await r.usage(1)
            assert line["databricks_request_id"] == got.fields["x-request-id"]
            assert line["client_request_id"] == "order-7"
            assert line["usage_context"] == {"team": "blue", "n": 1}
            assert (line["endpoint_name"], line["served_entity_name"]) == ("chat-ep", "a")
            assert (line["requester"], line["status_code"]) == ("ann@example.com", 200)
            assert (line["input_token_count"], line["output_token_count"]) == (11, 3)
            assert not line["estimated"]
            assert not line["request_streaming"]

    rig.run(body())


def test_words_of_a_caller_in_another_shape_are_left_out(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up, keeping(tracked(up.url), tmp_path) as r:
            got = await ask(r, request(chat(client_request_id=["x"], usage_context="y")))
            assert got.status == 200
            (line,) = await r.usage(1)
            assert line["client_request_id"] == ""
            assert "usage_context" not in line

    rig.run(body())


def test_a_fallback_is_charged_to_who_answered(tmp_path: Path) -> None:
    async def body() -> None:
        busy = says(answer(b"{}", "503 Unavailable"))
        async with Upstream(busy) as a, Upstream(streams(*PIECES)) as b:
            entities = entity("a", 100, a.url), entity("b", 0, b.url)
            routes = table(*entities, usage=True, traffic=Traffic(fallback=True))
            async with keeping(routes, tmp_path) as r:
                got = await ask(r, request(STREAM))
                assert (got.status, b"usage" in got.body) == (200, False)
                (line,) = await r.usage(1)
                assert (line["served_entity_name"], line["input_token_count"]) == ("b", 11)
                assert line["request_streaming"]

    rig.run(body())


# Limits of tokens.


def limited(url: str, tokens: int = 100) -> RoutingTable:
    return table(entity("a", 100, url), limits=(Limit("endpoint", "", tokens=tokens),))


def used(prompt: int, completion: int) -> Script:
    return says(answer(b'{"usage":{"prompt_tokens":%d,"completion_tokens":%d}}' % (prompt, completion)))


def left(got: Answer) -> tuple[int, int]:
    return got.status, int(got.fields["x-ratelimit-remaining-tokens"])


def test_what_was_not_used_is_free_again() -> None:
    async def body() -> None:
        async with Upstream(used(4, 6)) as up, serving(limited(up.url)) as r:
            prompt = (len("hello, you") + 1) // 4
            assert left(await ask(r, request(chat(max_tokens=80)))) == (200, 100 - 80 - prompt)
            assert left(await ask(r, request(chat(max_tokens=80)))) == (200, 100 - 10 - 80 - prompt)
            assert left(await ask(r, request(chat(max_tokens=81)))) == (429, 80)
            assert left(await ask(r, request(chat(max_tokens=78)))) == (200, 0)

    rig.run(body())


def test_what_was_used_beyond_the_reservation_is_owed() -> None:
    async def body() -> None:
        async with Upstream(used(50, 100)) as up, serving(limited(up.url)) as r:
            assert (await ask(r, request(chat(max_tokens=10)))).status == 200
            got = await ask(r, request(chat(max_tokens=1)))
            assert left(got) == (429, 0)
            assert 1 <= int(got.fields["retry-after"]) <= 60
            assert len(up.received) == 1

    rig.run(body())


def test_what_never_ran_costs_nothing() -> None:
    async def body() -> None:
        async with Upstream(says(answer(b"{}", "503 Unavailable"))) as up, serving(limited(up.url)) as r:
            assert (await ask(r, request(chat(max_tokens=90)))).status == 503
            up.script = says(answer(b"{}", "400 Bad Request"))
            assert (await ask(r, request(chat(max_tokens=90)))).status == 400
            up.script = used(4, 6)
            assert (await ask(r, request(chat(max_tokens=90)))).status == 200

    rig.run(body())


def test_what_may_have_run_costs_what_was_reserved() -> None:
    async def hangs_up(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def body() -> None:
        async with Upstream(hangs_up) as up, serving(limited(up.url)) as r:
            assert (await ask(r, request(chat(max_tokens=90)))).status == 504
            up.script = used(4, 6)
            assert left(await ask(r, request(chat(max_tokens=90)))) == (429, 100 - 90 - 2)

    rig.run(body())


def test_streams_settle_too_whoever_ends_them() -> None:
    async def never_ends(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(sse_head() + b"".join(map(chunk, PIECES)))
        await asyncio.sleep(3600)

    async def body() -> None:
        async with Upstream(streams(*PIECES)) as up, serving(limited(up.url)) as r:
            content = chat(stream=True, max_tokens=60)
            got = await ask(r, request(content))
            assert (left(got), b"usage" in got.body) == ((200, 38), False)
            assert left(await ask(r, request(content))) == (200, 100 - 14 - 62)
            up.script = never_ends
            reader, writer = await r.connect()
            writer.write(request(content))
            await reader.readuntil(b"ijkl")
            writer.transport.abort()
            await nothing_is_left(r, up)
            up.script = used(1, 0)
            got = await ask(r, request(chat(max_tokens=5)))
            assert left(got) == (200, 100 - 14 - 14 - 5 - 7), "two tokens of prompt and three of text"

    rig.run(body())


def test_in_shadow_nothing_is_said_and_nothing_refused() -> None:
    async def body() -> None:
        async with Upstream(used(50, 100)) as up:
            routes = table(
                entity("a", 100, up.url),
                limits=(Limit("endpoint", "", tokens=100),),
                traffic=Traffic(shadow=True),
            )
            async with serving(routes) as r:
                for _ in range(3):
                    got = await ask(r, request(chat(max_tokens=10)))
                    assert got.status == 200
                    assert not [name for name in got.fields if name.startswith("x-ratelimit")]
                rates = r.router.desk.table.endpoints["chat-ep"].rates
                assert rates is not None
                assert (rates.refused, rates.shadowed) == ({}, {"endpoint tokens": 2})

    rig.run(body())


def test_the_upstreams_own_limits_do_not_mix_with_ours() -> None:
    async def body() -> None:
        fields = "x-ratelimit-remaining-tokens: 5\r\nx-ratelimit-limit-requests: 7\r\n"
        async with Upstream(says(answer(b"{}", fields=fields))) as up:
            async with serving(limited(up.url)) as r:
                got = await ask(r, request(chat(max_tokens=10)))
                assert left(got)[1] == 88
                assert "x-ratelimit-limit-requests" not in got.fields
            async with serving(table(entity("a", 100, up.url))) as r:
                got = await ask(r, request(chat(max_tokens=10)))
                assert left(got)[1] == 5

    rig.run(body())


def test_one_connection_keeps_its_requests_apart() -> None:
    async def body() -> None:
        async with Upstream(streams(*PIECES)) as up, serving(tracked(up.url)) as r:
            reader, writer = await r.connect()
            for content, seen in ((STREAM, False), (ASKING, True), (STREAM, False)):
                writer.write(request(content))
                got = await read_answer(reader)
                assert (b"usage" in got.body) == seen
            writer.close()
            assert sums(r)["input_tokens"] == 33

    rig.run(body())


def test_the_check_notices_a_router_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "lines", lambda meter, lines: lines)
    monkeypatch.setattr(Meter, "passes", lambda meter, piece: True)

    async def body() -> None:
        async with Upstream(streams(*PIECES)) as up, serving(tracked(up.url)) as r:
            assert b"usage" in (await ask(r, request(STREAM))).body
            assert sums(r)["estimated"]

    rig.run(body())
