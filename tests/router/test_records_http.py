"""What is kept of requests: inference tables, the access log and metrics, by requests over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from servestate.planner.table import Guard, Limit, Mirror, Payloads, RoutingTable, Traffic
from servestate.runtime.router.proxy import Exchange
from tests.router import rig, upstreams
from tests.router.kept import KeepingRig, keeping
from tests.router.leftovers import nothing_is_left
from tests.router.rig import ask, bearer, chat, request, until
from tests.router.upstreams import (
    BROKEN,
    Received,
    Upstream,
    answer,
    chunk,
    entity,
    in_turn,
    says,
    sse_head,
    table,
)

INVOKE = "/serving-endpoints/chat-ep/invocations"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAID = b'{"choices":[{"message":{"content":"hi there"}}],"usage":{"prompt_tokens":2,"completion_tokens":2}}'
PIECES = tuple(
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % word
    for word in (b"one ", b"two ", b"three")
)
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":2,"completion_tokens":3}}\n\n'
streams = partial(upstreams.streams, usage=USAGE)


def recorded(url: str, percent: int = 100, most: int = 1 << 20, **more: Any) -> RoutingTable:
    rule = Payloads("main.logs.chat", percent=percent, max_body_bytes=most)
    return table(entity("a", 100, url), payloads=rule, **more)


async def row(r: KeepingRig) -> dict[str, Any]:
    """The only row that there is."""
    (found,) = await r.payloads(1)
    return found


def test_a_row_holds_what_was_sent_and_what_was_got(tmp_path: Path) -> None:
    async def body() -> None:
        keys = rig.keyring(ann={"user_name": "ann@example.com", "rights": ["query"]})
        async with Upstream(says(answer(SAID))) as up, keeping(recorded(up.url), tmp_path, keyring=keys) as r:
            content = chat(client_request_id="order-7", usage_context={"team": "blue"})
            got = await ask(r, request(content, INVOKE, bearer("ann")))
            assert got.status == 200
            found = await row(r)
            assert found["request"].encode() == content
            assert found["response"].encode() == SAID == got.body
            assert found["databricks_request_id"] == got.fields["x-request-id"]
            assert found["client_request_id"] == "order-7"
            assert (found["status_code"], found["requester"]) == (200, "ann@example.com")
            assert (found["served_entity_id"], found["sampling_fraction"]) == ("a", 1.0)
            assert found["logging_error_codes"] == []
            assert found["request_metadata"]["streaming"] == "false"

    rig.run(body())


def test_a_stream_is_one_answer_and_the_request_is_the_callers_own(tmp_path: Path) -> None:
    """Where usage is counted the router asks for it, which is none of the caller's words."""

    async def body() -> None:
        async with (
            Upstream(streams(*PIECES)) as up,
            keeping(recorded(up.url, usage=True), tmp_path) as r,
        ):
            content = chat(stream=True)
            got = await ask(r, request(content))
            assert b"usage" not in got.body
            assert b"include_usage" in up.received[0].body
            found = await row(r)
            assert found["request"].encode() == content
            told = json.loads(found["response"])
            assert told["choices"][0]["message"]["content"] == "one two three"
            assert "usage" not in told, "it did not ask"
            assert found["request_metadata"]["streaming"] == "true"

    rig.run(body())


def test_a_stream_that_was_cut_is_marked_and_tells_the_error(tmp_path: Path) -> None:
    async def body() -> None:
        async with (
            Upstream(streams(*PIECES[:2], whole=False)) as up,
            keeping(recorded(up.url), tmp_path) as r,
        ):
            got = await ask(r, request(chat(stream=True)))
            assert not got.whole
            found = await row(r)
            assert found["request_metadata"]["cut"] == "lost"
            told = json.loads(found["response"])
            assert told["choices"][0]["message"]["content"] == "one two "
            assert told["error"]["code"] == "DEADLINE_EXCEEDED"

    rig.run(body())


