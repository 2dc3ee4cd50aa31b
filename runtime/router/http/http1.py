"""HTTP/1.1 messages out of bytes: where a head ends, where a body ends, and what is left over.

Bodies are counted here, to the byte, and never shown to a parser: who else decides where a message ends can
be told another story than we were.
"""

from __future__ import annotations

import re
from typing import Final

from servestate.runtime.router import scan
from servestate.runtime.router.http.chunked import BadChunk, Decoder
from servestate.runtime.router.http.heads import (
    BODILESS,
    AnswerHead,
    BadAnswer,
    Repeated,
    RequestHead,
    bad_request,
    check_answer_size,
    judge_answer,
    judge_request,
    read_request_line,
    repeatable,
    too_large,
)
from servestate.runtime.router.limits import Limits

find: Final = scan.find

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_BARE: Final = re.compile(rb"(?<!\r)\n|\r[^\n]|\0")
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)+")
_FRAMING_FACTOR: Final = 8
"""A chunk of one byte takes six; extensions would take any number, and time with them."""
_REQUEST_LINE_EXTRA: Final = 32  # the longest method and version with their spaces


class RequestReader:
    """One client connection's bytes as requests, one at a time.

    `receive` says True once a whole request stands in `head` and `body`; what came after it stands in
    `surplus`. `restart` then makes it ready for the next. Every refusal closes.
    """

    # Slots, here and in the other objects of the hot path: their attributes are read fastest.
    __slots__ = (
        "_buffer",
        "_came",
        "_decoder",
        "_last",
        "_left",
        "_limits",
        "body",
        "head",
        "length",
        "received",
        "surplus",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._last: Repeated[RequestHead] | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the request; `surplus` is taken away by the caller before."""
        self.head: RequestHead | None = None
        self.length = 0  # of the body, as far as it is known
        self.received = 0  # of the body, framing included
        self.body = b""
        self.surplus = b""
        self._buffer = b""
        self._left = 0
        self._decoder: Decoder | None = None
        self._came: bytearray | None = None  # of the body: single pieces would cost more than they hold

    @property
    def begun(self) -> bool:
        """Whether any byte of a request was seen."""
        return self.head is not None or bool(self._buffer)

    @property
    def held(self) -> int:
        """How many bytes of an unfinished body are held."""
        return len(self._came) if self._came is not None else 0

    def peek(self) -> bytes:
        """What is held of an unfinished body."""
        return bytes(self._came or b"")

    def take(self) -> bytes:
        """What is held of an unfinished body, which is not held any longer: `body` will be the rest."""
        came, self._came = self._came, bytearray()
        return bytes(came or b"")

    def receive(self, data: bytes) -> bool:
        """Take bytes; whether the request is whole. Raises Refused."""
        if self.head is not None:
            self.received += len(data)
            return self._take_body(data)
        seen = len(self._buffer)
        if seen:
            data = self._buffer + data
            self._buffer = b""
        if data[:2] == b"\r\n":  # RFC 9112 section 2.2: empty lines before a request are ignored
            data = _EMPTY_LINES.sub(b"", data, count=1)
            seen = 0
        end = find(data, b"\r\n\r\n")
        if end < 0:
            self._check_unfinished(data, seen)
            self._buffer = data
            return False
        head = self._take_head(data[:end])
        rest = data[end + 4 :]
        if len(rest) == self.length and not head.chunked:
            self.body = rest
            return True
        self.received = len(rest)
        self._left = self.length
        self._came = bytearray()
        if head.chunked:
            self._decoder = Decoder()
        return self._take_body(rest)

    def _take_head(self, raw: bytes) -> RequestHead:
        last = self._last
        length = last.length_in(raw) if last is not None else -1
        if last is not None and length >= 0:
            head = last.head
        else:
            head = judge_request(raw + b"\r\n\r\n", self._limits)
            length = head.length
            self._last = repeatable(raw, head)
        if length > self._limits.body_bytes:
            raise too_large(self._limits.body_bytes)
        self.head = head
        self.length = length
        return head

    def _take_body(self, data: bytes) -> bool:
        came = self._came
        assert came is not None
        if self._decoder is not None:
            return self._take_chunks(self._decoder, came, data)
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            came += data
            return False
        self.surplus = data[left:]
        came += data[:left]
        self._end_body(came)
        return True

    def _end_body(self, came: bytearray) -> None:
        self.body = bytes(came)
        self._came = None  # now, not with the next request: it is as large as the body

    def _take_chunks(self, decoder: Decoder, came: bytearray, data: bytes) -> bool:
        try:
            payload = decoder.feed(data)
        except BadChunk as error:
            raise bad_request(str(error)) from None
        came += payload
        self.length += len(payload)
        if self.length > self._limits.body_bytes:
            raise too_large(self._limits.body_bytes)
        if self.received > _FRAMING_FACTOR * self.length + self._limits.large_bytes:
            raise bad_request("the chunks of the body are mostly framing")
        if decoder.done:
            self._end_body(came)
            self.surplus = decoder.surplus
        return decoder.done

    def _check_unfinished(self, data: bytes, seen: int) -> None:
        """Refuse at once what no further byte can make right. The first `seen` bytes were looked at before:
        to look again for every byte that comes would cost seconds per head."""
        line_end = data.find(b"\r\n")
        if line_end < 0:
            if len(data) > self._limits.target_bytes + _REQUEST_LINE_EXTRA:
                raise bad_request("the request target is too long", 414)
        elif line_end >= seen - 1:
            read_request_line(data[:line_end], self._limits)
        if len(data) > self._limits.head_bytes or data.count(b"\r\n") - 1 > self._limits.head_fields:
            raise bad_request("the request's head is too large", 431)
        if _BARE.search(data, max(seen - 1, 0)):  # a CR at the end was not decided
            raise bad_request("the request's head holds a line ending or byte that is not allowed")


class AnswerReader:
    """An upstream's bytes as answers to POSTs, one at a time.

    After `receive`, `head` stands once the final head was read, `complete` says that the last byte was seen.
    `restart` makes it ready for the next answer.
    """

    __slots__ = (
        "_buffer",
        "_interim",
        "_last",
        "_left",
        "_limits",
        "complete",
        "decoder",
        "head",
        "length",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = 0
        self._last: Repeated[AnswerHead] | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the answer."""
        self.head: AnswerHead | None = None
        self.length: int | None = None
        self.complete = False
        self._buffer = b""
        self._interim = 0
        self.decoder: Decoder | None = None

    @property
    def begun(self) -> bool:
        """Whether any byte of an answer was seen."""
        return self.head is not None or bool(self._buffer) or self._interim > 0

    def receive(self, data: bytes) -> bytes:
        """Take bytes; the body's bytes among them. Raises BadAnswer, also for surplus behind the end."""
        if self.head is None:
            if self._buffer:
                data = self._buffer + data
                self._buffer = b""
            rest = self._take_head(data)
            if rest is None:
                return b""
            data = rest
        if self.decoder is not None:
            return self._take_chunks(self.decoder, data)
        if self.length is None:
            return data
        self._left -= len(data)
        if self._left <= 0:
            if self._left < 0:
                raise BadAnswer("more bytes than its length says")
            self.complete = True
        return data

    def end_of_input(self) -> None:
        """The upstream closed its side: the end of an answer that nothing else delimits."""
        if self.head is not None and self.length is None and not self.head.chunked:
            self.complete = True

    def _take_head(self, data: bytes) -> bytes | None:
        """What follows the final head; None as long as that is not all there."""
        end = find(data, b"\r\n\r\n")
        if end < 0:
            check_answer_size(data, self._limits)
            self._buffer = data
            return None
        raw, rest = data[:end], data[end + 4 :]
        last = self._last
        length: int | None = last.length_in(raw) if last is not None else -1
        if last is not None and length != -1:
            head = last.head
        else:
            head = judge_answer(raw + b"\r\n\r\n", self._limits)
            length = head.length
            self._last = None if head.status in BODILESS else repeatable(raw, head)
        if head.interim:
            self._interim += 1
            if self._interim > self._limits.informational:
                raise BadAnswer("too many informational answers")
            return self._take_head(rest)
        self.head = head
        self.length = length
        if length is not None:
            self._left = length
        elif head.chunked:
            self.decoder = Decoder()
        return rest

    def _take_chunks(self, decoder: Decoder, data: bytes) -> bytes:
        try:
            payload = decoder.feed(data)
        except BadChunk as error:
            raise BadAnswer(str(error)) from None
        self.complete = decoder.done
        if decoder.surplus:
            raise BadAnswer("bytes behind its last chunk")
        return payload
