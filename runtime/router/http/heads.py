"""Heads of HTTP/1.1 messages, judged: httptools parses, and this layer closes what it leaves open.

On requests: no or two Hosts, odd request lines, sizes, methods, framing on HTTP/1.0, upgrades. On answers:
odd statuses and codings. A head is fed to a fresh parser and nothing after it is, so a second message in the
same bytes is never begun.

The heads of one connection repeat, but for the length of the body, on which nothing else in them depends:
what was worked out for one holds for the next.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final, Generic, TypeVar

import httptools

from servestate.runtime.router import scan
from servestate.runtime.router.http.errors import BAD_REQUEST, Refused, refused
from servestate.runtime.router.http.headers import TO_API, TO_CLIENT, TO_UPSTREAM, lines
from servestate.runtime.router.limits import Limits

number_between: Final = scan.number_between

Field = tuple[bytes, bytes]

_METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_HOST: Final = re.compile(rb"[A-Za-z0-9.\-_]+(?::[0-9]{0,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{0,5})?")
_TARGET: Final = re.compile(rb"/[!\"$-~]*")  # no fragment, no absolute form, nothing outside visible ASCII
_VERSIONS: Final = (b"HTTP/1.1 ", b"HTTP/1.0 ")
BODILESS: Final = (204, 304)
"""Statuses without a body, whatever length they claim."""
_LENGTH_DIGITS: Final = 15  # the parser cannot overflow on so many, so its verdict does not depend on which
_LENGTH_FIELD: Final = re.compile(
    rb"\r\ncontent-length: ([0-9]{1,%d})(?:\r\n|$)" % _LENGTH_DIGITS, re.IGNORECASE
)
_REPEATED_BYTES: Final = 4096
_LONGEST_PAUSE_S: Final = 120
_DATE_BYTES: Final = 64
_SAME_SITE: Final = (b"none", b"same-origin")

STATUS_LINES: dict[int, bytes] = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode("ascii")) for status in HTTPStatus
}


class BadAnswer(Exception):
    """The upstream's bytes are no HTTP answer that can be trusted; its connection is not used again."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a request's head says. `fields` are the header lines that go to a model's server, `api_fields`
    those that go to the management API. `length` is the body's, unless `chunked`; `keep_alive` is False on
    HTTP/1.0 always. `authorization` is empty where there is none, or more than one: nobody may choose which.
    `foreign` says that a browser sent it for another site's page, as far as browsers tell. `every` are all
    fields, names in lower case, and `traceparent` that one of them, empty unless it stands there once."""

    method: bytes
    target: bytes
    http10: bool
    fields: bytes
    length: int
    chunked: bool
    keep_alive: bool
    expects_continue: bool
    host: bytes = b""
    authorization: bytes = b""
    api_fields: bytes = b""
    foreign: bool = False
    every: tuple[Field, ...] = ()
    traceparent: bytes = b""

    def field(self, name: bytes) -> bytes:
        """The value of `name`, which is in lower case; empty if it stands there not exactly once."""
        values = [value for known, value in self.every if known == name]
        return values[0] if len(values) == 1 else b""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What the head of an answer to a POST says. `fields` are the header lines that go to clients,
    `unlimited` the same less those about the upstream's own limits of its callers. `length` is None when
    chunks (`chunked`) or the end of the connection delimit the body. An `interim` answer (1xx) has no body
    and another answer follows it. `event_stream` only if its lines can be read."""

    status: int
    fields: bytes
    length: int | None
    chunked: bool
    keep_alive: bool
    retry_after: int
    event_stream: bool
    interim: bool
    unlimited: bytes = b""


Head = TypeVar("Head", RequestHead, AnswerHead)


class Repeated(Generic[Head]):
    """The last head of a connection: the next one is most often the same but for the digits of its length,
    and what was worked out for the one then holds for the other."""

    __slots__ = ("_after", "_before", "_most_bytes", "head")

    def __init__(self, before: bytes, after: bytes, head: Head) -> None:
        self._before = before
        self._after = after
        self._most_bytes = len(before) + len(after) + _LENGTH_DIGITS
        self.head: Head = head

    def length_in(self, raw: bytes) -> int:
        """The length of the body that `raw` announces, -1 if it is another head."""
        if len(raw) > self._most_bytes:
            return -1
        return number_between(raw, self._before, self._after)


