"""Messages of HTTP/1.1 bent at random: built from their parts, so that mutations reach far."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

CRLF = b"\r\n"
_NAMES = (b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"TE", b"Upgrade")
_NAMES += (b"X-A", b"Accept", b"User-Agent", b"Trailer", b"content-length", b"TRANSFER-ENCODING", b"hOST")
_VALUES = (
    b"h",
    b"chunked",
    b"gzip, chunked",
    b"close",
    b"keep-alive",
    b"0",
    b"5",
    b"100-continue",
    b"",
    b"h2c",
)
_VALUES += (
    b"5, 5",
    b"+5",
    b"0x5",
    b"05",
    b"Upgrade",
    b"trailers",
    b"a\tb",
    b"\xe9",
    b"x" * 300,
    b"99999999999",
)
_METHODS = (
    b"POST",
    b"GET",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"PATCH",
    b"CONNECT",
    b"TRACE",
    b"post",
    b"",
)
_TARGETS = (
    b"/",
    b"/v1/chat/completions",
    b"/a?b=c",
    b"*",
    b"http://h/",
    b"//x",
    b"/a#b",
    b"/%00",
    b"",
    b"h:1",
)
_VERSIONS = (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"")
_STATUSES = (b"200", b"204", b"304", b"100", b"103", b"101", b"500", b"404", b"99", b"1000", b"abc", b"")
_ENDS = (CRLF, b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"")
_SIZES = (
    b"0x5",
    b"+5",
    b" 5",
    b"5 ",
    b"5;a",
    b'5;a="b"',
    b"5;",
    b"",
    b"g",
    b"fffffffff",
    b"05",
    b"-1",
    b"5\t",
)
_ODD = bytes((*range(0x21), 0x7F, 0x80, 0xFF, 0x22, 0x28, 0x2C, 0x2F, 0x3A, 0x3B, 0x5C))


@dataclass
class Message:
    """The parts of one message; `bytes` of it is what goes over the wire."""

    start: list[bytes]
    fields: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)
    """Name, separator, value."""
    pieces: list[bytes] = field(default_factory=list)
    """Of the body: with sizes where it is chunked."""
    end: bytes = CRLF

    def __bytes__(self) -> bytes:
        lines = [b" ".join(self.start), *(b"".join(parts) for parts in self.fields), b""]
        return self.end.join(lines) + self.end + b"".join(self.pieces)


def chunks(source: random.Random, body: bytes) -> list[bytes]:
    """The body in some chunks, the last of them, and maybe a trailer."""
    found, at = [], 0
    while at < len(body):
        piece = body[at : at + source.randrange(1, len(body) + 1)]
        found += [b"%x" % len(piece), CRLF, piece, CRLF]
        at += len(piece)
    return [*found, b"0", CRLF, *source.choice(((), (), (b"X-T: 1", CRLF))), CRLF]


def request(source: random.Random) -> Message:
    """A good request."""
    body = source.randbytes(source.choice((0, 1, 5, 40)))
    message = Message([b"POST", source.choice(_TARGETS[:3]), b"HTTP/1.1"], [(b"Host", b": ", b"h")])
    return _with_body(source, message, body)


def answer(source: random.Random) -> Message:
    """A good answer."""
    body = source.randbytes(source.choice((0, 1, 5, 40)))
    message = Message([b"HTTP/1.1", source.choice((b"200", b"200", b"404", b"500")), b"OK"])
    return _with_body(source, message, body)


def _with_body(source: random.Random, message: Message, body: bytes) -> Message:
    for _ in range(source.randrange(3)):
        message.fields.append((source.choice((b"X-A", b"Accept", b"User-Agent")), b": ", b"x"))
    if source.random() < 0.5:
        message.fields.append((b"Content-Length", b": ", b"%d" % len(body)))
        message.pieces = [body]
    else:
        message.fields.append((b"Transfer-Encoding", b": ", b"chunked"))
        message.pieces = chunks(source, body)
    return message


def _start(source: random.Random, message: Message) -> None:
    """Another method, target, version or status."""
    options = (_VERSIONS, _STATUSES, (b"OK", b"", b"\xe9", b"a b"))
    if not message.start[0].startswith(b"HTTP"):
        options = (_METHODS, _TARGETS, _VERSIONS)
    at = source.randrange(len(message.start))
    message.start[at] = source.choice(options[min(at, 2)])


def _spaces(source: random.Random, message: Message) -> None:
    message.start.insert(source.randrange(len(message.start) + 1), b"")


def _field(source: random.Random, message: Message) -> None:
    """A field that is not expected there."""
    separator = source.choice((b": ", b":", b" : ", b":\t", b"", b":\r\n "))
    added = (source.choice(_NAMES), separator, source.choice(_VALUES))
    message.fields.insert(source.randrange(len(message.fields) + 1), added)


def _framing(source: random.Random, message: Message) -> None:
    """One more framing, a good one by itself."""
    length = b"%d" % sum(map(len, message.pieces))
    options = ((b"Content-Length", length), (b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"0"))
    name, value = source.choice(options)
    message.fields.insert(source.randrange(len(message.fields) + 1), (name, b": ", value))


def _twice(source: random.Random, message: Message) -> None:
    if message.fields:
        message.fields.insert(source.randrange(len(message.fields)), source.choice(message.fields))


def _dropped(source: random.Random, message: Message) -> None:
    if message.fields:
        message.fields.pop(source.randrange(len(message.fields)))


def _length(source: random.Random, message: Message) -> None:
    """A length that is not the body's."""
    off = sum(map(len, message.pieces)) + source.choice((-1, 1, 10))
    message.fields = [
        (n, s, b"%d" % max(off, 0) if n.lower() == b"content-length" else v) for n, s, v in message.fields
    ]


def _size(source: random.Random, message: Message) -> None:
    """Another piece of the body's framing."""
    if message.pieces:
        at = source.randrange(len(message.pieces))
        message.pieces[at] = source.choice((*_SIZES, *_ENDS))


def _ends(source: random.Random, message: Message) -> None:
    message.end = source.choice(_ENDS)


MUTATIONS: tuple[Callable[[random.Random, Message], None], ...] = (
    _start,
    _spaces,
    _field,
    _field,
    _framing,
    _twice,
    _dropped,
    _length,
    _size,
    _size,
    _ends,
)


def bent(source: random.Random, message: Message) -> bytes:
    """`message` after some mutations of its parts, and maybe of its bytes, with maybe another behind it."""
    for _ in range(source.choice((0, 0, 1, 1, 2, 3))):
        source.choice(MUTATIONS)(source, message)
    data = bytearray(bytes(message))
    for _ in range(source.choice((0, 0, 0, 1, 2))):
        _bend_bytes(source, data)
    return bytes(data)


def _bend_bytes(source: random.Random, data: bytearray) -> None:
    at = source.randrange(len(data) + 1)
    odd = source.choice(_ODD)
    match source.randrange(4):
        case 0:
            data.insert(at, odd)
        case 1:
            data[at : at + 1] = bytes([odd])
        case 2:
            del data[at : at + source.randrange(1, 4)]
        case _:
            data[at:at] = data[at : at + source.randrange(1, 20)]


def cut(source: random.Random, data: bytes) -> list[bytes]:
    """`data` as a network might cut it."""
    ends = sorted({source.randrange(len(data) + 1) for _ in range(source.randrange(6))} | {len(data)})
    return [piece for a, b in zip([0, *ends], ends, strict=False) if (piece := data[a:b])]
