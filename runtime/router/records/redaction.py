"""Secrets in text that others wrote: what names itself one, what looks like a known kind of key, and the
values that this router was configured with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import orjson

HIDDEN = "***"
_SHORTEST = 4
"""Characters of a configured value that is looked for: a shorter one is part of much that is no secret."""
_SHORTEST_END = 8
"""How much of a value must stand at the end of a cut text to be taken for it."""

# Every repetition is bounded or cannot be read in two ways: callers choose the text.
_NAMES = (
    r"(?:(?:[a-z0-9]{1,32}[-_]){0,4}(?:api[-_]?key|(?:access|refresh|bearer|auth|id)[-_]?token|secret|private[-_]?key"
    r"|client[-_]?secret|secret[-_]?(?:access[-_]?)?key|authorization|password)|passwd|apikey|cookie)"
)
_MEMBER = re.compile(rf'("{_NAMES}"\s{{0,8}}:\s{{0,8}}")[^"\\]*(?:\\.[^"\\]*)*', re.IGNORECASE | re.DOTALL)
# The same in JSON that is text in JSON, as the arguments of tools are.
_INNER_MEMBER = re.compile(
    rf'(\\"{_NAMES}\\"\s{{0,8}}:\s{{0,8}}\\")(?:[^"\\]|\\[^"\\]|\\\\(?:\\.|[^\\]))*',
    re.IGNORECASE | re.DOTALL,
)
# Kinds of keys, by what they begin with: to find that costs a fraction of asking a pattern at every place,
# and no other thread runs meanwhile.
_KEYS = tuple(
    (begin, re.compile(re.escape(begin) + rest, re.DOTALL))
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
        ("-----BEGIN ", r"[A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)"),
    )
)
# Not by its beginning: one that has no end would be read again from each "eyJ" in it.
_WEB_TOKEN = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+")
_SCHEMES = tuple(
    (begin, re.compile(rf"({begin}) [A-Za-z0-9._~+/-]{{12,}}=*"))
    for begin in ("Bearer", "bearer", "Basic", "basic")
)


class Redaction:
    """Hides secrets. `values` are those that are known."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        known = {form for value in values if len(value) >= _SHORTEST for form in _forms(value)}
        self._values = sorted(known, key=len, reverse=True)  # one may contain another

    def hide(self, text: str, *, cut: bool = False) -> str:
        """`text` without them. Where the text was `cut` off, its end may be the beginning of a value."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        if cut:
            text = self._without_begun(text)
        for member in (_MEMBER, _INNER_MEMBER):
            text = member.sub(rf"\g<1>{HIDDEN}", text)
        for begin, key in _KEYS:
            if begin in text:
                text = key.sub(_hidden, text)
        if ".eyJ" in text:
            text = _WEB_TOKEN.sub(HIDDEN, text)
        for begin, scheme in _SCHEMES:
            if begin in text:
                text = scheme.sub(rf"\g<1> {HIDDEN}", text)
        return text

    def _without_begun(self, text: str) -> str:
        for value in self._values:
            for length in range(len(value) - 1, _SHORTEST_END - 1, -1):
                if text.endswith(value[:length]):
                    return text[:-length] + HIDDEN
        return text


def _hidden(found: re.Match[str]) -> str:
    """Nothing is a key that begins in the middle of a word."""
    start = found.start()
    return found[0] if start and found.string[start - 1].isalnum() else HIDDEN


def _forms(value: str) -> Iterator[str]:
    """As it is, as text in JSON, and as text in JSON that is text in JSON."""
    for _ in range(3):
        yield value
        value = orjson.dumps(value).decode()[1:-1]
