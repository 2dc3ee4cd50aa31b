"""An upstream that writes down what it executes, and misbehaves when a request asks it to.

    python3 -I -S upstream.py PORT FOLDER [SLOTS WORK_S]

A chat request whose message is `ledger NUMBER ORDER PADDING` is executed once it has arrived whole: its
number goes to `FOLDER/PORT.PID`, which a kill does not undo, and the answer says the number, a checksum over
the message as it arrived, and the message itself. ORDER says what becomes of that answer: `well`, `reset`
(the connection is reset in the middle), `truncate` (it is closed there) or `drop` (it is closed before).
Anything else gets an answer too, and is not written down. At most SLOTS answers are worked on at once, each
for WORK_S; the others wait. Streams take no slot.
"""

import asyncio
import collections
import json
import os
import socket
import struct
import sys
import zlib

WORK_S = 0.003
"""How long an answer takes, and each piece of a stream."""
PIECES = 6
_RESET = struct.pack("ii", 1, 0)


def checksum(text):
    """Eight hex digits over a text; the client has the same."""
    return f"{zlib.crc32(text.encode()):08x}"


class Slots:
    """What the upstream can do at once."""

    def __init__(self, loop, count, work_s):
        self._loop = loop
        self._free = count
        self._work_s = work_s
        self._waiting = collections.deque()

    def work(self, then):
        """Call `then` once it is done."""
        if self._free:
            self._free -= 1
            self._loop.call_later(self._work_s, self._done, then)
        else:
            self._waiting.append(then)

    def _done(self, then):
        self._free += 1
        if self._waiting:
            self.work(self._waiting.popleft())
        then()


class Connection(asyncio.Protocol):
    """Requests one after the other."""

    def __init__(self, loop, record, slots):
        self._loop = loop
        self._record = record
        self._slots = slots
        self._received = b""
        self._busy = False

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._received += data
        if not self._busy:
            self._next()

    def _next(self):
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        if len(rest) < length:
            return
        self._received = rest[length:]
        self._busy = True
        if head.startswith(b"POST "):
            self._execute(json.loads(rest[:length]))
        else:
            self._whole(b"{}")

    def _execute(self, asked):
        message = str(asked["messages"][0]["content"])
        order = "well"
        said = "hello"
        if message.startswith("ledger "):
            _, number, order, _ = message.split(" ", 3)
            os.write(self._record, f"{number}\n".encode())
            said = f"{number} {checksum(message)} {message}"
        if order == "drop":
            self._break(order)
        elif asked.get("stream"):
            self._stream(said, order)
        else:
            self._slots.work(lambda: self._answer(said, order))

    def _answer(self, said, order):
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        body = {"object": "chat.completion", "model": "ledger", "choices": [choice], "usage": usage}
        self._whole(json.dumps(body).encode(), order)

    def _whole(self, body, order="well"):
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        if order == "well":
            self._write(head.encode() + body)
            self._ended()
        else:
            self._write(head.encode() + body[: len(body) // 2])
            self._loop.call_later(WORK_S, self._break, order)

    def _stream(self, said, order):
        self._write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        size = len(said) // PIECES + 1
        pieces = [said[at : at + size] for at in range(0, len(said), size)]
        self._loop.call_later(WORK_S, self._piece, pieces, 0, order)

    def _piece(self, pieces, at, order):
        if self._transport.is_closing():
            return
        if at == len(pieces):
            self._event("[DONE]")
            self._write(b"0\r\n\r\n")
            self._ended()
            return
        if order != "well" and at == len(pieces) // 2:
            self._break(order)
            return
        choice = {"index": 0, "delta": {"content": pieces[at]}, "finish_reason": None}
        self._event(json.dumps({"object": "chat.completion.chunk", "model": "ledger", "choices": [choice]}))
        self._loop.call_later(WORK_S, self._piece, pieces, at + 1, order)

    def _event(self, data):
        event = f"data: {data}\n\n".encode()
        self._write(b"%x\r\n%b\r\n" % (len(event), event))

    def _write(self, data):
        if not self._transport.is_closing():
            self._transport.write(data)

    def _break(self, order):
        if order == "reset":
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        else:
            self._transport.close()

    def _ended(self):
        self._busy = False
        if self._received:
            self._loop.call_soon(self._next)


async def main():
    port, folder = int(sys.argv[1]), sys.argv[2]
    path = os.path.join(folder, f"{port}.{os.getpid()}")
    record = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    loop = asyncio.get_running_loop()
    count, work_s = (int(sys.argv[3]), float(sys.argv[4])) if len(sys.argv) > 3 else (10**6, WORK_S)
    slots = Slots(loop, count, work_s)
    server = await loop.create_server(
        lambda: Connection(loop, record, slots), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


asyncio.run(main())
