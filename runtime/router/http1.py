"""HTTP/1.1 messages out of bytes, strictly: heads by httptools, bodies counted here to the byte.

The parser judges every head, and this layer closes what it leaves open (no or two Hosts, odd request lines,
sizes, methods, framing on HTTP/1.0, upgrades; on the answers' side 1xx, odd codings and surplus bytes). A
head goes to a fresh parser and nothing after it does, so a second message in the same bytes is never begun.
"""

from __future__ import annotations

import re

import httptools

from servestate.runtime.router.chunked import BadChunk, Decoder
from servestate.runtime.router.errors import BAD_REQUEST, Refused, refused
from servestate.runtime.router.headers import ANSWER_FRAMING, REQUEST_FRAMING, TO_CLIENT, TO_UPSTREAM
from servestate.runtime.router.limits import Limits

Field = tuple[bytes, bytes]

_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_REQUEST_FIELDS = REQUEST_FRAMING | TO_UPSTREAM.keys()
_ANSWER_FIELDS = ANSWER_FRAMING | TO_CLIENT.keys()
_BARE = re.compile(rb"(?<!\r)\n|\r[^\n]|\0")
_HOST = re.compile(rb"[A-Za-z0-9.\-_]+(?::[0-9]{0,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{0,5})?")
_TARGET = re.compile(rb"/[!\"$-~]*")  # no fragment, no absolute form, nothing outside visible ASCII
_VERSIONS = (b"HTTP/1.1 ", b"HTTP/1.0 ")
_REQUEST_LINE_EXTRA = 32  # the longest method and version with their spaces

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BadAnswer(Exception):
    """The upstream's bytes are no HTTP answer that can be trusted; its connection is not used again."""


def _bad(message: str, status: int = 400) -> Refused:
    return refused(message, BAD_REQUEST, status, close=True)


