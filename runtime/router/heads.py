"""Heads of HTTP/1.1 messages, judged: httptools parses, and this layer closes what it leaves open.

On requests: no or two Hosts, odd request lines, sizes, methods, framing on HTTP/1.0, upgrades. On answers:
odd statuses and codings. A head is fed to a fresh parser and nothing after it is, so a second message in the
same bytes is never begun.

Under load most heads repeat, but for the length of the body. What follows from a head depends on nothing
else, so it is worked out once per head, with the digits of its Content-Length cut out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, TypeVar

import httptools

from servestate.runtime.router.errors import BAD_REQUEST, Refused, refused
from servestate.runtime.router.headers import TO_CLIENT, TO_UPSTREAM, lines
from servestate.runtime.router.limits import Limits

Field = tuple[bytes, bytes]

_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_HOST = re.compile(rb"[A-Za-z0-9.\-_]+(?::[0-9]{0,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{0,5})?")
_TARGET = re.compile(rb"/[!\"$-~]*")  # no fragment, no absolute form, nothing outside visible ASCII
_BODILESS = (204, 304)  # whatever length they claim
_LENGTH_DIGITS = 15  # the parser cannot overflow on so many, so its verdict does not depend on which
_KNOWN_HEADS = 256
_KNOWN_HEAD_BYTES = 2048


class BadAnswer(Exception):
    """The upstream's bytes are no HTTP answer that can be trusted; its connection is not used again."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a request's head says. `fields` are the header lines that go upstream. `length` is the body's,
    unless `chunked`; `keep_alive` is False on HTTP/1.0 always."""

    method: bytes
    target: bytes
    http10: bool
    fields: bytes
    length: int
    chunked: bool
    keep_alive: bool
    expects_continue: bool


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What the head of an answer to a POST says. `fields` are the header lines that go to clients. `length`
    is None when chunks (`chunked`) or the end of the connection delimit the body. An `interim` answer (1xx)
    has no body and another answer follows it. `event_stream` only if its lines can be read."""

    status: int
    fields: bytes
    length: int | None
    chunked: bool
    keep_alive: bool
    retry_after: int
    event_stream: bool
    interim: bool


Head = TypeVar("Head", RequestHead, AnswerHead)


class KnownHeads(Generic[Head]):
    """Heads with a length that were judged before. Bounded: when full it starts anew."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, raw: bytes) -> tuple[bytes, int, Head | None]:
        """(key, length, head): the length in `raw`, the key without it, what is known. A head whose length
        is not found this way has the key b"" and is never known: it must not meet the key of another."""
        at = raw.rfind(b"\r\nContent-Length: ")
        if at < 0:
            at = raw.rfind(b"\r\ncontent-length: ")
        if at > 0:
            at += 18
            end = raw.find(b"\r", at)
            digits = raw[at:end]
            if digits.isdigit() and len(digits) <= _LENGTH_DIGITS:
                key = raw[:at] + raw[end:]
                return key, int(digits), self._known.get(key)
        return b"", -1, None

    def remember(self, key: bytes, head: Head) -> None:
        """Keep what was judged."""
        if key and len(key) <= _KNOWN_HEAD_BYTES:
            if len(self._known) >= _KNOWN_HEADS:
                self._known.clear()
            self._known[key] = head


class RequestHeads:
    """Judges the heads of requests."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: KnownHeads[RequestHead] = KnownHeads()

    def read(self, raw: bytes) -> tuple[RequestHead, int]:
        """The head of `raw`, which ends with its empty line, and the length of its body. Raises Refused."""
        key, length, head = self._known.find(raw)
        if head is None:
            head = _judge_request(raw, self._limits)
            if length == head.length:
                self._known.remember(key, head)
            length = head.length
        if length > self._limits.body_bytes:
            raise too_large(self._limits.body_bytes)
        return head, length


class AnswerHeads:
    """Judges the heads of answers."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._known: KnownHeads[AnswerHead] = KnownHeads()

    def read(self, raw: bytes) -> tuple[AnswerHead, int | None]:
        """The head of `raw`, which ends with its empty line, and the length of its body. Raises BadAnswer."""
        key, length, head = self._known.find(raw)
        if head is None:
            head = _judge_answer(raw)
            if length == head.length and head.status not in _BODILESS:
                self._known.remember(key, head)
            return head, head.length
        return head, length


class _Fields:
    """The parser's callbacks; names in lower case."""

    def __init__(self) -> None:
        self.all: list[Field] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.all.append((name.lower(), value.strip(b" \t")))

    def one(self, name: bytes) -> bytes | None:
        """The value of `name`, None if absent. Raises ValueError if it stands there twice."""
        values = [v for n, v in self.all if n == name]
        if len(values) > 1:
            raise ValueError(name)
        return values[0] if values else None

    def connection(self) -> set[bytes]:
        """The options of every Connection field."""
        values = b",".join(v.lower() for n, v in self.all if n == b"connection")
        return {option.strip() for option in values.split(b",")} - {b""}


