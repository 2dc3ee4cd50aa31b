"""Characters that hide what a text says: control characters, text direction overrides, look-alikes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

_SHOWN = 10
_LONGEST = 60

# Control characters but tab and line ends; marks that change the direction of text, with which a reviewer
# sees something else than is parsed; a byte order mark inside; halves of surrogate pairs, which stand for
# bytes that could not be decoded.
_REFUSED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f"
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)


def refused_characters(text: str) -> Iterator[tuple[int, str]]:
    """Position and character of the first few that cannot be shown or stored."""
    return ((match.start(), match[0]) for match in islice(_REFUSED.finditer(text), _SHOWN))


def how_to_mend(character: str) -> str:
    """What to do about a refused character."""
    if "\ud800" <= character <= "\udfff":
        return "save the file as UTF-8"
    return "delete it"


def named(character: str) -> str:
    """A refused character in words."""
    if "\ud800" <= character <= "\udfff":
        return "bytes that are not UTF-8"
    name = unicodedata.name(character, "a control character")
    return f"the invisible character U+{ord(character):04X} ({name})"


def describe_odd(text: str) -> str:
    """Names the first character of `text` that is not plain ASCII, as it may look like one. "" if none."""
    for position, character in enumerate(text):
        if not " " <= character <= "~":
            name = unicodedata.name(character, "unnamed")
            return f"character {position + 1} is U+{ord(character):04X} ({name})"
    return ""


def shorten(text: str, longest: int = _LONGEST) -> str:
    """`text` on one line and of a length that fits into a message, with nothing invisible in it."""
    shown = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return (
        shown if shown.isprintable() else "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)
    )
