"""Secrets in text that others wrote: what names itself one, what looks like a known kind of key, and the
values that this router was configured with.

The loop stands still while a pattern or a search runs, whichever thread it is in, so none is given more than
a small part of the text at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import orjson

HIDDEN = "***"
_SHORTEST = 4
"""Characters of a configured value that is looked for: a shorter one is part of much that is no secret."""
_SHORTEST_END = 8
"""How much of a value, or half of a short one, must stand at the end of a cut text to be taken for it."""
_AT_ONCE = 1 << 14
"""Characters that a pattern looks through in one call."""

# Every repetition is bounded or cannot be read in two ways: callers choose the text.
_NAMES = (
    r"(?:(?:[a-z0-9]{1,32}[-_]){0,4}(?:api[-_]?key|(?:access|refresh|bearer|auth|id)[-_]?token|secret|private[-_]?key"
    r"|client[-_]?secret|secret[-_]?(?:access[-_]?)?key|authorization|password)|passwd|apikey|cookie)"
)
# How a member begins, and what then is its value, whether or not the text has its end.
_MEMBER = (
    re.compile(rf'"{_NAMES}"\s{{0,8}}:\s{{0,8}}"', re.IGNORECASE),
    re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL),
)
_INNER_MEMBER = (  # in JSON that is text in JSON, as the arguments of tools are
    re.compile(rf'\\"{_NAMES}\\"\s{{0,8}}:\s{{0,8}}\\"', re.IGNORECASE),
    re.compile(r'[^"\\]*(?:(?:\\[^"\\]|\\\\(?:\\.|[^\\]))[^"\\]*)*', re.DOTALL),
)
_MEMBER_BEGINS = 512
"""Characters: more than a member takes up to its value."""

_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt])|(?<=\\u[0-9a-fA-F]{4}))"
"""Nothing is a key that begins in the middle of a word; the end of an escaped character is none."""
# Kinds of keys, by what they begin with: to find that costs a fraction of asking a pattern at every place.
_KEYS = tuple(
    (begin, re.compile(_START + re.escape(begin) + rest))
    for begin, rest in (
        ("sk-", "[A-Za-z0-9_-]{16,}"),  # OpenAI, Anthropic and those who copied them
        ("dapi", "[0-9a-f]{32}"),  # Databricks
        ("hf_", "[A-Za-z0-9]{20,}"),
        ("gh", "[opsur]_[A-Za-z0-9]{30,}"),
        ("github_pat_", "[A-Za-z0-9_]{30,}"),
        ("glpat-", "[A-Za-z0-9_-]{20,}"),
        ("AKIA", "[0-9A-Z]{16}"),
        ("ASIA", "[0-9A-Z]{16}"),
        ("AIza", "[0-9A-Za-z_-]{35,}"),
        ("xox", "[abeprs]-[A-Za-z0-9-]{10,}"),
        # JSON Web Tokens. One without an end would be read again from each "-eyJ" in it.
        ("eyJ", r"(?<![_-]eyJ)[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"),
    )
)
_BEGUN = re.compile(
    rf"{_START}(?:sk-|dapi|hf_|gh[opsur]_|github_pat_|glpat-|AKIA|ASIA|AIza|xox[abeprs]-|eyJ)"
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="
_BEGIN, _END = "-----BEGIN ", "-----END "
_PRIVATE, _PRIVATE_ENDS = (re.compile(rf"{begin}[A-Z ]{{0,30}}PRIVATE KEY-----") for begin in (_BEGIN, _END))
_SCHEMES = ("Bearer ", "bearer ", "Basic ", "basic ")
_CREDENTIALS = re.compile("[A-Za-z0-9._~+/-]{12,}=*")

Span = tuple[int, int]


class Redaction:
    """Hides secrets. `values` are those that are known."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        known = {form for value in values if len(value) >= _SHORTEST for form in _forms(value)}
        self._values = sorted(known, key=len, reverse=True)  # one may contain another

    def hide(self, text: str, *, cut: bool = False) -> str:
        """`text` without them. Where the text was `cut` off, its end may be the beginning of one."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        if cut:
            text = self._without_begun(text)
        for begins, value_of in (_MEMBER, _INNER_MEMBER):
            text = _without(text, _values_of_members(text, begins, value_of))
        for begin, key in _KEYS:
            text = _without(text, _keys(text, begin, key))
        text = _without(text, _private_keys(text))
        for scheme in _SCHEMES:
            text = _without(text, _credentials(text, scheme))
        return _without_begun_key(text) if cut else text

    def _without_begun(self, text: str) -> str:
        for value in self._values:
            shortest = min(_SHORTEST_END, (len(value) + 1) // 2)
            for length in range(len(value) - 1, shortest - 1, -1):
                if text.endswith(value[:length]):
                    return text[:-length] + HIDDEN
        return text


def _without(text: str, spans: Iterable[Span]) -> str:
    pieces: list[str] = []
    at = 0
    for start, end in spans:
        pieces += text[at:start], HIDDEN
        at = end
    return "".join((*pieces, text[at:])) if pieces else text


def _values_of_members(text: str, begins: re.Pattern[str], value_of: re.Pattern[str]) -> Iterator[Span]:
    at = 0
    while at < len(text):
        found = begins.search(text, at, at + _AT_ONCE + _MEMBER_BEGINS)
        if found is None or found.start() >= at + _AT_ONCE:  # that one may go on beyond what was looked at
            at += _AT_ONCE
            continue
        value = value_of.match(text, found.end())
        assert value is not None, "it may be empty"
        yield value.span()
        at = value.end()


def _keys(text: str, begin: str, key: re.Pattern[str]) -> Iterator[Span]:
    at = text.find(begin)
    while at >= 0:
        found = key.match(text, at)
        if found is not None:
            yield found.span()
        at = text.find(begin, at + 1 if found is None else found.end())


def _private_keys(text: str) -> Iterator[Span]:
    at = text.find(_BEGIN)
    while at >= 0:
        found = _PRIVATE.match(text, at)
        end = at + 1 if found is None else _end_of_private_key(text, found.end())
        if found is not None:
            yield at, end
        at = text.find(_BEGIN, end)


def _end_of_private_key(text: str, at: int) -> int:
    """Where one ends that goes on at `at`: a cut one with the text."""
    while (at := text.find(_END, at)) >= 0:
        found = _PRIVATE_ENDS.match(text, at)
        if found is not None:
            return found.end()
        at += 1
    return len(text)


def _credentials(text: str, scheme: str) -> Iterator[Span]:
    at = text.find(scheme)
    while at >= 0:
        at += len(scheme)
        found = _CREDENTIALS.match(text, at)
        if found is not None:
            yield found.span()
        at = text.find(scheme, at)


def _without_begun_key(text: str) -> str:
    """Without what at its end may be a key that goes on."""
    start = len(text.rstrip(_LETTERS))
    if text.endswith(_SCHEMES, 0, start):
        return text[:start] + HIDDEN
    found = _BEGUN.search(text, start)
    return text if found is None else text[: found.start()] + HIDDEN


def _forms(value: str) -> Iterator[str]:
    """As it is, as text in JSON, and as text in JSON that is text in JSON."""
    for _ in range(3):
        yield value
        value = orjson.dumps(value).decode()[1:-1]