def bad_request(message: str, status: int = 400) -> Refused:
    """A request that is no trustworthy HTTP: its connection is closed."""
    return refused(message, BAD_REQUEST, status, close=True)


def too_large(most: int) -> Refused:
    """The body is over its bound; what of it is still to come is not read."""
    return refused(f"the request's body is larger than {most} bytes", close=True)


def read_request_line(line: bytes, limits: Limits) -> tuple[bytes, bytes, bool]:
    """Method, target, whether HTTP/1.0. Raises Refused."""
    parts = line.split(b" ")
    if len(parts) != 3 or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0") or parts[0] not in _METHODS:
        raise bad_request("the request line is not one of HTTP/1.1")
    if len(parts[1]) > limits.target_bytes:
        raise bad_request("the request target is too long", 414)
    if not _TARGET.fullmatch(parts[1]):
        raise bad_request("the request target is not a path")
    return parts[0], parts[1], parts[2] == b"HTTP/1.0"


def _judge_request(raw: bytes, limits: Limits) -> RequestHead:
    method, target, http10 = read_request_line(raw[: raw.find(b"\r\n")], limits)
    if len(raw) > limits.head_bytes or raw.count(b"\r\n") - 2 > limits.head_fields:
        raise bad_request("the request's head is too large", 431)
    fields = _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(raw)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        raise bad_request("the request is not valid HTTP/1.1") from None
    if parser.should_upgrade():
        raise bad_request("no other protocol is spoken here")
    try:
        host, coding, length = map(fields.one, (b"host", b"transfer-encoding", b"content-length"))
        expectation = fields.one(b"expect")
    except ValueError as error:
        raise bad_request(f"the header {error.args[0].decode()} stands there twice") from None
    if host is None or not _HOST.fullmatch(host):
        raise bad_request("the request needs a Host that is one")
    if coding is not None and (coding.lower() != b"chunked" or http10 or length is not None):
        raise bad_request("the only transfer coding is chunked, of HTTP/1.1, without a length")
    if expectation is not None and expectation.lower() != b"100-continue":
        raise bad_request("the expectation is not known")
    named = fields.connection()
    return RequestHead(
        method=method,
        target=target,
        http10=http10,
        fields=lines(fields.all, TO_UPSTREAM, named),
        length=_content_length(length),
        chunked=coding is not None,
        keep_alive=not http10 and b"close" not in named,
        expects_continue=expectation is not None and not http10,
    )


def _content_length(value: bytes | None) -> int:
    if value is None:
        return 0
    if not value.isdigit() or len(value) > _LENGTH_DIGITS:
        raise bad_request("the Content-Length is not a number of bytes")
    return int(value)


def _judge_answer(raw: bytes) -> AnswerHead:
    fields = _Fields()
    parser = httptools.HttpResponseParser(fields)
    try:
        parser.feed_data(raw)
        length, coding = fields.one(b"content-length"), fields.one(b"transfer-encoding")
        retry_after = fields.one(b"retry-after") or b""
    except (httptools.HttpParserError, httptools.HttpParserUpgrade, ValueError):
        raise BadAnswer("its head is not valid HTTP/1.1") from None
    status = parser.get_status_code()
    if status == 101 or not 100 <= status < 600:
        raise BadAnswer(f"its status is {status}")
    http11 = raw.startswith(b"HTTP/1.1")
    if coding is not None and (coding.lower() != b"chunked" or not http11 or length is not None):
        raise BadAnswer("its transfer coding is not chunked alone")
    if length is not None and not (length.isdigit() and len(length) <= _LENGTH_DIGITS):
        raise BadAnswer("its Content-Length is not a number")
    # Content-Type is never hop-by-hop, whatever an upstream says.
    named = fields.connection() - {b"content-type"}
    bodiless = status in _BODILESS
    found = dict(fields.all)
    return AnswerHead(
        status=status,
        fields=lines(fields.all, TO_CLIENT, named),
        length=0 if bodiless else int(length) if length is not None else None,
        chunked=coding is not None and not bodiless,
        keep_alive=http11 and b"close" not in named and (bodiless or (length or coding) is not None),
        retry_after=min(int(retry_after[:9]), 120) if retry_after.isdigit() else 0,
        event_stream=found.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        and b"content-encoding" not in found,
        interim=status < 200,
    )
