"""The path of one request: rewriting, headers, replicas, errors, streams."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from tests.router import rig
from tests.router.rig import QUICK, ask, read_answer, request, serving
from tests.router.upstreams import Upstream, answer, chunk, entity, hangs, says, sse_head, table


def test_a_chat_reaches_the_engine_and_only_the_model_changes() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("current", 100, up.url))) as r:
            raw = (
                b'{ "messages" : [{"role":"user","content":"\xc3\xa9 \\u2028"}],"model":"chat-ep" ,"n": 1.50}'
            )
            got = await ask(r, request(raw))
            assert (got.status, got.body) == (200, b'{"ok":true}')
            assert up.received[0].target == "/v1/chat/completions"
            assert up.received[0].body == raw.replace(b'"chat-ep"', b'"engine-model"')
            assert got.fields["served-model-name"] == "current"
            assert got.fields["x-servestate-replica"] == "current#0"
            assert got.fields["x-servestate-endpoint"] == "chat-ep"
            assert got.fields["x-servestate-config-version"] == "1"
            assert got.fields["x-request-id"]

    rig.run(body())


@pytest.mark.parametrize(
    ("body", "path", "expected"),
    [
        (b'{"messages":[]}', "/v1/chat/completions", b'{"model":"engine-model","messages":[]}'),
        (b'{"prompt":"x"}', "/v1/completions", b'{"model":"engine-model","prompt":"x"}'),
        (b'{"input":"x"}', "/v1/embeddings", b'{"model":"engine-model","input":"x"}'),
        (b'{"instances":[[1]]}', "/invocations", b'{"instances":[[1]]}'),
        (b'{"dataframe_split":{}}', "/invocations", b'{"dataframe_split":{}}'),
        (
            b'{"usage_context":{"a":"}"},"messages":[],"client_request_id":"1"}',
            "/v1/chat/completions",
            b'{"model":"engine-model","messages":[]}',
        ),
    ],
)
def test_invocations_go_to_the_engine_path_of_their_kind(body: bytes, path: str, expected: bytes) -> None:
    async def scenario() -> None:
        async with Upstream() as up, serving(table(entity("current", 100, up.url))) as r:
            got = await ask(r, request(body, "/serving-endpoints/chat-ep/invocations"))
            assert got.status == 200
            assert (up.received[0].target, up.received[0].body) == (path, expected)

    rig.run(scenario())


def test_a_stream_is_relayed_event_by_event() -> None:
    async def body() -> None:
        gate = asyncio.Event()

        async def script(received, writer) -> None:
            writer.write(sse_head() + chunk(b'data: {"a":1}\n\n'))
            await gate.wait()
            writer.write(chunk(b": ping\n\n") + chunk('data: "\u2028\x85"\n\ndata: [DO'.encode()))
            writer.write(chunk(b"NE]\n\n") + b"0\r\n\r\n")

        async with Upstream(script) as up, serving(table(entity("current", 100, up.url))) as r:
            reader, writer = await r.connect()
            writer.write(request())
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"text/event-stream" in head
            assert await reader.readexactly(20) == b"f\r\n" + b'data: {"a":1}\n\n' + b"\r\n"
            gate.set()
            rest = b""
            while True:
                size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
                rest += (await reader.readexactly(size + 2))[:-2]
                if not size:
                    break
            assert rest == b'\ndata: "\\u2028\\u0085"\n\ndata: [DONE]\n\n'
            writer.write(request())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()

    rig.run(body())


def test_errors_of_the_upstream_come_in_the_clients_shape() -> None:
    async def body() -> None:
        refusal = answer(b'{"error":{"message":"too long"}}', "422 Unprocessable", "Retry-After: 7\r\n")
        async with Upstream(says(refusal)) as up, serving(table(entity("current", 100, up.url))) as r:
            got = await ask(r, request())
            assert (got.status, got.json()["error"]["message"]) == (400, "too long")
            got = await ask(r, request(target="/serving-endpoints/chat-ep/invocations"))
            assert got.json() == {"error_code": "INVALID_PARAMETER_VALUE", "message": "too long"}
            up.script = says(answer(b"{}", "503 Busy", "Retry-After: 700\r\n"))
            got = await ask(r, request())
            assert (got.status, got.fields["retry-after"]) == (503, "120")
            assert got.fields["served-model-name"] == "current"

    rig.run(body())


def test_a_refused_connection_goes_to_the_next_replica_then_503() -> None:
    async def body() -> None:
        async with Upstream() as up, Upstream() as dead:
            dead_url = dead.url
            await dead.__aexit__()
            async with serving(table(entity("current", 100, dead_url, up.url))) as r:
                for _ in range(4):
                    assert (await ask(r, request())).status == 200
            async with serving(table(entity("current", 100, dead_url))) as r:
                got = await ask(r, request())
                assert (got.status, got.fields["retry-after"]) == (503, "1")
                assert "no replica of the served entity" in got.json()["error"]["message"]
                assert r.inflight() == 0
            async with serving(table(entity("current", 100))) as r:
                got = await ask(r, request())
                assert (got.status, got.fields["retry-after"]) == (503, "1")
                assert "is not ready" in got.json()["error"]["message"]

    rig.run(body())


def test_models_lists_endpoints_and_entities() -> None:
    async def body() -> None:
        async with serving(table(entity("a", 90), entity("b", 10))) as r:
            got = await ask(r, request(b"", "/v1/models", method="GET"))
            assert [m["id"] for m in got.json()["data"]] == ["chat-ep", "chat-ep/a", "chat-ep/b"]
            assert (await ask(r, request(b"", "/serving-endpoints/models", method="GET"))).status == 200

    rig.run(body())


def test_a_refusal_among_pipelined_requests_keeps_its_place() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("current", 100, up.url))) as r:
            reader, writer = await r.connect()
            writer.write(request() + request(target="/nowhere") + request())
            statuses = [(await read_answer(reader)).status for _ in range(3)]
            assert statuses == [200, 404, 200]
            assert len(up.received) == 2
            writer.close()

    rig.run(body())


def test_the_control_socket_reports() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 90, up.url), entity("b", 10, up.url))) as r:
            for _ in range(10):
                assert (await ask(r, request())).status == 200
            direct = json.dumps({"model": "chat-ep/b", "messages": []}).encode()
            assert (await ask(r, request(direct))).fields["served-model-name"] == "b"
            reader, writer = await asyncio.open_unix_connection(str(r.config.control_path))
            writer.write(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
            report = (await read_answer(reader)).json()
            writer.close()
            assert r.config.control_path.stat().st_mode & 0o777 == 0o600
            entities = report["endpoints"]["chat-ep"]["entities"]
            assert (entities["a"]["assigned"], entities["b"]["assigned"]) == (9, 1)
            assert (entities["b"]["direct"], entities["b"]["requests"]) == (1, 2)
            assert report["replicas"]["a#0"] == {"inflight": 0, "state": "healthy"}
            assert report["table_version"] == 1
            assert report["table_error"] is None

    rig.run(body())


def test_slow_upstreams_meet_the_deadline() -> None:
    async def body() -> None:
        limits = replace(QUICK, request_s=0.05)
        async with Upstream(hangs) as up, serving(table(entity("a", 100, up.url)), limits) as r:
            got = await ask(r, request())
            assert (got.status, got.json()["error_code"]) == (504, "DEADLINE_EXCEEDED")
            assert got.fields["servestate-retry"] == "unsafe"
            await rig.until(lambda: up.gone == 1)

    rig.run(body())


def test_a_length_on_an_answer_without_a_body_means_nothing() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            for length in (0, 7, 0, 9):
                up.script = says(b"HTTP/1.1 204 No Content\r\nContent-Length: %d\r\n\r\n" % length)
                got = await rig.bounded(ask(r, request()))
                assert (got.status, got.whole) == (204, True)
                assert "content-length" not in got.fields
            assert up.connections == 1

    rig.run(body())
