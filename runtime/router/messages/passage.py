"""Bodies that go on before they are whole: read by their members, and changed where they have to be.

Of a large body only the members at its top are followed, whatever lies inside of them. What the beginning
holds is changed as a whole body would be. Of what comes later a member that must not reach the model is
overwritten with spaces, so that a length once announced stays true. Of what is nested only depth and number
are bounded, as those of whole bodies: what it says is judged by whoever reads it.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

from servestate.runtime.router import scan
from servestate.runtime.router.http.errors import Refused, refused
from servestate.runtime.router.messages import parameters
from servestate.runtime.router.messages.body import (
    CUSTOM,
    DECIDING,
    MOST_PARTS,
    OURS,
    Document,
    Kind,
    nested_too_deeply,
    too_many_parts,
)

nested: Final = scan.nested
loads: Final = orjson.loads

_START: Final = 0
_FIRST: Final = 1
_NEXT: Final = 2
_COLON: Final = 3
_VALUE: Final = 4
_INSIDE: Final = 5
_SCALAR: Final = 6
_AFTER: Final = 7
_OVER: Final = 8
"""What is expected: the object, its first key or none, a comma and a key, a colon, a value, the rest of a
text or of what is nested, that of a number or a word, the end of a member, nothing."""

_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_WORD: Final = re.compile(rb"[-+.0-9A-Za-z]*+")
_KEY: Final = re.compile(rb',?[ \t\r\n]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")', re.DOTALL)
_KEY_SO_FAR: Final = re.compile(rb',?[ \t\r\n]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+\\?)?', re.DOTALL)
_WORDS_BEGIN: Final = b"-0123456789tfn"
_MOST_KEYS: Final = 10_000
"""At the top: each of them is looked at."""
_MOST_CHECKED: Final = 64
"""A number of more bytes is none that could be allowed."""
_KEPT: Final = parameters.CHECKED | {"model"}
_MOST_HELD: Final = 4096
"""From a comma to the end of the key behind it."""

_KEY_ENDS: Final = 0
_VALUE_BEGINS: Final = 1
_MEMBER_ENDS: Final = 2

Edge = tuple[int, int, str]
"""That a key ends, a value begins or a member ends; where the comma before the key, the value, or what ends
the member stands (a key without a comma: where it stands itself); the key."""
Edit = tuple[int, int, bytes]
"""From where to where, and what stands there instead."""


class _Outline:
    """The top level of one JSON object, whose bytes come in pieces. `unread` bytes of the last piece were not
    looked at: they come again with the next one."""

    __slots__ = ("_depth", "_keys", "_quoted", "_state", "unread")

    def __init__(self) -> None:
        self._state = _START
        self._keys = 0
        self._depth = 1
        self._quoted = 0
        self.unread = 0

    @property
    def over(self) -> bool:
        """Whether the object has ended."""
        return self._state == _OVER

    def edges(self, data: bytes) -> list[Edge]:
        """What the piece says of the members. Raises Refused (400)."""
        found: list[Edge] = []
        at, size = 0, len(data)
        self.unread = 0
        while at < size:
            state = self._state
            if state == _INSIDE:
                at, self._depth, self._quoted = nested(data, at, self._depth, self._quoted)
                if self._depth > scan.MOST_DEPTH:
                    raise nested_too_deeply()
                if self._depth == 1 and not self._quoted:
                    self._state = _AFTER
                continue
            if state == _SCALAR:
                at = _end(_WORD, data, at)
                if at < size:
                    self._state = _AFTER
                continue
            byte = data[at]
            if byte in b" \t\r\n":
                at = _end(_SPACE, data, at)
            elif state == _FIRST and byte == 0x7D:
                self._state = _OVER
                at += 1
            elif state in (_FIRST, _NEXT):
                match = _KEY.match(data, at)
                if match is None or (byte == 0x2C) != (state == _NEXT):
                    self._hold(data, at)
                    break
                self._keys += 1
                if self._keys > _MOST_KEYS:
                    raise refused(f"the request's body has more than {_MOST_KEYS:,} keys")
                found.append((_KEY_ENDS, at, _text(match[1])))
                self._state = _COLON
                at = match.end()
            else:
                at = self._follow(state, byte, at, found)
        return found

    def _follow(self, state: int, byte: int, at: int, found: list[Edge]) -> int:
        """Take the one byte; where to go on."""
        if state == _AFTER and (byte == 0x2C or byte == 0x7D):
            found.append((_MEMBER_ENDS, at, ""))
            self._state = _NEXT if byte == 0x2C else _OVER
            return at if byte == 0x2C else at + 1
        if state == _START and byte == 0x7B:
            self._state = _FIRST
        elif state == _COLON and byte == 0x3A:
            self._state = _VALUE
        elif state == _VALUE:
            found.append((_VALUE_BEGINS, at, ""))
            self._begin_value(byte)
        else:
            raise _malformed()
        return at + 1

    def _begin_value(self, byte: int) -> None:
        if byte == 0x22:
            self._state, self._quoted = _INSIDE, 1
        elif byte in b"{[":
            self._state, self._depth = _INSIDE, 2
        elif byte in _WORDS_BEGIN:
            self._state = _SCALAR
        else:
            raise _malformed()

    def _hold(self, data: bytes, at: int) -> None:
        """A key, or the comma before it, that is not all there."""
        if _end(_KEY_SO_FAR, data, at) != len(data) or (data[at] == 0x2C) != (self._state == _NEXT):
            raise _malformed()
        self.unread = len(data) - at
        if self.unread > _MOST_HELD:
            raise refused(f"a key of the body, with the space before it, is longer than {_MOST_HELD} bytes")


class _Member:
    """One member at the top: where the comma before it (the first: its key) and its value stand, and where it
    ends, -1 if it has not."""

    __slots__ = ("end", "start", "value")

    def __init__(self, start: int) -> None:
        self.start = start
        self.value = self.end = -1


class Passage:
    """One body on its way through.

    `keys` are those that stand in its beginning. `document` says what is known of it by then: its model and
    the parameters that are checked. `breaks_off` is the key of the member in which the beginning ends, ""
    where it ends between two: none that is changed or checked, and one that stays must be there. `length` is
    that of the whole body: as it comes, and after `first` as it goes on. `kind` is that of an invocation,
    None where the surface has no rules for what comes late.
    """

    __slots__ = (
        "_beginning",
        "_checking",
        "_held",
        "_members",
        "_outline",
        "_overwriting",
        "_parts",
        "_sets_model",
        "_value",
        "breaks_off",
        "document",
        "kind",
        "length",
    )

    def __init__(self, beginning: bytes, length: int) -> None:
        """Raises Refused (400) for bytes that no JSON object begins with."""
        self.length = length
        self.document: Document = {}
        self.breaks_off = ""
        self.kind: Kind | None = None
        self._outline = _Outline()
        self._members: dict[str, _Member] = {}
        self._parts = 0
        self._count_parts(beginning)
        edges = self._outline.edges(beginning)
        cut = len(beginning) - self._outline.unread
        self._beginning, self._held = beginning[:cut], beginning[cut:]
        self._read(edges)
        self._sets_model = self._overwriting = False
        self._checking = ""  # the key of a late member that is checked, while it lasts
        self._value: bytes | None = None  # of that one, so far

    @property
    def keys(self) -> frozenset[str]:
        """The keys that the beginning holds, be their values whole or not."""
        return frozenset(self._members)

    def first(self, model: str) -> bytes:
        """The beginning as it goes on, changed as `body.rewrite` changes a whole body."""
        self._sets_model = bool(model)
        edits = self._without_ours()
        start = self._beginning.index(b"{") + 1
        if model:
            text = orjson.dumps(model)
            known = self._members.get("model")
            if known is not None:
                edits.append((known.value, _trimmed(self._beginning, known.end), text))
            else:
                edits.append((start, start, b'"model":%b,' % text))
        made = _edited(self._beginning, sorted(edits))
        self.length += len(made) - len(self._beginning)
        self._beginning = b""
        return made

    def next(self, piece: bytes, *, last: bool) -> bytes:
        """The next piece as it goes on, the `last` of them whole. Raises Refused (400) where the body turns
        out to be none, or not allowed."""
        self._count_parts(piece)
        data = self._held + piece if self._held else piece
        edges = self._outline.edges(data)
        cut = len(data) - self._outline.unread
        self._held = data[cut:]
        if last and not self._outline.over:
            raise refused("the request's body is not valid JSON: it ends in the middle")
        made, at = [], 0
        value_at = 0  # that of one that began earlier
        for what, place, key in edges:
            if what == _KEY_ENDS:
                if self._is_overwritten(key):
                    made.append(data[at:place])
                    at, self._overwriting = place, True
                elif self._is_checked(key):
                    self._checking, self._value = key, None
            elif what == _VALUE_BEGINS:
                self._value, value_at = b"", place
            else:
                if self._overwriting:
                    made.append(b" " * (place - at))
                    at, self._overwriting = place, False
                if self._checking:
                    self._check(data[value_at:place], whole=True)
        if self._checking and self._value is not None:
            self._check(data[value_at:cut], whole=False)
        made.append(b" " * (cut - at) if self._overwriting else data[at:cut])
        return b"".join(made)

    def _is_overwritten(self, key: str) -> bool:
        """Whether a member that comes now must not go on. Raises Refused (400) where it must not come."""
        kind = self.kind
        if kind is not None and (key in DECIDING or (key == parameters.EXTRA and kind is not CUSTOM)):
            raise refused(f"the key {key!r} stands too late in so large a body: put it first")
        if key in OURS:
            return True
        if key != "model" or kind is CUSTOM:  # whose `model` is its own
            return False
        if key in self._members:
            raise _twice(key)
        self._members[key] = _Member(-1)
        return self._sets_model

    def _is_checked(self, key: str) -> bool:
        """Whether the value of a member that comes now has to be allowed. Raises Refused (400) for a second
        one."""
        if self.kind is None or self.kind is CUSTOM or key not in parameters.CHECKED:
            return False
        if key in self._members:
            raise _twice(key)
        self._members[key] = _Member(-1)
        return True

    def _check(self, more: bytes, *, whole: bool) -> None:
        """More of a value that has to be allowed. Raises Refused (400) if it is not."""
        text = self._value = (self._value or b"") + more
        value: object = None
        if len(text) > _MOST_CHECKED:
            value = text  # too long for any number
        elif whole:
            try:
                value = loads(text)
            except ValueError:
                raise _malformed() from None
        assert self.kind is not None, "else nothing is checked"
        parameters.check(self.kind, {self._checking: value})
        if whole:
            self._checking = ""

    def _count_parts(self, piece: bytes) -> None:
        self._parts += piece.count(b"[") + piece.count(b"{")
        if self._parts > MOST_PARTS:
            raise too_many_parts()

    def _read(self, edges: list[Edge]) -> None:
        """Take down what the beginning holds."""
        raw, name = self._beginning, ""
        for what, place, key in edges:
            if what == _KEY_ENDS:
                if key in self._members:
                    raise _twice(key)
                self.breaks_off = name = key
                self._members[name] = _Member(place)
            elif what == _VALUE_BEGINS:
                self._members[name].value = place
            else:
                member = self._members[name]
                member.end = place
                self.breaks_off = ""
                if name not in _KEPT:
                    continue
                try:
                    self.document[name] = loads(raw[member.value : place])
                except ValueError:
                    raise _malformed() from None

    def _without_ours(self) -> list[Edit]:
        """What takes out the members of the router that the beginning holds, each with one comma."""
        edits: list[Edit] = []
        before = False  # one that stays
        for key, member in self._members.items():
            if key not in OURS:
                before = True
            elif before:
                edits.append((member.start, member.end, b""))
            else:  # up to the next one's key
                start = member.start
                start += self._beginning[start : start + 1] == b","
                edits.append((start, member.end + 1, b""))
        return edits


def _edited(raw: bytes, edits: list[Edit]) -> bytes:
    made, at = [], 0
    for start, end, text in edits:
        made += [raw[at:start], text]
        at = end
    made.append(raw[at:])
    return b"".join(made)


def _trimmed(raw: bytes, end: int) -> int:
    """The end without the space before it."""
    return len(raw[:end].rstrip(b" \t\r\n"))


def _end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """Where a pattern ends that matches everything, be it nothing."""
    match = pattern.match(data, at)
    return at if match is None else match.end()


def _text(key: bytes) -> str:
    try:
        text = loads(key)
    except ValueError:
        raise _malformed() from None
    assert isinstance(text, str), "it has quotes"
    return text


def _twice(key: str) -> Refused:
    return refused(f"the key {key!r} stands in the body more than once")


def _malformed() -> Refused:
    return refused("the request's body is not valid JSON")
