"""Chunked bodies (RFC 9112 section 7.1), read strictly and to the byte: where the message ends is what
request smuggling plays with, so the decoder says exactly which bytes are surplus."""

from __future__ import annotations

import re
from typing import Final

from servestate.runtime.router import scan

is_chunk: Final = scan.is_chunk

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[\t -~\x80-\xff]*)?\r\n")
_SIZE_SO_FAR: Final = re.compile(rb"[0-9A-Fa-f]{0,8}|[0-9A-Fa-f]{1,8}(?:;[\t -~\x80-\xff]*)?\r?")
_TRAILER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t -~\x80-\xff]*")
_LINE_BYTES: Final = 1024
_TRAILERS_BYTES: Final = 8192
_FORBIDDEN_TRAILERS: Final = frozenset({b"content-length", b"transfer-encoding", b"host", b"connection"})

LAST: Final = b"0\r\n\r\n"
"""The last chunk and an empty trailer section."""

_SIZE_LINES: Final = [b"%x\r\n" % size for size in range(4096)]


class BadChunk(Exception):
    """The bytes are no chunked body."""


def encode(payload: bytes, last: bool) -> bytes:
    """`payload` as one chunk (nothing if it is empty), and the end of the body if it is the `last`."""
    size = len(payload)
    if not size:
        return LAST if last else b""
    line = _SIZE_LINES[size] if size < 4096 else b"%x\r\n" % size
    return b"".join((line, payload, b"\r\n", LAST if last else b""))


class Decoder:
    """One body. `done` once its last byte was seen; `surplus` then holds what came after it."""

    __slots__ = ("_between", "_ending", "_held", "_left", "_trailers", "done", "surplus")

    def __init__(self) -> None:
        self._between = True  # the next byte begins a chunk
        self._held = b""
        self._left = 0
        self._ending = False  # chunk data was read, its CRLF not yet
        self._trailers = -1  # bytes of trailers seen; -1 = not there yet
        self.done = False
        self.surplus = b""

    def is_whole_chunk(self, data: bytes) -> bool:
        """Whether `data`, which comes next, is exactly one chunk and written as `encode` would. It then needs
        no `feed`: the decoder stands before and after it alike."""
        return self._between and is_chunk(data)

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`. Raises BadChunk; trailers are checked and dropped."""
        payload = self._feed(data)
        self._between = not (self._held or self._left or self._ending or self._trailers >= 0)
        return payload

    def _feed(self, data: bytes) -> bytes:
        if self._held:
            data = self._held + data
            self._held = b""
        at = 0
        parts: list[bytes] = []
        while not self.done:
            if self._left:
                piece = data[at : at + self._left]
                if not piece:
                    break
                parts.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._ending = self._left == 0
                continue
            after = self._framing(data, at)
            if after == at:
                self._held = data[at:]
                break
            at = after
        if self.done:
            self.surplus = data[at:]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _framing(self, data: bytes, at: int) -> int:
        """Read one piece of framing at `at`; the offset after it, or `at` when it is not all there."""
        if self._ending:
            end = data[at : at + 2]
            if end != b"\r\n":
                return _partial(b"\r\n".startswith(end), at)
            self._ending = False
            at += 2
            if at == len(data):
                return at
        if self._trailers >= 0:
            return self._trailer(data, at)
        match = _SIZE.match(data, at)
        if match is None:
            rest = data[at : at + _LINE_BYTES + 1]
            ok = len(rest) <= _LINE_BYTES and _SIZE_SO_FAR.fullmatch(rest) is not None
            return _partial(ok, at)
        if match.end() - at > _LINE_BYTES:
            raise BadChunk("a chunk's extensions are too long")
        self._left = int(match[1], 16)
        if self._left == 0:
            self._trailers = 0
        return match.end()

    def _trailer(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at)
        if end < 0:
            line = data[at:]
            ok = len(line) <= _LINE_BYTES and b"\n" not in line and b"\r" not in line[:-1]
            return _partial(ok, at)
        line = data[at:end]
        if not line:
            self.done = True
            return end + 2
        match = _TRAILER.fullmatch(line)
        self._trailers += len(line)
        too_long = len(line) > _LINE_BYTES or self._trailers > _TRAILERS_BYTES
        if match is None or match[1].lower() in _FORBIDDEN_TRAILERS or too_long:
            raise BadChunk("a trailer is not allowed")
        return end + 2


def _partial(so_far_good: bool, at: int) -> int:
    if not so_far_good:
        raise BadChunk("the framing of a chunk is wrong")
    return at
