"""Text as a reader takes it, whatever code points it is written with.

Guards compare these forms, never what was typed: invisible characters, full-width or styled letters, digits
of other scripts and typographic dashes would hide a word or a number from them. Letters that only look alike
(Cyrillic `а` for Latin `a`) stay different.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from itertools import accumulate

_UNSEEN = frozenset({0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10)})
"""Ignorable beside the format characters (Unicode: Default_Ignorable_Code_Point)."""
_KNOWN = 1 << 16  # entries: bounds the table's memory against text that walks through all of Unicode


class _Plain(dict[int, str]):
    """Code point -> the characters that it stands for, found out on the way; for `str.translate`."""

    def __missing__(self, code: int) -> str:
        found = _stands_for(code)
        if len(self) < _KNOWN:
            self[code] = found
        return found


def _stands_for(code: int) -> str:
    character = chr(code)
    category = unicodedata.category(character)
    if code < 0x80:
        return character
    if category == "Cf" or code in _UNSEEN or 0xE0100 <= code <= 0xE01EF:
        return ""
    if category == "Pd":
        return "-"
    if category == "Nd":
        return str(unicodedata.decimal(character))
    return unicodedata.normalize("NFKC", character)


_PLAIN = _Plain()


def plain(text: str) -> str:
    """`text` character by character: what is not seen left out, compatibility forms, dashes and digits as
    the plain ones."""
    return text if text.isascii() else text.translate(_PLAIN)


class Places:
    """Where the characters of `plain(text)` stand in `text`."""

    def __init__(self, text: str) -> None:
        self._ends = None if text.isascii() else list(accumulate(len(_PLAIN[ord(c)]) for c in text))

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The part of `text` that became the characters from `start` to before `end`, `start` < `end`."""
        if self._ends is None:
            return start, end
        return bisect_right(self._ends, start), bisect_right(self._ends, end - 1) + 1


def folded(text: str) -> str:
    """For comparing: as `plain`, case folded, composed, and every run of white space one space, none at the
    ends."""
    if text.isascii():
        return " ".join(text.lower().split())
    composed = unicodedata.normalize("NFKC", plain(text))
    return " ".join(unicodedata.normalize("NFKC", composed.casefold()).split())
