"""The management listener: what reaches the API, how, and that its answers come back as they are."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.runtime.router.relay import Relay
from servestate.runtime.router.routes import NotFound, ToManagement, resolve, resolve_with_management
from tests.router import rig
from tests.router.rig import QUICK, ask, bearer, config, read_answer, request, serving, write_table
from tests.router.upstreams import Received, Upstream, answer, chunk, entity, hangs, hangs_up, says, table

LIST = "/api/2.0/serving-endpoints"
NOTHING = table(entity("a", 100))


def call(target: str = LIST, method: str = "GET", fields: str = "", body: bytes = b"") -> bytes:
    return request(body, target, fields, method)


def test_requests_arrive_as_they_were_sent(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"
        async with Upstream(path=path) as api, serving(NOTHING, api=path) as r:
            assert r.router.report()["management"] == r.router.management_url
            fields = "authorization: bearer  a.b \r\nCONTENT-TYPE: text/x\r\nAccept: a/b\r\n"
            fields += "User-Agent: me/1 \xe9\r\n"
            spoofed = "x-servestate-peer: 1.2.3.4:5\r\nX-Request-Id: mine\r\nCookie: c\r\n"
            spoofed += "X-Forwarded-For: 9.9.9.9\r\n"
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
                reader, writer = await r.connect(r.management_port)
                own = "{}:{}".format(*writer.get_extra_info("sockname"))
                sent = call(f"{LIST}/a%2Db/?x=%2F&y=..//", method, fields + spoofed, b'{"not": json')
                writer.write(sent)
                got = await read_answer(reader)
                writer.close()
                assert (got.status, got.body) == (200, b'{"ok":true}')
                seen = api.received[-1]
                assert (seen.method, seen.target) == (method, f"{LIST}/a%2Db/?x=%2F&y=..//")
                assert seen.body == b'{"not": json'
                assert sorted(seen.fields) == sorted(
                    [
                        ("host", "servestate"),
                        ("authorization", "bearer  a.b"),
                        ("content-type", "text/x"),
                        ("accept", "a/b"),
                        ("user-agent", "me/1 \xe9"),
                        ("x-servestate-peer", own),
                        ("x-request-id", got.fields["x-request-id"]),
                        ("content-length", "12"),
                    ]
                )
            assert len(api.received) == 5

    rig.run(body())


@pytest.mark.parametrize(
    "status", ["200 OK", "201 Created", "302 Found", "405 No", "413 Big", "422 Odd", "502 Bad"]
)
def test_answers_come_back_untouched(tmp_path: Path, status: str) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"
        said = b'{"error_code":"X","message":"Unexpected error"}'
        async with Upstream(path=path) as api, serving(NOTHING, api=path) as r:
            api.script = says(answer(said, status, "Retry-After: 7\r\nServer: s\r\nSet-Cookie: c\r\n"))
            for method in ("GET", "POST"):
                got = await ask(r, call(method=method), r.management_port)
                assert (got.status, got.body) == (int(status[:3]), said)
                assert set(got.fields) == {"content-type", "retry-after", "x-request-id", "content-length"}
                assert (got.fields["content-type"], got.fields["retry-after"]) == ("application/json", "7")
            api.script = says(b"HTTP/1.1 204 No Content\r\n\r\n")
            got = await rig.bounded(ask(r, call(method="DELETE"), r.management_port))
            assert (got.status, got.whole, got.body) == (204, True, b"")

    rig.run(body())


def test_streams_come_as_they_come(tmp_path: Path) -> None:
    async def body() -> None:
        path, gate = tmp_path / "api.sock", asyncio.Event()

        async def script(received: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            writer.write(chunk(b": ping\n"))
            await gate.wait()
            writer.write(chunk(b"event: x\n"))
            await asyncio.sleep(0.01)
            writer.write(chunk(b"half") + b"0\r\n\r\n")

        async with Upstream(script, path=path) as api, serving(NOTHING, api=path) as r:
            reader, writer = await r.connect(r.management_port)
            for _ in range(2):
                gate.clear()
                writer.write(call())
                assert b"text/event-stream" in await rig.bounded(reader.readuntil(b"\r\n\r\n"))
                assert await rig.bounded(reader.readexactly(12)) == chunk(b": ping\n")
                gate.set()
                rest = await rig.bounded(reader.readuntil(b"0\r\n\r\n"))
                assert rest == chunk(b"event: x\n") + chunk(b"half") + b"0\r\n\r\n"
            writer.close()
            old = call().replace(b"HTTP/1.1", b"HTTP/1.0")
            got = await ask(r, old, r.management_port)
            assert (got.body, got.closed) == (b": ping\nevent: x\nhalf", True)
            assert api.connections == 1

    rig.run(body())


def test_without_the_api_there_is_a_503_and_models_are_served(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), api=tmp_path / "api.sock") as r:
            for method in ("GET", "POST"):
                got = await ask(r, call(method=method), r.management_port)
                assert (got.status, got.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
                assert 1 <= int(got.fields["retry-after"]) <= 120
                assert "servestate-retry" not in got.fields
            for port in (r.port, r.management_port):
                got = await ask(r, request(target="/serving-endpoints/chat-ep/invocations"), port)
                assert (got.status, got.fields["served-model-name"]) == (200, "a")
                assert (await ask(r, request(b"", "/v1/models", method="GET"), port)).status == 200

    rig.run(body())


PATHS = ["/api/2.0/serving-endpoints", "/api/2.0/serving-endpoints/", "/api/2.0/serving-endpoints?a=/../%2f"]
PATHS += ["/api/2.0/serving-endpoints/get-model-optimization-info/a.b.c/1", "/api/2.0/permissions/x/ann@b.c"]
PATHS += ["/api/2.0/serving-endpoints/a%20b", "/api/2.0/x/a+b:c=d,e~f", "/api/..a", "/api/a.."]
CROOKED = ["/api", "/api/", "/api//", "/api//2.0", "/api/2.0//x", "/api/2.0/x//", "/API/2.0/x", "/api/./x"]
CROOKED += [
    "/api/../x",
    "/api/x/..",
    "/api/%2e%2e/x",
    "/api/.%2E/x",
    "/api/%2e/x",
    "/api/a%2fb",
    "/api/a%5cb",
]
CROOKED += [
    "/api/a\\b",
    "/api/a;b",
    "/api/a%3bb",
    "/api/a%00",
    "/api/a%0a",
    "/api/a%252fb",
    "/api/a%",
    "/api/%zz",
]
CROOKED += [
    "//api/2.0/x",
    "/x/../api/2.0/x",
    "/%61pi/2.0/x",
    "/api%2f2.0/x",
    "/api/a%c3%a9",
    "/apix/y",
    "/api/'a'",
]
CROOKED += ["/.well-known/databricks-config/", "/.well-known/x", "/.well-known/../api/x", "/", "/metrics/"]


@pytest.mark.parametrize("target", PATHS)
def test_what_is_below_api_is_relayed_on_that_listener_only(target: str) -> None:
    for method in (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"):
        assert resolve_with_management(method, target.encode()) == ToManagement()
        assert isinstance(resolve(method, target.encode()), NotFound)
    for method in (b"HEAD", b"OPTIONS"):
        assert isinstance(resolve_with_management(method, target.encode()), NotFound)


def test_discovery_is_for_get() -> None:
    path = b"/.well-known/databricks-config"
    assert resolve_with_management(b"GET", path + b"?x=1") == ToManagement()
    assert isinstance(resolve_with_management(b"POST", path), NotFound)
    assert isinstance(resolve(b"GET", path), NotFound)


def test_crooked_paths_and_the_other_listener_reach_nobody(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"
        async with Upstream(path=path) as api, serving(NOTHING, api=path) as r:
            for target in CROOKED:
                for method in ("GET", "DELETE"):
                    got = await ask(r, call(target, method), r.management_port)
                    assert (got.status, got.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND"), target
            for target in (*PATHS, "/.well-known/databricks-config"):
                assert (await ask(r, call(target))).status == 404, target
            assert api.connections == 0

    rig.run(body())


def test_a_get_survives_a_socket_that_died_idle_and_a_post_never_meets_one(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"
        limits = replace(QUICK, upstream_trust_s=60.0)  # no look at the socket: the worst case
        async with Upstream(path=path) as api, serving(NOTHING, limits, api=path) as r:
            for method in ("GET", "POST") * 20:
                assert (await ask(r, call(), r.management_port)).status == 200
                for writer in list(api.writers):
                    writer.transport.abort()
                before = len(api.received)
                got = await ask(r, call(method=method), r.management_port)
                assert (got.status, len(api.received) - before) == (200, 1), method

    rig.run(body())


def test_an_answer_that_never_comes(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"

        async with Upstream(hangs_up, path=path) as api, serving(NOTHING, api=path) as r:
            got = await ask(r, call(method="POST"), r.management_port)
            assert (got.status, got.fields["servestate-retry"]) == (504, "unsafe")
            assert len(api.received) == 1
            got = await ask(r, call(), r.management_port)
            assert (got.status, got.fields["retry-after"]) == (503, "1")
        limits = replace(QUICK, management_s=0.05)
        async with Upstream(hangs, path=path) as api, serving(NOTHING, limits, api=path) as r:
            got = await ask(r, call(method="POST"), r.management_port)
            assert (got.status, got.json()["error_code"]) == (504, "DEADLINE_EXCEEDED")
            await rig.until(lambda: api.open == 0)

    rig.run(body())


def test_what_is_no_http_and_what_breaks_off(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"
        half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
        part = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"half")

        def then_closes(data: bytes):
            async def script(received: Received, writer: asyncio.StreamWriter) -> None:
                writer.write(data)
                writer.close()

            return script

        async with Upstream(says(b"SSH-2.0\r\n\r\n"), path=path) as api, serving(NOTHING, api=path) as r:
            got = await ask(r, call(), r.management_port)
            assert (got.status, got.json()["error_code"]) == (500, "INTERNAL_ERROR")
            for data in (half, part):
                api.script = then_closes(data)
                got = await rig.bounded(ask(r, call(), r.management_port))
                assert (got.status, got.whole, got.body) == (200, False, b"half")

    rig.run(body())


def test_a_client_that_leaves_cancels(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"

        async with Upstream(hangs, path=path) as api, serving(NOTHING, api=path) as r:
            _, writer = await r.connect(r.management_port)
            writer.write(call(method="POST"))
            await rig.until(lambda: len(api.received) == 1)
            writer.close()
            await rig.until(lambda: api.open == 0, within=1)

    rig.run(body())


def test_a_slow_client_holds_the_api_back(tmp_path: Path) -> None:
    async def body() -> None:
        path, sent = tmp_path / "api.sock", 0

        async def floods(received: Received, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(400):
                writer.write(chunk(b"x" * 65536))
                await writer.drain()
                sent += 1
            writer.write(b"0\r\n\r\n")

        async with Upstream(floods, path=path), serving(NOTHING, api=path) as r:
            reader, writer = await r.connect(r.management_port)
            writer.transport.pause_reading()
            writer.write(call())
            assert await rig.settled(lambda: sent, 0.2) < 400
            writer.transport.resume_reading()
            got = await rig.bounded(read_answer(reader))
            assert (got.whole, len(got.body)) == (True, 400 * 65536)
            writer.close()

    rig.run(body())


def test_strangers_cannot_send_large_bodies(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"
        keys = rig.keyring(ann={"user_name": "ann"})
        async with Upstream(path=path) as api, serving(NOTHING, api=path, keyring=keys) as r:
            large = b"x" * 100_000
            for fields, status in ((bearer("no"), 401), ("", 401), (bearer("ann"), 200)):
                head, _, rest = call(method="POST", fields=fields, body=large).partition(b"\r\n\r\n")
                reader, writer = await r.connect(r.management_port)
                writer.write(head + b"\r\n\r\n" + rest[:100])
                await asyncio.sleep(0.02)
                writer.write(rest[100:])
                assert (await rig.bounded(read_answer(reader))).status == status
                writer.close()
            assert [len(seen.body) for seen in api.received] == [len(large)]
            # The API judges the others itself, and says so in its own words.
            api.script = says(answer(b"{}", "401 Unauthorized"))
            assert (await ask(r, call(), r.management_port)).body == b"{}"

    rig.run(body())


def test_of_two_authorizations_the_api_sees_none(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"
        async with Upstream(path=path) as api, serving(NOTHING, api=path) as r:
            assert (await ask(r, call(fields=bearer("a") + bearer("b")), r.management_port)).status == 200
            assert "authorization" not in dict(api.received[0].fields)

    rig.run(body())


def test_both_ports_are_announced_and_given_back(tmp_path: Path) -> None:
    async def body() -> None:
        write_table(tmp_path / "table.json", NOTHING)
        both = config(tmp_path, management=("127.0.0.1", 0), api_path=tmp_path / "api.sock")
        router = rig.service(both)
        await router.start()
        taken = int(router.management_url.rsplit(":", 1)[1])
        other = replace(both, management=("127.0.0.1", taken), control_path=tmp_path / "other.sock")
        with pytest.raises(InvalidInput, match="SS603"):
            await rig.service(other).start()
        await router.stop()
        again = rig.service(replace(both, management=("127.0.0.1", taken)))
        await again.start()
        await again.stop()

    rig.run(body())
    with pytest.raises(ValueError, match="together"):
        config(tmp_path, management=("127.0.0.1", 0))


def test_the_check_notices_a_relay_that_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Relay) -> None:
        self._repeatable = True
        original(self)

    original = Relay.start
    monkeypatch.setattr(Relay, "start", start)

    async def body() -> None:
        path, ran = tmp_path / "api.sock", 0

        async def runs_and_dies(received: Received, writer: asyncio.StreamWriter) -> None:
            nonlocal ran
            ran += received.method == "POST"
            if received.method == "POST":
                writer.transport.abort()
            else:
                writer.write(answer())

        async with Upstream(runs_and_dies, path=path), serving(NOTHING, api=path) as r:
            assert (await ask(r, call(), r.management_port)).status == 200
            await ask(r, call(method="POST"), r.management_port)
            assert ran == 2

    rig.run(body())
