"""The least that a router of this design can do, as a yardstick: uvloop, httptools on both sides, a pool,
`model` found by searching. No checks, no limits, no errors, no streams: never use it for anything else.

    bare.py PORT UPSTREAM_PORT...
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\n"
REQUEST += b"Content-Length: %d\r\n\r\n%b"
PORTS = [int(port) for port in sys.argv[2:]]
POOL: dict[int, list[Upstream]] = {port: [] for port in PORTS}
TURNS = [PORTS[0]] * 9 + [PORTS[-1]]


class Message(asyncio.Protocol):
    """What both sides share: the body of one message."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.write = transport, transport.write

    def begin(self, parser: Any) -> None:
        self.parts: list[bytes] = []
        self.parser, self.complete = parser, False

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.complete = True


class Upstream(Message):
    """A connection to an engine."""

    port = 0

    def send(self, client: Client, request: bytes) -> None:
        self.client = client
        self.begin(httptools.HttpResponseParser(self))
        self.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        if self.complete:
            POOL[self.port].append(self)
            self.client.answer(b"".join(self.parts))


class Client(Message):
    """A connection from a client."""

    turn = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.begin(httptools.HttpRequestParser(self))

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        if not self.complete:
            return
        body = b"".join(self.parts)
        opening = body.find(b'"', body.find(b'"model"') + 8)
        body = body[:opening] + b'"engine' + body[body.find(b'"', opening + 1) :]
        Client.turn = (Client.turn + 1) % len(TURNS)
        port = TURNS[Client.turn]
        request = REQUEST % (len(body), body)
        if POOL[port]:
            POOL[port].pop().send(self, request)
        else:
            asyncio.get_running_loop().create_task(self.dial(port, request))

    async def dial(self, port: int, request: bytes) -> None:
        _, upstream = await asyncio.get_running_loop().create_connection(Upstream, "127.0.0.1", port)
        upstream.port = port
        upstream.send(self, request)

    def answer(self, body: bytes) -> None:
        self.begin(httptools.HttpRequestParser(self))
        if not self.transport.is_closing():  # the load generator has gone
            self.write(ANSWER % (len(body), body))


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
