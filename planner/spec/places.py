"""Mappings and lists that remember where in which document they were written.

A mark is one integer: document number, line and column (from 0). Blocks and Items are ordinary dicts and
lists to pydantic and to everyone else; whoever changes one makes a new one with its marks.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from servestate.planner.diagnostics import Where

LINE_SHIFT = 24
"""A mark is document << 48 | line << 24 | column; the bounds on documents keep each part in its bits."""

_DOCUMENT_SHIFT = 48
MAX_DOCUMENTS = 1 << 16
_PART_MASK = (1 << LINE_SHIFT) - 1

Path = tuple[str | int, ...]
"""Keys and list positions from a root to a value."""


def pack(document: int, line: int, column: int) -> int:
    """The mark of a place; line and column count from 0."""
    return document << _DOCUMENT_SHIFT | line << LINE_SHIFT | column


def where(mark: int, names: Sequence[str], path: Path = ()) -> Where:
    """The place that `mark` stands for, for people: counted from 1, with the dotted key."""
    line = mark >> LINE_SHIFT & _PART_MASK
    return Where(names[mark >> _DOCUMENT_SHIFT], line + 1, (mark & _PART_MASK) + 1, dotted(path))


def dotted(path: Path) -> str:
    """`("a", "b", 0, "c")` as people write it: `a.b[0].c`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


class Block(dict[str, Any]):
    """A mapping. `marks` holds its own start, then a pair (key, value) per entry in the dict's order."""

    __slots__ = ("marks",)
    marks: array[int]

    @classmethod
    def at(cls, mark: int) -> Block:
        """An empty block that starts at `mark`."""
        block = cls()
        block.marks = array("Q", (mark,))
        return block

    def add(self, key: str, value: Any, marks: tuple[int, int]) -> None:
        """Append an entry. The key must be new."""
        self[key] = value
        self.marks.extend(marks)

    def marks_of(self, key: str) -> tuple[int, int]:
        """Where the entry's key and its value are written. Slow: meant for reports, not for every key."""
        index = 2 * list(self).index(key) + 1
        return self.marks[index], self.marks[index + 1]

    def entries(self) -> Iterator[tuple[str, Any, tuple[int, int]]]:
        """Key, value and marks of every entry."""
        marks = self.marks
        for index, (key, value) in enumerate(self.items()):
            yield key, value, (marks[2 * index + 1], marks[2 * index + 2])


class Items(list[Any]):
    """A list. `marks` holds its own start, then one mark per item."""

    __slots__ = ("marks",)
    marks: array[int]

    @classmethod
    def at(cls, mark: int) -> Items:
        """An empty list that starts at `mark`."""
        items = cls()
        items.marks = array("Q", (mark,))
        return items

    def add(self, value: Any, mark: int) -> None:
        """Append an item."""
        self.append(value)
        self.marks.append(mark)

    def entries(self) -> Iterator[tuple[Any, int]]:
        """Value and mark of every item."""
        return zip(self, self.marks[1:], strict=True)


def mark_of(root: Block, path: Path, *, key: bool = False) -> int:
    """The mark of the value at `path`, or of the nearest place around it that is written.

    Mappings and lists are shown by their key, because their first line is already one of their entries; `key`
    asks for the key of a scalar too.
    """
    mark, node = root.marks[0], root
    for part in path:
        step = _step(node, part)
        if step is None:
            break
        key_mark, value_mark, node = step
        mark = key_mark if key or isinstance(node, (Block, Items)) else value_mark
    return mark


def value_at(root: Block, path: Path) -> Any:
    """The value at `path`; None where nothing is written."""
    node: Any = root
    for part in path:
        step = _step(node, part)
        if step is None:
            return None
        node = step[2]
    return node


def _step(node: Any, part: str | int) -> tuple[int, int, Any] | None:
    if isinstance(node, Block) and part in node:
        return *node.marks_of(str(part)), node[str(part)]
    if isinstance(node, Items) and isinstance(part, int) and 0 <= part < len(node):
        return node.marks[part + 1], node.marks[part + 1], node[part]
    return None
