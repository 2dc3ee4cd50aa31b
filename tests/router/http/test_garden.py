"""What the router writes upstream means the same to every server: count, method, target and body.

Servers disagree about hostile requests, and the router refuses those. What it accepts it writes anew, and
that must leave no server any choice.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from servestate.planner.table import Backend, EndpointRoutes, RoutingTable
from tests.router import rig
from tests.router.corpus import HOST, cases
from tests.router.garden.peers import NODE, PEERS, Peer, running
from tests.router.rig import CHAT, bounded, read_answer, request, serving
from tests.router.upstreams import Received, Upstream, entity

END = b"POST /end HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nend"
_LOOKS_LIKE_HTTP = "\\r\\n\\r\\n0\\r\\n\\r\\nPOST /pause HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"
_FIELDS = (
    "Accept: a/b\r\nUser-Agent: \xe9\xff x\r\n",
    "Accept:\r\nUser-Agent:\t\r\n",
    "Accept: a\r\nAccept: b\r\nAccept: c\r\n",
    "traceparent: 00-1-2-01\r\ntracestate: a=b,c=d\r\n",
    "User-Agent: Transfer-Encoding: chunked\r\n",
    "User-Agent: x, Content-Length: 0\r\n",
    "Accept: " + "a" * 6000 + "\r\n",
    "Expect: 100-continue\r\nTE: trailers\r\nUpgrade: h2c\r\n",
)


def requests() -> list[bytes]:
    """The accepted cases of the corpus, and good requests of every route, field and size."""
    found = [case.data for case in cases() if case.status == 200]
    found += [request(fields=fields) for fields in _FIELDS]
    for text in (_LOOKS_LIKE_HTTP, "\u2028 \xe9 \U0001f600", "x" * 70_000, "\\u0000"):
        raw = CHAT.replace(b"hi", text.encode())
        found += [request(raw), request(raw, "/serving-endpoints/chat-ep/invocations?a=%2f&b=c#"[:-1])]
    for target, raw in (
        ("/v1/completions", b'{"prompt":"x","model":"chat-ep"}'),
        ("/v1/embeddings", b'{"input":["x"],"model":"chat-ep/a"}'),
        ("/serving-endpoints/chat-ep/invocations", b'{"instances":[1]}'),
        ("/serving-endpoints/chat-ep/served-models/a/invocations", b'{"dataframe_split":{}}\r\n\r\n'),
        ("/serving-endpoints/chat/completions", b'\r\n {"messages":[],"model":"chat-ep"}\r\n'),
    ):
        found.append(request(raw, target))
    return found


def table() -> RoutingTable:
    """Entities as different as their heads can be: a bare one, one with a path and fields of its own."""
    odd = replace(entity("odd", 50), headers=(("X-Org", "a b"), ("X-Empty", "")))
    return RoutingTable(1, "l", (EndpointRoutes("chat-ep", 1, (entity("a", 50), odd)),))


def to(url: str) -> RoutingTable:
    """`table` with replicas at `url`, one of which has a longer path."""
    endpoint = table().endpoints[0]
    bare, odd = endpoint.entities
    entities = (
        replace(bare, backends=(Backend("a#0", url),)),
        replace(odd, backends=(Backend("odd#0", url + "/deep/er"),)),
    )
    return RoutingTable(1, "l", (replace(endpoint, entities=entities),))


@dataclass(frozen=True)
class Emitted:
    """A request as the router wrote it, and what it is meant to be."""

    data: bytes
    method: str
    target: str
    body: bytes

    @classmethod
    def of(cls, received: Received) -> Emitted:
        return cls(received.head + received.body, received.method, received.target, received.body)


async def emitted(sent: list[bytes]) -> list[Emitted]:
    """What the router writes upstream for all those requests, each of which it must accept."""
    async with Upstream() as up, serving(to(up.url)) as r:
        for data in sent:
            for _ in range(2):  # once by each entity of the split
                reader, writer = await r.connect()
                writer.write(data)
                got = await bounded(read_answer(reader))
                assert got.status == 200, (data[:200], got)
                writer.close()
        assert len(up.received) == 2 * len(sent) >= 80
        return [Emitted.of(received) for received in up.received]


async def misread(port: int, written: list[Emitted]) -> list[str]:
    """What a peer takes for something else; all requests come by one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    found = []
    for one in [*written, Emitted(END, "POST", "/end", b"end")]:
        writer.write(one.data)
        got = await bounded(read_answer(reader), 10)
        if got.status != 200:
            found.append(f"{one.target}: status {got.status}, {one.data[:300]!r}")
            break
        told = got.json()
        understood = (told["method"], told["target"], base64.b64decode(told["body"]))
        if understood != (one.method, one.target, one.body):
            found.append(f"{one.target} with {len(one.body)} bytes: {json.dumps(told)[:200]}")
            break
    else:
        writer.write_eof()
        if await bounded(reader.read(), 10):
            found.append("more answers than requests")
    writer.close()
    return found


async def read_alike(peer: Peer, folder: Path, written: list[Emitted]) -> list[str]:
    async with running(peer, folder) as port:
        return await misread(port, written)


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_reads_what_the_router_wrote(peer: Peer, tmp_path: Path) -> None:
    if peer.missing():
        pytest.skip(peer.missing())

    async def body() -> None:
        written = await emitted(requests())
        assert {one.method for one in written} == {"POST"}
        assert await read_alike(peer, tmp_path, written) == []

    rig.run(body())


def test_every_case_is_written_as_one_message_with_one_framing() -> None:
    async def body() -> None:
        for one in await emitted(requests()):
            head = one.data[: -len(one.body)].lower()
            assert head.count(b"\r\ncontent-length: %d\r\n" % len(one.body)) == 1
            assert b"\r\ntransfer-encoding" not in head
            assert head.count(b"\r\n\r\n") == 1
            assert not [byte for byte in head.replace(b"\r\n", b"") if byte < 0x20 and byte != 9]

    rig.run(body())


@pytest.mark.slow
def test_the_check_notices_bytes_that_are_relayed_as_they_came(tmp_path: Path) -> None:
    """Without writing anew, a length beside a coding is read by one peer and not by the other."""
    if NODE.missing():
        pytest.skip(NODE.missing())
    data = (
        b"POST /v1/chat/completions HTTP/1.1\r\n"
        + HOST
        + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    relayed = Emitted(data + b"1\r\nx\r\n0\r\n\r\n", "POST", "/v1/chat/completions", b"1\r\n")
    twice = Emitted(END + END, "POST", "/end", b"end")

    async def body() -> None:
        assert "status 400" in (await read_alike(NODE, tmp_path, [relayed]))[0]
        assert await read_alike(NODE, tmp_path, [twice]) != []

    rig.run(body())
