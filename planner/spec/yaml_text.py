"""YAML text -> Blocks, Items and scalars, with the place of every key and value. No tag constructs anything.

The events of libyaml are read one by one: composing PyYAML's node objects costs five times as much. What can
grow without bound in YAML is bounded here: size, nesting, and the number of values once aliases are followed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from sys import intern
from typing import Any

from yaml.error import YAMLError
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from servestate.planner.spec.characters import how_to_mend, named, refused_characters, shorten
from servestate.planner.spec.findings import Findings
from servestate.planner.spec.places import LINE_SHIFT, Block, Items, pack, where
from servestate.planner.spec.scalars import Resolved, Scalar, resolve
from servestate.planner.spec.syntax import explain

try:
    from yaml._yaml import CParser as _Parser
except ImportError:  # PyYAML built without libyaml: the same events, twenty times slower
    from yaml.loader import BaseLoader as _Parser  # type: ignore[assignment]

MAX_CHARACTERS = 8 * 1024 * 1024
"""Of one document."""

MAX_DEPTH = 64
"""Nested mappings and lists. The deepest field of the serving API is at 12."""

MAX_VALUES = 1_000_000
"""Values of all documents together, every alias counted as often as it is used: some 30,000 endpoints."""

_CORE = "tag:yaml.org,2002:"
_MAP_TAGS = frozenset({None, "!", f"{_CORE}map"})
_SEQ_TAGS = frozenset({None, "!", f"{_CORE}seq"})
_SCALAR_TAGS: dict[str, type] = {
    "!": str,
    f"{_CORE}str": str,
    f"{_CORE}int": int,
    f"{_CORE}float": float,
    f"{_CORE}bool": bool,
    f"{_CORE}null": type(None),
}


class _Unreadable(Exception):
    """The rest of the document cannot be read; the reason is among the findings."""


@dataclass(slots=True)
class Budget:
    """What may still be read or made by references, shared by all documents of a load."""

    values: int = MAX_VALUES
    characters: int = 2 * MAX_CHARACTERS


def read(text: str, number: int, findings: Findings, budget: Budget) -> Block | None:
    """The root mapping of document `number`, empty for an empty text. None if it cannot be read, which is
    then found."""
    if len(text) > MAX_CHARACTERS:
        findings.error(
            "SS155",
            f"the file has {len(text):,} characters; {MAX_CHARACTERS:,} is the most that is read",
            "split it: all YAML files of a folder are read together",
            pack(number, 0, 0),
        )
        return None
    text = text.removeprefix("\ufeff")
    if not _readable(text, number, findings):
        return None
    try:
        return _Reader(text, number, findings, budget).root()
    except _Unreadable:
        return None
    except YAMLError as error:
        explain(error, text, number, findings)
        return None


def _readable(text: str, number: int, findings: Findings) -> bool:
    """Whether all characters of document `number` can be shown and stored. Those that cannot are found."""
    position = -1
    for position, character in refused_characters(text):
        line = text.count("\n", 0, position)
        mark = pack(number, line, position - text.rfind("\n", 0, position) - 1)
        what = f"the file contains {named(character)}"
        findings.error("SS151", what, how_to_mend(character), mark)
    return position < 0


class _Reader:
    """Reads one document by recursive descent, which MAX_DEPTH bounds."""

    def __init__(self, text: str, number: int, findings: Findings, budget: Budget) -> None:
        self.next: Callable[[], Any] = _Parser(text).get_event
        self.base = pack(number, 0, 0)
        self.findings = findings
        self.budget = budget
        self.depth = 0
        self.plain = Resolved()
        # By anchor: the value and the number of values in it. None while the anchored value is being read.
        self.anchors: dict[str, tuple[Any, int] | None] = {}

    def root(self) -> Block:
        """The one document of the stream."""
        self.next()  # the start of the stream
        event = self.next()
        if event.__class__ is StreamEndEvent:
            return Block.at(self.base)
        event = self.next()
        value = self._value(event)
        self.next()  # the end of the document
        self._expect_end()
        if value is None or isinstance(value, Block):
            return value or Block.at(self.base)
        self._error(event, "SS157", "the file is not a mapping of keys to values", 'start with "resources:"')
        raise _Unreadable

    def _expect_end(self) -> None:
        event = self.next()
        if event.__class__ is DocumentStartEvent:
            what = 'the file holds several YAML documents, separated by "---"'
            self._error(event, "SS157", what, "put each into a file of its own")
            raise _Unreadable

    def _error(self, event: Any, code: str, what: str, fix: str, detail: str = "") -> None:
        self.findings.error(code, what, fix, self._mark(event), detail=detail)

    def _mark(self, event: Any) -> int:
        mark = event.start_mark
        return self.base + pack(0, mark.line, mark.column)

    def _value(self, event: Any) -> Any:
        kind = event.__class__
        if kind is AliasEvent:
            return self._alias(event)
        if event.anchor is None:
            return self._plain_value(event, kind)
        self.anchors[event.anchor] = None
        before = self.budget.values
        value = self._plain_value(event, kind)
        self.anchors[event.anchor] = (value, before - self.budget.values + 1)
        return value

    def _plain_value(self, event: Any, kind: type) -> Any:
        if kind is ScalarEvent:
            return self._scalar(event)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            what = f"mappings and lists are nested deeper than {MAX_DEPTH} levels"
            self._error(event, "SS155", what, "no key of this file needs that; look for a run of [ or {")
            raise _Unreadable
        value = self._mapping(event) if kind is MappingStartEvent else self._list(event)
        self.depth -= 1
        self._spend(len(value) + 1, event)
        return value

    def _mapping(self, start: Any) -> Block:
        if start.tag not in _MAP_TAGS:
            self._refuse_tag(start)
        block = Block()
        marks = block.marks = array("Q", (self._mark(start),))
        merged: list[Block] = []
        # The hot loop of loading. Most of an endpoint is unanchored scalars, so those are read in line.
        next_event, base, plain, room = self.next, self.base, self.plain, self.budget.values
        while (event := next_event()).__class__ is not MappingEndEvent:
            key = self._key(event)
            below = next_event()
            if below.__class__ is ScalarEvent and below.anchor is None and below.implicit[0]:
                try:
                    value = plain[below.value]
                except ValueError:
                    value = self._refuse_number(below)
            else:
                value = self._value(below)
            if key is None:
                continue
            if key in block:
                self._refuse_duplicate(block, key, event)
            elif key == "<<" and event.implicit[0]:
                merged += self._mergeable(value, below)
            else:
                block[key] = value
                if len(block) > room:
                    self._spend(len(block), event)
                mark, at = event.start_mark, below.start_mark
                marks.append(base + (mark.line << LINE_SHIFT) + mark.column)
                marks.append(base + (at.line << LINE_SHIFT) + at.column)
        for source in merged:
            _fill(block, source)
        return block

    def _key(self, event: Any) -> str | None:
        """The key; None if it is unusable, which is then found."""
        if event.__class__ is ScalarEvent and event.implicit[0] and event.anchor is None:
            return intern(event.value)
        value = self._value(event)
        if isinstance(value, str):
            return value
        self._error(
            event,
            "SS157",
            "a key is not text",
            "write the key as plain text; a value that starts with { needs quotes",
        )
        return None

    def _refuse_duplicate(self, block: Block, key: str, event: Any) -> None:
        first = where(block.marks_of(key)[0], self.findings.names)
        self._error(
            event,
            "SS152",
            f'the key "{shorten(key)}" is given twice in one mapping; first at {first}',
            "keep one of the two: most YAML readers silently take the last",
        )

    def _mergeable(self, value: Any, event: Any) -> list[Block]:
        """What `<<: value` brings in: one mapping, or each of a list; earlier ones win."""
        sources = value if isinstance(value, Items) else [value]
        if all(isinstance(source, Block) for source in sources):
            return list(sources)
        self._error(
            event, "SS157", '"<<" merges something that is not a mapping', "give it an alias of a mapping"
        )
        return []

    def _list(self, start: Any) -> Items:
        if start.tag not in _SEQ_TAGS:
            self._refuse_tag(start)
        items = Items.at(self._mark(start))
        while (event := self.next()).__class__ is not SequenceEndEvent:
            items.add(self._value(event), self._mark(event))
            if len(items) > self.budget.values:
                self._spend(len(items), event)
        return items

    def _scalar(self, event: Any) -> Any:
        if event.tag is None:
            if not event.implicit[0]:
                return self._quoted(event)
        elif event.tag in _SCALAR_TAGS:
            return self._tagged(event)
        else:
            self._refuse_tag(event)
            return None
        try:
            return self.plain[event.value]
        except ValueError:
            return self._refuse_number(event)

    def _quoted(self, event: Any) -> str:
        """Quoted text. Escapes can put into it what the file itself must not contain."""
        text: str = event.value
        if not text.isprintable():
            for _, character in refused_characters(text):
                what, fix = f"the value contains {named(character)}", "take the escape out"
                self._error(event, "SS151", what, fix)
                break
        return text

    def _tagged(self, event: Any) -> Any:
        """A scalar with a core tag: what the plain text means, if that is of the tag's kind."""
        kind = _SCALAR_TAGS[event.tag]
        if kind is str:
            return event.value
        try:
            value = resolve(event.value)
        except ValueError:
            return self._refuse_number(event)
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        what = f"the value does not fit its tag {_shown_tag(event.tag)}"
        self._error(event, "SS153", what, "leave the tag out, or write a value of that type")
        return None

    def _alias(self, event: Any) -> Any:
        name = shorten(event.anchor)
        if event.anchor not in self.anchors:
            fix = f"mark a value with &{name} before this line; text that starts with * needs quotes"
            self._error(event, "SS154", f'the alias "*{name}" has no anchor before it', fix)
            return None
        anchored = self.anchors[event.anchor]
        if anchored is None:
            self._error(
                event,
                "SS154",
                f'the alias "*{name}" contains itself',
                "repeat the value in place of the alias",
            )
            raise _Unreadable
        value, weight = anchored
        self._spend(weight, event)
        return value

    def _spend(self, values: int, event: Any) -> None:
        self.budget.values -= values
        if self.budget.values < 0:
            what = (
                f"the files hold more than {MAX_VALUES:,} values, aliases counted as often as they are used"
            )
            self._error(event, "SS155", what, "use fewer aliases of aliases, or split the bundle")
            raise _Unreadable

    def _refuse_number(self, event: Any) -> Scalar:
        what = f"{shorten(event.value)} is not a number that can be stored"
        self._error(event, "SS156", what, "write a finite decimal number, or put text in quotes")
        return None

    def _refuse_tag(self, event: Any) -> None:
        what = f"the YAML tag {_shown_tag(event.tag)} is not allowed; tags construct nothing here"
        self._error(event, "SS153", what, "remove the tag and write the plain value")


def _fill(block: Block, source: Block) -> None:
    """Add what `source` has and `block` has not: a key written out wins over a merged one."""
    for key, value, marks in source.entries():
        if key not in block:
            block.add(key, value, marks)


def _shown_tag(tag: str) -> str:
    return shorten(tag.replace(_CORE, "!!"))
