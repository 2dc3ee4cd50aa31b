"""Bytes searched, and numbers read out of them: by methods of `bytes`, or where the router is compiled by the
same functions in C (`_scan.c`).

Places are never below 0. What is found is a place in all of `data`, -1 where it is not there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

MOST_DIGITS = 18
"""A number of more is none; the same in `_scan.c`."""
MOST_DEPTH = 1024
"""So many brackets may be open at once, as where a whole body is read; the same in `_scan.c`."""

_SIZES = {b"%x" % size: size for size in range(4096)}
_TEXT = rb'[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|(\\?+)\Z)'
_REST = re.compile(_TEXT, re.DOTALL)
_PART = re.compile(rb'"' + _TEXT + rb"|[{}\[\]]", re.DOTALL)


def _number_between(data: bytes, before: bytes, after: bytes) -> int:
    """The number that is all that stands between `before` and `after` in `data`, which begins and ends with
    them; -1 if it is made otherwise."""
    start, end = len(before), len(data) - len(after)
    if start < end and data[:start] == before and data[end:] == after:
        digits = data[start:end]
        if digits.isdigit() and len(digits) <= MOST_DIGITS:
            return int(digits)
    return -1


def _flat_numbers(data: bytes, start: int, first: bytes, second: bytes) -> tuple[int, int] | None:
    """The values of two keys, each written as `"key":`, of the JSON object that begins at `start`. None where
    it takes a parser to know: nested, escaped, spaced, or no such numbers. By methods of `bytes` it would
    take longer than the parser, so that without C it is always None."""
    return None


def _is_chunk(data: bytes) -> bool:
    """Whether `data` is one chunk of HTTP, not the last one, of less than 4096 bytes and framed without any
    ornament."""
    line_end = data.find(b"\r\n")
    size = _SIZES.get(data[:line_end], 0) if line_end > 0 else 0
    return size > 0 and len(data) == line_end + size + 4 and data.endswith(b"\r\n")


def _is_plain_event(chunk: bytes) -> bool:
    """Whether a chunk with its framing holds whole lines of an event stream at which nobody needs to look
    more closely: all ASCII, no comments, no usage. By methods of `bytes` it would take longer than that look,
    so that without C it is never known."""
    return False


def _nested(data: bytes, at: int, depth: int, quoted: int) -> tuple[int, int, int]:
    """Go on in JSON from `at`, where `depth` brackets are open, the outermost among them, and `quoted` says
    whether a text is: 0, 1, or 2 behind a backslash in it. Where only the outermost is open, or where `data`
    ends, or behind the bracket by which more than `MOST_DEPTH` are open; and what then holds. What the
    brackets hold is not judged, nor whether they are a pair."""
    if quoted:
        match = _REST.match(data, at + (quoted == 2 and at < len(data)))
        if match is None or (quoted == 2 and at == len(data)):
            return at, depth, quoted
        at = match.end()
        if match[1] is not None:
            return at, depth, 1 + len(match[1])
    if depth == 1:
        return at, 1, 0
    for match in _PART.finditer(data, at):
        if match[1] is not None:
            return len(data), depth, 1 + len(match[1])
        first = data[match.start()]
        if first in b"{[":
            depth += 1
            if depth > MOST_DEPTH:
                return match.end(), depth, 0
        elif first in b"}]":
            depth -= 1
            if depth == 1:
                return match.end(), 1, 0
    return len(data), depth, 0


if TYPE_CHECKING:

    def find(data: bytes, what: bytes, start: int = 0, end: int = 0) -> int:
        """As `bytes.find`; the end is that of `data` where none is said."""

    def rfind(data: bytes, what: bytes, start: int = 0, end: int = 0) -> int:
        """As `bytes.rfind`, likewise."""

    flat_numbers, nested, number_between = _flat_numbers, _nested, _number_between
    is_chunk, is_plain_event = _is_chunk, _is_plain_event
else:
    try:
        from servestate.runtime.router._scan import (
            find,
            flat_numbers,
            is_chunk,
            is_plain_event,
            nested,
            number_between,
            rfind,
        )
    except ImportError:  # it was not compiled
        find, rfind = bytes.find, bytes.rfind
        flat_numbers, nested, number_between = _flat_numbers, _nested, _number_between
        is_chunk, is_plain_event = _is_chunk, _is_plain_event