@pytest.mark.parametrize("target", ["/v1/chat/completions", INVOKE])
def test_an_error_is_recorded_as_it_was_told(target: str, tmp_path: Path) -> None:
    async def body() -> None:
        broken = answer(b'{"error":{"message":"boom"}}', "500 Broken")
        async with Upstream(says(broken)) as up, keeping(recorded(up.url), tmp_path) as r:
            got = await ask(r, request(chat(), target))
            found = await row(r)
            assert found["status_code"] == got.status == 500
            assert json.loads(found["response"]) == got.json()

    rig.run(body())


def test_bodies_beyond_their_size_are_cut_and_marked(tmp_path: Path) -> None:
    async def body() -> None:
        events = [PIECES[0]] * 20
        async with Upstream(streams(*events)) as up, keeping(recorded(up.url, most=300), tmp_path) as r:
            assert (await ask(r, request(chat("x" * 500, stream=True)))).whole
            assert (await ask(r, request(chat("y" * (300 - len(chat(""))))))).whole
            first, second = await r.payloads(2)
            assert set(first["logging_error_codes"]) == {
                "MAX_REQUEST_SIZE_EXCEEDED",
                "MAX_RESPONSE_SIZE_EXCEEDED",
            }
            assert len(first["request"]) == 300
            assert "MAX_REQUEST_SIZE_EXCEEDED" not in second["logging_error_codes"], "it just fits"

    rig.run(body())


