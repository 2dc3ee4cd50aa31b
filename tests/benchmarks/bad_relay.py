"""A relay that does one thing wrong: the negative control of the router's benchmark.

    bad_relay.py FAULT PORT ENGINE

FAULT is `none`, `drop` (every tenth chunk of a stream), `late` (each chunk by 30 ms), `rewrite` (bodies of
requests are parsed and written anew, with a field more) or `error` (500 to every request).
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

LATE_S, EVERY, EXTRA = 0.03, 10, "relayed_by"
_CHUNK = re.compile(rb"[0-9a-f]+\r\ndata: .*?~\d+:(\d+)~.*?\n\n\r\n", re.DOTALL)
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)", re.IGNORECASE)
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


class Relay:
    """All connections of one relay."""

    def __init__(self, fault: str, engine: int) -> None:
        self._fault = fault
        self._engine = engine

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from a client, with one of its own to the engine."""
        answers, requests = await asyncio.open_connection("127.0.0.1", self._engine)
        back = asyncio.create_task(self._back(answers, writer))
        try:
            while True:
                requests.write(await self._request(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            back.cancel()
        finally:
            requests.close()
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
        if self._fault == "error":
            writer.write(_ERROR)
            return b""
        if self._fault == "rewrite" and body:
            body = json.dumps({**json.loads(body), EXTRA: 1}).encode()
            head = _LENGTH.sub(b"\r\nContent-Length: %d" % len(body), head)
        return head + body

    async def _back(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await answers.read(65536):
            if self._fault == "late":
                await asyncio.sleep(LATE_S)
            if self._fault == "drop":
                data = _CHUNK.sub(lambda chunk: b"" if int(chunk[1]) % EVERY == 0 else chunk[0], data)
            writer.write(data)


async def main(fault: str, port: int, engine: int) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Relay(fault, engine).client, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
