"""Bytes searched, and numbers read out of them: by methods of `bytes`, or where the router is compiled by the
same functions in C (`_scan.c`).

Places are never below 0. What is found is a place in all of `data`, -1 where it is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

MOST_DIGITS = 18
"""A number of more is none; the same in `_scan.c`."""


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


if TYPE_CHECKING:

    def find(data: bytes, what: bytes, start: int = 0, end: int = 0) -> int:
        """As `bytes.find`; the end is that of `data` where none is said."""

    def rfind(data: bytes, what: bytes, start: int = 0, end: int = 0) -> int:
        """As `bytes.rfind`, likewise."""

    flat_numbers, number_between = _flat_numbers, _number_between
else:
    try:
        from servestate.runtime.router._scan import find, flat_numbers, number_between, rfind
    except ImportError:  # it was not compiled
        find, rfind = bytes.find, bytes.rfind
        flat_numbers, number_between = _flat_numbers, _number_between
