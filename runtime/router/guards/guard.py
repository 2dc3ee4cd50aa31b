"""Guardrails: what must not be in a request or an answer, and what is masked in it.

Judged is every string and name of a body that a model may read or has written, wherever it stands (`reading`
says which are), and also the texts that several of them make together: the parts of one message's content,
the pieces of a stream. What cannot be judged is refused: files, prompts as embeddings or as numbers of
tokens, an answer that is not JSON, and a text beyond the budgets.

Masking puts a label in the place of each find and leaves every other byte of the body as it came. Only in a
stream does the first piece of a masked text take all of it, the later ones nothing. Probabilities and numbers
of tokens would say again what was masked, so an answer that was masked loses them. A name with personal data
in it is refused, masked or not: what it names would not be found under another.

All of this takes time of the processor and touches nothing else: it may run in any thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import orjson

from servestate.planner.table import Guard
from servestate.runtime.router.guards.literals import (
    Edit,
    Literal,
    Path,
    escaped,
    literals,
    spliced,
    value_after,
    within,
)
from servestate.runtime.router.guards.pii import Detector, Effort, TooMuch
from servestate.runtime.router.guards.plain import folded
from servestate.runtime.router.guards.reading import TOKENS, Reading, content_of, is_name, reading
from servestate.runtime.router.http.errors import Refused, refused
from servestate.runtime.router.messages.body import COMPLETION, CUSTOM, EMBEDDING, Document, Kind

_TEXT_CHARACTERS = 4 << 20
"""Of one body, all its texts together; about a million tokens."""
_PER_TEXT, _PER_NAME = 32, 4
"""What a text costs beside its length, and a key or another string, in characters: a body of nothing but
short ones takes longest. A stream may have about 50,000 chunks."""

_FILES = frozenset({"file", "input_file", "file_data"})
_EMBEDS = frozenset({"prompt_embeds", "input_embeds"})

_LINE = re.compile(r"([^\r\n]*)(?:\r\n|\n|\r|\Z)")


@dataclass(frozen=True, slots=True)
class _Event:
    """The JSON text of one event, which begins at `at` of the stream."""

    at: int
    text: str
    document: Any


class LiveGuard:
    """A guard ready to judge. Raises ValueError for one that cannot: a keyword that every text holds, or no
    libraries to find personal data with."""

    def __init__(self, guard: Guard) -> None:
        self.keywords = tuple(folded(keyword) for keyword in guard.keywords)
        if not all(self.keywords):
            raise ValueError("a keyword of the guardrails is empty\n  fix: take it out of invalid_keywords")
        self.detector = Detector() if guard.pii else None
        self.masks = guard.pii == "MASK"

    def request(self, kind: Kind, raw: bytes, document: Document) -> bytes:
        """A request's body as it may go on. Raises Refused (400). `raw` decides, not the `document` parsed
        from it: a member that stands twice is judged twice."""
        text = raw.decode()
        edits = _Judge(self, kind, answer=False).body(text)
        return spliced(text, edits).encode() if edits else raw

    def answer(self, kind: Kind, content: bytes, streaming: bool) -> bytes:
        """A whole answer as it may go on: JSON, or the text of an event stream. Raises Refused (400)."""
        if kind is EMBEDDING:
            return content
        judge = _Judge(self, kind, answer=True)
        text = judge.decoded(content)
        edits = judge.stream(text) if streaming else judge.whole_answer(text)
        return spliced(text, edits).encode() if edits else content


class _Judge:
    """One body under judgement, with what its judging has cost so far."""

    def __init__(self, guard: LiveGuard, kind: Kind, *, answer: bool) -> None:
        self._guard = guard
        self._kind = kind
        self._answer = answer
        self._what = "answer" if answer else "request"
        self._characters = 0
        self._effort = Effort()
        self._names: set[str] = set()

    def body(self, text: str) -> list[Edit]:
        """The edits of one JSON text."""
        edits: list[Edit] = []
        contents: dict[Path, list[Literal]] = {}
        for literal in literals(text, numbers=self._kind in (COMPLETION, EMBEDDING)):
            self._check_readable(literal)
            if not self._takes(literal):
                continue
            edits += within(text, literal, self._text(literal.path, literal.value))
            if (content := content_of(literal.path)) is not None:
                contents.setdefault(content, []).append(literal)
        for parts in contents.values():
            if len(parts) > 1:
                edits += self._across(text, parts)
        return edits

    def decoded(self, content: bytes) -> str:
        """The answer as text. Raises Refused."""
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise self._unreadable("is not UTF-8") from None

    def whole_answer(self, text: str) -> list[Edit]:
        """The edits of a JSON answer."""
        self._parsed(text)
        edits = self.body(text)
        return [*edits, *_without_tokens(text)] if edits else []

    def stream(self, text: str) -> list[Edit]:
        """The edits of an event stream."""
        events = list(self._events(text))
        passages: dict[Path, list[tuple[_Event, Literal]]] = {}
        for event in events:
            for literal in literals(event.text):
                if self._takes(literal):
                    path = _numbered(literal.path, event.document)
                    passages.setdefault(path, []).append((event, literal))
        edits = [edit for path, pieces in passages.items() for edit in self._passage(path, pieces)]
        if edits:
            edits += [_moved(edit, event.at) for event in events for edit in _without_tokens(event.text)]
        return edits

    def _events(self, text: str) -> Iterator[_Event]:
        """The events that hold JSON. Raises Refused for lines that are of no event stream."""
        in_event = False
        for line in _LINE.finditer(text):
            name, colon, value = line[1].partition(":")
            if not line[1]:
                in_event = False
            elif name != "data" or not colon:
                if name not in ("", "event", "id", "retry") or self._text((), line[1]):
                    raise self._unreadable("is not an event stream of the known form")
            elif value.strip(" ") not in ("", "[DONE]"):
                if in_event:
                    raise self._unreadable("has events of several lines")
                in_event = True
                yield _Event(line.end(1) - len(value), value, self._parsed(value))

    def _passage(self, path: Path, pieces: Sequence[tuple[_Event, Literal]]) -> Iterator[Edit]:
        """The edits of one text that came in `pieces`."""
        text = "".join(literal.value for _, literal in pieces)
        found = self._text(path, text)
        if not found:
            return
        if len(pieces) == 1:
            event, literal = pieces[0]
            yield from (_moved(edit, event.at) for edit in within(event.text, literal, found))
            return
        masked = escaped(spliced(text, found))
        for event, literal in pieces:
            yield Edit(event.at + literal.start + 1, event.at + literal.end - 1, masked)
            masked = ""

    def _across(self, text: str, parts: Sequence[Literal]) -> Iterator[Edit]:
        """The edits of what begins in one of `parts` of a content and ends in another. Engines put the parts
        together with or without white space between them."""
        values = [part.value for part in parts]
        self._check_keywords(" ".join(values))
        whole = "".join(values)
        starts = [0, *accumulate(map(len, values))]
        for edit in self._text((), whole):
            first = True
            for part, start in zip(parts, starts, strict=False):
                begin, end = max(edit.start, start) - start, min(edit.end, start + len(part.value)) - start
                if begin < end and end - begin < edit.end - edit.start:
                    label = edit.text if first else ""
                    yield from within(text, part, [Edit(begin, end, label)])
                    first = False

    def _takes(self, literal: Literal) -> bool:
        """Whether a literal is a string that is to be judged; keys are judged here. Raises Refused, also for
        more of both than one body may have."""
        read = reading(self._kind, literal, answer=self._answer)
        new = read is not Reading.NOTHING and not (literal.key and literal.value in self._names)
        self._characters += _PER_TEXT + len(literal.value) if new else _PER_NAME
        if self._characters > _TEXT_CHARACTERS:
            raise self._unreadable(f"has more than {_TEXT_CHARACTERS} characters of text")
        if new and literal.key:
            self._names.add(literal.value)  # columns have the same in every row
            self._check_name(literal.value)
        return new and not literal.key

    def _text(self, path: Path, text: str) -> list[Edit]:
        """What is masked in one text, nothing in one that is a name. Raises Refused."""
        if is_name(self._kind, path):
            self._check_name(text)
            return []
        self._check_keywords(text)
        if path and path[-1] == "arguments" and (inner := _json(text)) is not None:
            return list(self._arguments(inner))
        return self._personal(text)

    def _check_name(self, text: str) -> None:
        self._check_keywords(text)
        if self._personal(text):
            raise self._refused("it holds personal data in a name, which cannot be masked")

    def _arguments(self, text: str) -> Iterator[Edit]:
        """What is masked in a tool call's arguments, JSON within JSON: it stays JSON."""
        for literal in literals(text, numbers=True):
            self._check_keywords(literal.value)
            found = self._personal(literal.value)
            if found and literal.number:
                yield Edit(literal.start, literal.end, f'"{found[0].text}"')
            else:
                yield from within(text, literal, found)

    def _check_keywords(self, text: str) -> None:
        if self._guard.keywords:
            seen = folded(text)
            if any(keyword in seen for keyword in self._guard.keywords):
                raise self._refused("it holds an invalid keyword")

    def _personal(self, text: str) -> list[Edit]:
        detector = self._guard.detector
        if detector is None:
            return []
        try:
            found = detector.find(text, self._effort)
        except TooMuch as error:
            raise self._unreadable(f"has too much to look at: {error}") from None
        if found and not self._guard.masks:
            kinds = ", ".join(sorted({one.entity for one in found}))
            raise self._refused(f"it holds personal data ({kinds})")
        return [Edit(one.start, one.end, one.label) for one in found]

    def _check_readable(self, literal: Literal) -> None:
        path = literal.path
        if literal.number:
            if path[:1] == (self._kind.name,):
                raise self._unreadable("has numbers of tokens in place of text")
        elif literal.key and self._kind is not CUSTOM:
            part_of_chat = len(path) == 5 and path[0] == "messages" and path[2] == "content"
            if (part_of_chat and path[-1] in _FILES) or (len(path) == 1 and path[0] in _EMBEDS):
                raise self._unreadable(f"has {path[-1]!r}")

    def _parsed(self, text: str) -> Any:
        try:
            return orjson.loads(text)
        except ValueError:
            raise self._unreadable("is not JSON") from None

    def _unreadable(self, why: str) -> Refused:
        return self._refused(f"it cannot be judged, since it {why}")

    def _refused(self, why: str) -> Refused:
        return refused(f"a guardrail refused the {self._what}: {why}")


def _json(text: str) -> str | None:
    """`text`, if it is JSON."""
    try:
        orjson.loads(text)
    except ValueError:
        return None
    return text


def _numbered(path: Path, document: Any) -> Path:
    """`path` with the `index` of array elements that have one: a chunk's only choice may be the second."""
    steps: list[str | int] = []
    node = document
    for step in path:
        try:
            node = node[step]
        except (IndexError, KeyError, TypeError):
            node = None
        index = node.get("index") if isinstance(node, dict) and isinstance(step, int) else None
        steps.append(index if isinstance(index, int) else step)
    return tuple(steps)


def _without_tokens(text: str) -> Iterator[Edit]:
    for literal in literals(text):
        if literal.key and literal.value in TOKENS:
            yield Edit(*value_after(text, literal), "null")


def _moved(edit: Edit, by: int) -> Edit:
    return Edit(edit.start + by, edit.end + by, edit.text)