def repeatable(raw: bytes, head: Head) -> Repeated[Head] | None:
    """What the heads after `raw`, which was judged to be `head`, can be compared with; both without the
    empty line at their end."""
    match = _LENGTH_FIELD.search(raw)
    if match is None or int(match[1]) != head.length or len(raw) > _REPEATED_BYTES:
        return None
    return Repeated(raw[: match.start(1)], raw[match.end(1) :], head)


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

    def only(self, name: bytes) -> bytes:
        """The value of `name`, empty if it stands there not exactly once."""
        values = [v for n, v in self.all if n == name]
        return values[0] if len(values) == 1 else b""

    def foreign(self) -> bool:
        """Whether there is an Origin, or a browser that says that another site's page asks."""
        return any(
            n == b"origin" or (n == b"sec-fetch-site" and v.lower() not in _SAME_SITE) for n, v in self.all
        )

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


def judge_request(raw: bytes, limits: Limits) -> RequestHead:
    """The head `raw`, which ends with its empty line. Raises Refused."""
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
        host, coding = fields.one(b"host"), fields.one(b"transfer-encoding")
        length = fields.one(b"content-length")
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
    authorization = fields.only(b"authorization")
    return RequestHead(
        method=method,
        target=target,
        http10=http10,
        fields=lines(fields.all, TO_UPSTREAM, named),
        length=_content_length(length),
        chunked=coding is not None,
        keep_alive=not http10 and b"close" not in named,
        expects_continue=expectation is not None and not http10,
        host=host,
        authorization=authorization,
        api_fields=lines(fields.all, TO_API, named if authorization else named | {b"authorization"}),
        foreign=fields.foreign(),
        every=tuple(fields.all),
        traceparent=fields.only(b"traceparent"),
    )


def _content_length(value: bytes | None) -> int:
    if value is None:
        return 0
    if not value.isdigit() or len(value) > _LENGTH_DIGITS:
        raise bad_request("the Content-Length is not a number of bytes")
    return int(value)


def check_answer_size(raw: bytes, limits: Limits) -> None:
    """Raises BadAnswer if `raw`, the beginning of an answer or its head, can be none within the limits."""
    if len(raw) > limits.head_bytes or raw.count(b"\r\n") - 2 > limits.head_fields:
        raise BadAnswer("its head is too large")
    start = raw[:9]
    if not any(version.startswith(start) for version in _VERSIONS):
        raise BadAnswer("it does not speak HTTP/1.1")


def judge_answer(raw: bytes, limits: Limits) -> AnswerHead:
    """The head `raw`, which ends with its empty line. Raises BadAnswer."""
    check_answer_size(raw, limits)
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
    bodiless = status in BODILESS
    found = dict(fields.all)
    return AnswerHead(
        status=status,
        fields=lines(fields.all, TO_CLIENT, named),
        length=0 if bodiless else int(length) if length is not None else None,
        chunked=coding is not None and not bodiless,
        keep_alive=http11 and b"close" not in named and (bodiless or (length or coding) is not None),
        retry_after=_pause(retry_after, fields.only(b"date")) if retry_after else 0,
        event_stream=found.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        and b"content-encoding" not in found,
        interim=status < 200,
        unlimited=lines((f for f in fields.all if not f[0].startswith(b"x-ratelimit-")), TO_CLIENT, named),
    )


def _pause(value: bytes, date: bytes) -> int:
    """The whole seconds that a Retry-After asks for, within bounds; 0 where it cannot be read. A date is that
    much later than the answer's own, so that the upstream's clock need not be right."""
    if value.isdigit():
        return min(int(value[:9]), _LONGEST_PAUSE_S)
    then = _moment(value)
    if then is None:
        return 0
    now = _moment(date)
    pause_s = then - (time.time() if now is None else now)
    return min(max(math.ceil(pause_s), 0), _LONGEST_PAUSE_S)


def _moment(date: bytes) -> float | None:
    """A date of HTTP in seconds since the epoch, None for what is none."""
    try:
        found = parsedate_to_datetime(date[:_DATE_BYTES].decode("latin-1"))
    except (ValueError, OverflowError):
        return None
    return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