@pytest.mark.parametrize("percent", [1, 10, 50])
def test_of_any_hundred_in_a_row_so_many_are_recorded(percent: int, tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream(says(answer(SAID))) as up, keeping(recorded(up.url, percent), tmp_path) as r:
            for _ in range(200):
                assert (await ask(r, request())).status == 200
            rows = await r.payloads(2 * percent)
            await asyncio.sleep(0.3)  # no more come
            assert len(await r.payloads(2 * percent)) == len(rows) == 2 * percent
            assert rows[0]["sampling_fraction"] == percent / 100

    rig.run(body())


def test_what_guards_mask_or_refuse_is_not_in_the_table(tmp_path: Path) -> None:
    async def body() -> None:
        mail = "ann@example.com"
        said = b'{"choices":[{"message":{"content":"%b"}}]}'
        guards = {"guard_input": Guard((), "MASK"), "guard_output": Guard(("secret plan",), "MASK")}
        async with (
            Upstream(says(answer(said % b"to bob@example.com"))) as up,
            keeping(recorded(up.url, usage=True, **guards), tmp_path) as r,
        ):
            assert (await ask(r, request(chat(f"to {mail}")))).status == 200
            up.script = says(answer(said % b"the secret plan"))
            assert (await ask(r, request(chat()))).status == 400
            rows = await r.payloads(2)
            assert "<EMAIL_ADDRESS>" in rows[0]["request"]
            assert "<EMAIL_ADDRESS>" in rows[0]["response"]
            assert rows[1]["status_code"] == 400
            text = json.dumps(rows)
            assert mail not in text
            assert "bob@example.com" not in text
            assert "secret plan" not in text
            lines = await r.usage(2)
            assert lines[1]["output_token_count"] == 4, "what was written was written, and refused"

    rig.run(body())


def test_copies_for_a_mirror_are_not_recorded(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream(says(answer(SAID))) as up:
            rule = Payloads("main.logs.chat")
            traffic = Traffic(mirror=Mirror("b", 100))
            routes = table(
                entity("a", 100, up.url), entity("b", 0, up.url), payloads=rule, traffic=traffic, usage=True
            )
            async with keeping(routes, tmp_path) as r:
                assert (await ask(r, request())).status == 200
                await until(lambda: len(up.received) == 2)
                await nothing_is_left(r, up)
                assert (await row(r))["served_entity_id"] == "a"
                assert len(await r.usage(1)) == 1
                assert len(await r.access(1)) == 1

    rig.run(body())


def test_a_client_that_left_is_recorded_with_what_it_got(tmp_path: Path) -> None:
    async def begins(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(sse_head() + b"".join(map(chunk, PIECES)))
        await asyncio.sleep(3600)

    async def body() -> None:
        async with Upstream(begins) as up, keeping(recorded(up.url), tmp_path) as r:
            reader, writer = await r.connect()
            writer.write(request(chat(stream=True)))
            await reader.readuntil(b"three")
            writer.transport.abort()
            found = await row(r)
            assert json.loads(found["response"])["choices"][0]["message"]["content"] == "one two three"
            (line,) = await r.access(1)
            assert line["gone"]

    rig.run(body())


def test_the_access_log_tells_every_request(tmp_path: Path) -> None:
    async def body() -> None:
        busy = says(answer(b"{}", "503 Unavailable"))
        async with Upstream(busy) as a, Upstream(says(answer(SAID))) as b:
            traffic = Traffic(fallback=True)
            limits = (Limit("endpoint", "", calls=1),)
            routes = table(entity("a", 100, a.url), entity("b", 0, b.url), traffic=traffic, limits=limits)
            async with keeping(routes, tmp_path) as r:
                fields = f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n"
                got = await ask(r, request(fields=fields))
                assert got.status == 200
                assert (await ask(r, request())).status == 429
                assert (await ask(r, request(b"{"))).status == 400
                first, second, third = await r.access(3)
                assert first["request_id"] == got.fields["x-request-id"]
                assert (first["entity"], first["how"], first["attempts"]) == ("b", "fallback", 2)
                assert first["failed"] == [["a", "5xx"]]
                assert first["trace_id"] == TRACE
                assert dict(a.received[0].fields)["traceparent"] == fields.split(" ")[1].strip()
                assert (first["bytes_out"], first["input_tokens"]) == (len(SAID), 2)
                assert (second["how"], second["status"], second["endpoint"]) == ("refused", 429, "chat-ep")
                assert (third["status"], third["code"]) == (400, "INVALID_PARAMETER_VALUE")
                assert "hi" not in json.dumps([first, second, third]).split('"'), "no word of a prompt"

    rig.run(body())


def test_a_broken_trace_is_passed_over(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up, keeping(recorded(up.url), tmp_path) as r:
            twice = f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n" * 2
            for fields in ("traceparent: nonsense\r\n", twice, ""):
                assert (await ask(r, request(fields=fields))).status == 200
            assert [line["trace_id"] for line in await r.access(3)] == ["", "", ""]

    rig.run(body())


def test_metrics_add_up_to_what_clients_saw(tmp_path: Path) -> None:
    async def body() -> None:
        unknown = answer(b"{}", "404 Not Found")
        async with Upstream(in_turn(*[answer(SAID)] * 6, *[BROKEN] * 3, *[unknown] * 2)) as up:
            routes = table(
                entity("a", 50, up.url), entity("b", 50, up.url), limits=(Limit("endpoint", "", calls=11),)
            )
            async with keeping(routes, tmp_path) as r:
                seen = Counter([(await ask(r, request())).status for _ in range(13)])
                assert seen == {200: 6, 500: 3, 404: 2, 429: 2}
                counted: Counter[int] = Counter()
                for (endpoint, _, code, _), count in r.router.snapshot()["servestate_requests_total"]:
                    assert endpoint == "chat-ep"
                    counted[int(code)] += count
                assert counted == seen
                logged = Counter(line["status"] for line in await r.access(13))
                assert logged == seen
                limited = r.router.snapshot()["servestate_rate_limited_total"]
                assert limited == [[["chat-ep", "endpoint calls", "enforce"], 2]]

    rig.run(body())


def test_the_check_notices_a_table_that_holds_what_the_router_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_down = Exchange._take_down

    def as_sent_on(exchange: Exchange, call: Any) -> None:
        call.kept = call.raw
        taken_down(exchange, call)

    monkeypatch.setattr(Exchange, "_take_down", as_sent_on)

    async def body() -> None:
        async with Upstream(streams(*PIECES)) as up, keeping(recorded(up.url, usage=True), tmp_path) as r:
            await ask(r, request(chat(stream=True)))
            assert "include_usage" in (await row(r))["request"]

    rig.run(body())
