"""Characters that hide what a text says: control characters, text direction overrides, look-alikes."""

from __future__ import annotations

import re
import unicodedata

from servestate.planner.spec.findings import Findings
from servestate.planner.spec.places import pack

_SHOWN = 10
_LONGEST = 60

# Control characters but tab and line ends; marks that change the direction of text, with which a reviewer
# sees something else than is parsed; a byte order mark inside; halves of surrogate pairs, which stand for
# bytes that could not be decoded.
_REFUSED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f"
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)


def check_characters(text: str, number: int, findings: Findings) -> bool:
    """Whether all characters of document `number` can be shown and stored. Those that cannot are found."""
    position = -1
    for found, match in enumerate(_REFUSED.finditer(text)):
        if found == _SHOWN:
            break
        position = match.start()
        line = text.count("\n", 0, position)
        mark = pack(number, line, position - text.rfind("\n", 0, position) - 1)
        findings.error("SS151", f"the file contains {_named(match[0])}", _fix(match[0]), mark)
    return position < 0


def _fix(character: str) -> str:
    if "\ud800" <= character <= "\udfff":
        return "save the file as UTF-8"
    return 'delete it; inside double quotes it can be written as an escape such as "\\u200E"'


def _named(character: str) -> str:
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


def shorten(text: str) -> str:
    """`text` on one line and of a length that fits into a message, with nothing invisible in it."""
    shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)
