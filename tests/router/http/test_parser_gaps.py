"""What the parsers leave open, row by row: M1 is about requests, M2 about answers, each test one row.

The rows are measurements of httptools with llhttp inside. Where a test of llhttp fails, the parser has become
stricter and the row can go; where a test of the router fails, a gap is open.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httptools
import pytest

from servestate.runtime.router.http.errors import Refused
from servestate.runtime.router.http.http1 import RequestReader
from servestate.runtime.router.limits import Limits
from tests.router import rig
from tests.router.rig import CHAT, QUICK, bounded, read_answer, request, serving
from tests.router.upstreams import Gate, Upstream, answer, entity, says, table

PATH = b"/v1/chat/completions"
TAIL = b"Content-Length: %d\r\n\r\n" % len(CHAT) + CHAT


def post(fields: bytes = b"Host: h\r\n", line: bytes = b"POST " + PATH + b" HTTP/1.1\r\n") -> bytes:
    return line + fields + TAIL


M1: list[tuple[str, bytes, int]] = [
    ("no Host", post(b""), 400),
    ("two Hosts", post(b"Host: h\r\nHost: h\r\n"), 400),
    (
        "Transfer-Encoding on HTTP/1.0",
        b"POST /v1/chat/completions HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("a fragment in the target", post(line=b"POST " + PATH + b"#frag HTTP/1.1\r\n"), 400),
    ("double spaces in the request line", post(line=b"POST  " + PATH + b"  HTTP/1.1\r\n"), 400),
    ("absolute form", post(line=b"POST http://h" + PATH + b" HTTP/1.1\r\n"), 400),
    ("GET of RTSP/1.0", b"GET / RTSP/1.0\r\nHost: h\r\n\r\n", 400),
    ("DESCRIBE of RTSP/1.0", b"DESCRIBE / RTSP/1.0\r\nHost: h\r\n\r\n", 400),
    ("SOURCE of ICE/1.0", b"SOURCE / ICE/1.0\r\nHost: h\r\n\r\n", 400),
    ("SOURCE over HTTP/1.1", b"SOURCE / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("PROPFIND over HTTP/1.1", b"PROPFIND / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("a header of 1 MB", post(b"Host: h\r\nX-A: " + b"a" * 1_000_000 + b"\r\n"), 431),
    ("100,000 headers", post(b"Host: h\r\n" + b"X-A: 1\r\n" * 100_000), 431),
    ("an upgrade", post(b"Host: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"), 400),
    ("CONNECT", b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", 400),
]


class _Completed:
    """A parser's callbacks: how many messages it believes to have seen."""

    def __init__(self) -> None:
        self.complete = 0

    def on_message_complete(self) -> None:
        self.complete += 1


@pytest.mark.parametrize(("row", "data", "status"), M1, ids=[row for row, _, _ in M1])
def test_m1(row: str, data: bytes, status: int) -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            got = await bounded(rig.ask(r, data))
            assert (got.status, got.closed) == (status, True)
            assert up.connections == 0

    rig.run(body())


def test_m1_http_0_9_waits_no_longer_than_for_any_head() -> None:
    """`GET /` is no error to the parser, which waits. Here the first line is judged as soon as it stands."""

    async def body() -> None:
        async with serving(table(entity("a", 100)), replace(QUICK, header_s=0.2)) as r:
            for data in (b"GET /\r\n", b"GET /"):
                reader, writer = await r.connect()
                writer.write(data)
                assert (await bounded(read_answer(reader), 1)).status == 400, data
                assert await bounded(reader.read(), 1) == b""
                writer.close()

    rig.run(body())


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD", "OPTIONS"])
def test_m1_a_body_on_get_is_no_next_request(method: str) -> None:
    """It is taken off the wire with its request, though nobody has a use for it."""

    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            reader, writer = await r.connect()
            hidden = b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"
            writer.write(request(hidden, "/nope", method=method) + request())
            if method == "HEAD":  # answered with a length and no body, then closed
                raw = await bounded(reader.read())
                assert raw.count(b"HTTP/1.1 ") == 1
                writer.close()
                return
            assert (await bounded(read_answer(reader))).status == 404
            got = await bounded(read_answer(reader))
            assert (got.status, got.json()) == (200, {"ok": True})
            assert len(up.received) == 1
            writer.close()

    rig.run(body())


def test_m1_requests_in_one_read_are_not_answered_before_the_first() -> None:
    """The parser calls back for the second while the first is unanswered; here it is not even parsed."""

    async def body() -> None:
        gate = Gate(answer(b'{"first":true}'))
        async with Upstream(gate) as up, serving(table(entity("a", 100, up.url))) as r:
            reader, writer = await r.connect()
            writer.write(request() + request(b"", "/v1/models", method="GET"))
            await rig.until(lambda: len(up.received) == 1)
            with pytest.raises(TimeoutError):
                await bounded(reader.read(1), 0.05)
            gate.open()
            assert (await bounded(read_answer(reader))).json() == {"first": True}
            assert (await bounded(read_answer(reader))).json()["object"] == "list"
            writer.close()

    rig.run(body())


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /a#frag HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / RTSP/1.0\r\nHost: a\r\n\r\n",
        b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_m1_llhttp_still_leaves_it_to_us(data: bytes) -> None:
    """The control of this table: the parser alone lets it pass, so it is the router that refuses."""
    completed = _Completed()
    httptools.HttpRequestParser(completed).feed_data(data)
    assert completed.complete == 1