class RequestReader:
    """One client connection's bytes as requests, one at a time.

    `receive` says True once a whole request stands in `method`, `target`, `fields`, `body`; what came after
    it stands in `surplus`. `restart` then makes it ready for the next. Every refusal closes.
    """

    __slots__ = (
        "_buffer",
        "_decoder",
        "_left",
        "_limits",
        "_parts",
        "body",
        "expects_continue",
        "fields",
        "head_done",
        "http10",
        "keep_alive",
        "length",
        "method",
        "received",
        "surplus",
        "target",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.restart()

    def restart(self) -> None:
        """Forget the request; `surplus` is taken away by the caller before."""
        self._buffer = b""
        self._decoder: Decoder | None = None
        self._left = 0
        self._parts: list[bytes] = []
        self.head_done = False
        self.fields: list[Field] = []
        self.body = b""
        self.length = 0
        self.received = 0
        self.surplus = b""
        self.expects_continue = False

    @property
    def begun(self) -> bool:
        """Whether any byte of a request was seen."""
        return self.head_done or bool(self._buffer)

    def receive(self, data: bytes) -> bool:
        """Take bytes; whether the request is whole. Raises Refused."""
        if self.head_done:
            return self._take_body(data)
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        while data[:2] == b"\r\n":  # RFC 9112 section 2.2: empty lines before a request are ignored
            data = data[2:]
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._check_unfinished(data)
            self._buffer = data
            return False
        end += 4
        self._read_head(data[:end])
        self.head_done = True
        return self._take_body(data[end:])

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser's callback."""
        name = name.lower()
        if name in _REQUEST_FIELDS:
            self.fields.append((name, value))

    def _take_body(self, data: bytes) -> bool:
        self.received += len(data)
        if self._decoder is not None:
            return self._take_chunks(self._decoder, data)
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            self._parts.append(data)
            return False
        if len(data) > left:
            self.surplus = data[left:]
            data = data[:left]
        if self._parts:
            self._parts.append(data)
            data = b"".join(self._parts)
        self.body = data
        return True

    def _take_chunks(self, decoder: Decoder, data: bytes) -> bool:
        try:
            payload = decoder.feed(data)
        except BadChunk as error:
            raise _bad(str(error)) from None
        self._parts.append(payload)
        self.length += len(payload)
        if self.length > self._limits.body_bytes:
            raise _too_large(self._limits.body_bytes)
        if decoder.done:
            self.body = b"".join(self._parts)
            self.surplus = decoder.surplus
        return decoder.done

    def _check_unfinished(self, data: bytes) -> None:
        """Refuse at once what no further byte can make right."""
        line_end = data.find(b"\r\n")
        if line_end >= 0:
            self._read_request_line(data[:line_end])
        elif len(data) > self._limits.target_bytes + _REQUEST_LINE_EXTRA:
            raise _bad("the request target is too long", 414)
        if len(data) > self._limits.head_bytes or data.count(b"\r\n") - 1 > self._limits.head_fields:
            raise _bad("the request's head is too large", 431)
        if _BARE.search(data):
            raise _bad("the request's head holds a line ending or byte that is not allowed")

    def _read_request_line(self, line: bytes) -> None:
        parts = line.split(b" ")
        if len(parts) != 3 or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0") or parts[0] not in _METHODS:
            raise _bad("the request line is not one of HTTP/1.1")
        if len(parts[1]) > self._limits.target_bytes:
            raise _bad("the request target is too long", 414)
        if not _TARGET.fullmatch(parts[1]):
            raise _bad("the request target is not a path")
        self.method, self.target = parts[0], parts[1]
        self.http10 = parts[2] == b"HTTP/1.0"

    def _read_head(self, head: bytes) -> None:
        self._read_request_line(head[: head.find(b"\r\n")])
        if len(head) > self._limits.head_bytes or head.count(b"\r\n") - 2 > self._limits.head_fields:
            raise _bad("the request's head is too large", 431)
        try:
            httptools.HttpRequestParser(self).feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            raise _bad("the request is not valid HTTP/1.1") from None
        self._interpret()

    def _interpret(self) -> None:
        found, self.fields = self.fields, []
        hosts = lengths = codings = 0
        connection = b""
        for name, value in found:
            if name not in REQUEST_FRAMING:
                self.fields.append((name, value))
            elif name == b"host":
                hosts += 1
                if not _HOST.fullmatch(value):
                    raise _bad("the Host header is not a host")
            elif name == b"content-length":
                lengths += 1
                self._left = self.length = self._length(value)
            elif name == b"connection":
                connection += b"," + value.lower()
            elif name == b"transfer-encoding":
                codings += 1
                if value.strip().lower() != b"chunked":
                    raise _bad("only the transfer coding chunked is known")
            elif value.strip().lower() != b"100-continue":
                raise _bad("the expectation is not known")
            else:
                self.expects_continue = not self.http10
        if hosts != 1 or lengths + codings > 1 or (codings and self.http10):
            raise _bad("the request needs exactly one Host and at most one framing header")
        if codings:
            self._decoder = Decoder()
        self._keep(connection)

    def _length(self, value: bytes) -> int:
        value = value.strip()
        if not value.isdigit() or len(value) > 15:
            raise _bad("the Content-Length is not a number")
        length = int(value)
        if length > self._limits.body_bytes:
            raise _too_large(self._limits.body_bytes)
        return length

    def _keep(self, connection: bytes) -> None:
        """Persistence, and the removal of the fields that Connection names (RFC 9110 section 7.6.1)."""
        self.keep_alive = not self.http10
        if connection:
            named = {token.strip() for token in connection.split(b",")}
            self.keep_alive = self.keep_alive and b"close" not in named
            self.fields = [field for field in self.fields if field[0] not in named]


def _too_large(most: int) -> Refused:
    return refused(f"the request's body is larger than {most} bytes", close=True)


class AnswerReader:
    """One answer to a POST out of an upstream's bytes.

    After `receive`, `head_done` says that `status` and `fields` stand, `complete` that the last byte was
    seen. `length` is None when only chunks or the end of the connection delimit the body.
    """

    __slots__ = (
        "_buffer",
        "_decoder",
        "_informational",
        "_left",
        "_limits",
        "complete",
        "fields",
        "head_done",
        "keep_alive",
        "length",
        "retry_after",
        "status",
        "until_close",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = b""
        self._decoder: Decoder | None = None
        self._informational = 0
        self._left = 0
        self.fields: list[Field] = []
        self.head_done = False
        self.complete = False
        self.keep_alive = False
        self.length: int | None = None
        self.until_close = False
        self.retry_after = 0
        self.status = 0

    @property
    def begun(self) -> bool:
        """Whether any byte of an answer was seen."""
        return self.head_done or bool(self._buffer) or self._informational > 0

    def receive(self, data: bytes) -> bytes:
        """Take bytes; the body's bytes among them. Raises BadAnswer, also for surplus behind the end."""
        while not self.head_done:
            if self._buffer:
                data = self._buffer + data
                self._buffer = b""
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._check_size(data)
                self._buffer = data
                return b""
            end += 4
            self._read_head(data[:end])
            data = data[end:]
        if self._decoder is not None:
            return self._take_chunks(self._decoder, data)
        if self.until_close:
            return data
        self._left -= len(data)
        if self._left < 0:
            raise BadAnswer("more bytes than its length says")
        self.complete = self._left == 0
        return data

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser's callback."""
        name = name.lower()
        if name in _ANSWER_FIELDS:
            self.fields.append((name, value))

    def end_of_input(self) -> None:
        """The upstream closed its side: the end of an answer that nothing else delimits."""
        self.complete = self.complete or (self.head_done and self.until_close)

    def _take_chunks(self, decoder: Decoder, data: bytes) -> bytes:
        try:
            payload = decoder.feed(data)
        except BadChunk as error:
            raise BadAnswer(str(error)) from None
        self.complete = decoder.done
        if decoder.surplus:
            raise BadAnswer("bytes behind its last chunk")
        return payload

    def _check_size(self, head: bytes) -> None:
        limits = self._limits
        if len(head) > limits.head_bytes or head.count(b"\r\n") - 2 > limits.head_fields:
            raise BadAnswer("its head is too large")
        start = head[:9]
        if not any(version.startswith(start) for version in _VERSIONS):
            raise BadAnswer("it does not speak HTTP/1.1")

    def _read_head(self, head: bytes) -> None:
        self._check_size(head)
        parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            raise BadAnswer("its head is not valid HTTP/1.1") from None
        status = parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._informational += 1
            if self._informational > self._limits.informational:
                raise BadAnswer("too many informational answers")
            self.fields = []
            return
        if not 200 <= status < 600:
            raise BadAnswer(f"its status is {status}")
        self.status = status
        self.head_done = True
        self._interpret(head.startswith(b"HTTP/1.1"))

    def _interpret(self, http11: bool) -> None:
        found, self.fields = self.fields, []
        named: set[bytes] = set()
        lengths = codings = 0
        for name, value in found:
            if name not in ANSWER_FRAMING:
                self.fields.append((name, value))
            elif name == b"content-length":
                lengths += 1
                value = value.strip()
                if not value.isdigit() or len(value) > 15:
                    raise BadAnswer("its Content-Length is not a number")
                self.length = self._left = int(value)
            elif name == b"transfer-encoding":
                codings += 1
                if value.strip().lower() != b"chunked" or not http11:
                    raise BadAnswer("its transfer coding is not chunked")
            elif name == b"connection":
                named.update(token.strip() for token in value.lower().split(b","))
            elif value.strip().isdigit():
                self.retry_after = min(int(value.strip()[:9]), 120)
        if lengths + codings > 1:
            raise BadAnswer("it has more than one framing header")
        if self.status in (204, 304):
            self.length = self._left = 0
        elif codings:
            self._decoder = Decoder()
        elif not lengths:
            self.until_close = True
        if named:
            # Content-Type is never hop-by-hop, whatever an upstream says.
            named.discard(b"content-type")
            self.fields = [field for field in self.fields if field[0] not in named]
        self.keep_alive = http11 and b"close" not in named and not self.until_close
