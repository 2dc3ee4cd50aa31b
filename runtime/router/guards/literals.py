"""Where the strings of a JSON text stand, so that one can be changed while every other byte stays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson

Path = tuple[str | int, ...]

_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_TOKEN = re.compile(rf"{_STRING}(\s*:\s*)?|[{{}}\[\]]", re.DOTALL)
_TOKEN_OR_NUMBER = re.compile(rf"{_STRING}(\s*:\s*)?|[{{}}\[\]]|-?\d[\d.eE+-]*", re.DOTALL)
_CHARACTER = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|.", re.DOTALL
)
_COLON = re.compile(r"\s*:\s*")
_SCALAR = re.compile(rf"{_STRING}|[^\s,\]}}]+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Literal:
    """A string, number or key of a JSON text, from `start` to before `end` of it, quotes included. `path`
    leads to it: keys, and places in arrays (counted without numbers, true, false and null, so they only tell
    elements apart)."""

    path: Path
    start: int
    end: int
    value: str
    number: bool = False
    key: bool = False


@dataclass(frozen=True, slots=True)
class Edit:
    """`text` instead of what stands from `start` to before `end`."""

    start: int
    end: int
    text: str


class _Container:
    """An array or object that the reader is in; `key` is that of the member it is at, None in an array."""

    __slots__ = ("count", "key", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key: str | None = None
        self.count = -1

    def child(self) -> Path:
        """The path of the value that begins here."""
        if self.key is not None:
            return (*self.path, self.key)
        self.count += 1
        return (*self.path, self.count)


def literals(text: str, *, numbers: bool = False) -> Iterator[Literal]:
    """The keys and strings, and if asked for the numbers, of a valid JSON text, in order; those of members
    that stand twice as well. The path of the whole is empty."""
    stack: list[_Container] = []
    for match in (_TOKEN_OR_NUMBER if numbers else _TOKEN).finditer(text):
        mark = text[match.start()]
        if mark == '"' and match[1] is not None:
            end = match.start(1)
            inside = stack[-1]
            inside.key = orjson.loads(text[match.start() : end])
            yield Literal((*inside.path, inside.key), match.start(), end, inside.key, key=True)
        elif mark == '"':
            yield Literal(_child(stack), match.start(), match.end(), orjson.loads(match[0]))
        elif mark in "{[":
            stack.append(_Container(_child(stack)))
        elif mark in "}]":
            stack.pop()
        else:
            yield Literal(_child(stack), match.start(), match.end(), match[0], number=True)


def _child(stack: list[_Container]) -> Path:
    return stack[-1].child() if stack else ()


def within(text: str, literal: Literal, edits: Sequence[Edit]) -> Iterator[Edit]:
    """Edits of a string's value as edits of the JSON text that it stands in; escapes outside them stay."""
    if not edits:
        return
    body = text[literal.start + 1 : literal.end - 1]
    if "\\" not in body:
        starts: range | list[int] = range(len(body) + 1)
    else:
        starts = [match.start() for match in _CHARACTER.finditer(body)] + [len(body)]
    at = literal.start + 1
    for edit in edits:
        yield Edit(at + starts[edit.start], at + starts[edit.end], escaped(edit.text))


def escaped(text: str) -> str:
    """`text` as it stands between the quotes of a JSON string."""
    return orjson.dumps(text).decode()[1:-1]


def value_after(text: str, key: Literal) -> tuple[int, int]:
    """Start and end of the value that belongs to `key`."""
    colon = _COLON.match(text, key.end)
    assert colon is not None
    start = colon.end()
    if text[start] not in "{[":
        scalar = _SCALAR.match(text, start)
        assert scalar is not None
        return scalar.span()
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
        if depth == 0:
            return start, token.end()
    raise AssertionError("the text is not valid JSON")


def spliced(text: str, edits: Iterable[Edit]) -> str:
    """`text` after `edits`; those that overlap are one, with the text of the first."""
    pieces: list[str] = []
    at = 0
    for edit in sorted(edits, key=lambda one: (one.start, -one.end)):
        if edit.start >= at:
            pieces += text[at : edit.start], edit.text
        at = max(at, edit.end)
    return "".join((*pieces, text[at:]))