def test_m1_llhttp_upgrades_are_no_parser_error() -> None:
    assert not issubclass(httptools.HttpParserUpgrade, httptools.HttpParserError)
    with pytest.raises(httptools.HttpParserUpgrade):
        httptools.HttpRequestParser(object()).feed_data(b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n")


async def asked(data: bytes, *more: bytes) -> rig.Answer:
    """What a client gets where the upstream answers `data`, and that the next one gets the truth."""
    limits = replace(QUICK, request_s=0.3, peek_s=0.2, stall_s=0.3)
    async with Upstream(says(data)) as up, serving(table(entity("a", 100, up.url)), limits) as r:
        got = await bounded(rig.ask(r, request()))
        up.script = says(answer(b'"TRUTH"'))
        after = await bounded(rig.ask(r, request()))
        assert (after.status, after.body) == (200, b'"TRUTH"')
        return got


def test_m2_head_never_goes_upstream() -> None:
    """The parser is not told the method, so an answer to HEAD is never complete to it: no route sends one."""

    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            for target in ("/v1/chat/completions", "/v1/models", "/serving-endpoints/a/invocations"):
                data = f"HEAD {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
                reader, writer = await r.connect()
                writer.write(data)
                assert (await bounded(reader.read(), 1)).startswith(b"HTTP/1.1 404 ")
                writer.close()
            assert up.connections == 0

    rig.run(body())


def test_m2_interim_answers_are_not_the_answer() -> None:
    async def body() -> None:
        early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        got = await asked(early * 3 + b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b'{"n":1}'))
        assert (got.status, got.body) == (200, b'{"n":1}')

    rig.run(body())


@pytest.mark.parametrize("behind", [answer(b"POISON"), b"X", b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_m2_surplus_is_nobodys_answer(behind: bytes) -> None:
    async def body() -> None:
        got = await asked(answer(b'{"n":1}') + behind)
        assert got.status == 500

    rig.run(body())


def test_m2_an_answer_that_nobody_asked_for_drops_its_connection() -> None:
    """It comes while the socket is idle, after the answer that was asked for."""

    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            assert (await rig.ask(r, request())).status == 200
            (idle,) = up.writers
            idle.write(answer(b"POISON"))
            await rig.until(lambda: up.open == 0)
            assert (await rig.ask(r, request())).json() == {"ok": True}
            assert up.connections == 2

    rig.run(body())


@pytest.mark.parametrize("status", [b"000", b"099", b"600", b"999"])
def test_m2_such_a_status_is_none(status: bytes) -> None:
    async def body() -> None:
        got = await asked(answer().replace(b"200", status, 1))
        assert got.status == 500
        assert f"its status is {int(status)}" in got.json()["error"]["message"]

    rig.run(body())


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"identity", b"chunked, gzip"])
def test_m2_another_transfer_coding_is_no_body_until_the_end(coding: bytes) -> None:
    async def body() -> None:
        data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + coding + b"\r\n\r\n{}"
        assert (await asked(data)).status == 500

    rig.run(body())


def test_m2_an_answer_without_length_is_whole_only_at_its_end() -> None:
    async def body() -> None:
        async def until_closed(received: object, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
            await asyncio.sleep(0.05)
            writer.write(b"}")
            writer.close()

        async with Upstream(until_closed) as up, serving(table(entity("a", 100, up.url))) as r:
            got = await bounded(rig.ask(r, request()))
            assert (got.status, got.body, got.whole) == (200, b"{}", True)

    rig.run(body())


@pytest.mark.parametrize(
    ("data", "complete"),
    [
        (b"HTTP/1.1 000 x\r\nContent-Length: 0\r\n\r\n", 1),
        (b"HTTP/1.1 103 E\r\n\r\n" * 3 + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 4),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * 2, 2),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc", 0),
    ],
)
def test_m2_llhttp_still_leaves_it_to_us(data: bytes, complete: int) -> None:
    """The control of this table: no error, and that many answers."""
    completed = _Completed()
    httptools.HttpResponseParser(completed).feed_data(data)
    assert completed.complete == complete


def test_a_length_is_judged_alike_in_the_first_head_of_a_connection_and_in_the_next() -> None:
    def post(length: bytes) -> bytes:
        return b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\n\r\nhello" % length

    for zeros in range(20):
        length = b"0" * zeros + b"5"
        fresh, kept = RequestReader(Limits()), RequestReader(Limits())
        assert kept.receive(post(b"5"))
        kept.restart()
        told = []
        for reader in (fresh, kept):
            try:
                told.append((reader.receive(post(length)), reader.body))
            except Refused as refusal:
                told.append((refusal.failure.status, refusal.failure.message.encode()))
        assert told[0] == told[1], length
    assert told[0][0] == 400
