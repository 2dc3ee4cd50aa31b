"""Several files, and a target over them, become one tree.

Files only add to each other: what two of them set is a conflict. A target replaces: maps merge by key, and
the lists that have names in them (served entities, routes, tags) merge by name; other lists are put one after
the other, as Databricks bundles do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from servestate.planner.spec.findings import Findings
from servestate.planner.spec.places import Block, Items, Path, dotted, where

_IDENTITY: dict[str, tuple[str, ...]] = {
    "served_entities": ("name",),
    "served_models": ("name",),
    "routes": ("served_entity_name", "served_model_name"),
    "tags": ("key",),
}
"""Keys of lists whose items merge, and the fields that name an item: the first that is given."""


def join(blocks: Sequence[Block], findings: Findings, path: Path = ()) -> Block:
    """One block with the entries of all `blocks`. An entry that two of them set is found, unless both are
    mappings, which are joined in turn."""
    if len(blocks) == 1:
        return blocks[0]
    grouped: dict[str, list[tuple[Any, tuple[int, int]]]] = {}
    for block in blocks:
        for key, value, marks in block.entries():
            grouped.setdefault(key, []).append((value, marks))
    joined = Block.at(blocks[0].marks[0])
    for key, found in grouped.items():
        joined.add(key, _joined(found, findings, (*path, key)), found[0][1])
    return joined


def _joined(found: list[tuple[Any, tuple[int, int]]], findings: Findings, path: Path) -> Any:
    if len(found) == 1:
        return found[0][0]
    blocks = [value for value, _ in found if isinstance(value, Block)]
    if len(blocks) == len(found) and not _is_endpoint(path):
        return join(blocks, findings, path)
    first = where(found[0][1][0], findings.names)
    for _, marks in found[1:]:
        what = f"{dotted(path)} is given in two files; first at {first}"
        findings.error("SS170", what, "keep one of the two, or rename one", marks[0], path)
    return found[0][0]


def _is_endpoint(path: Path) -> bool:
    return len(path) == 3 and path[:2] == ("resources", "model_serving_endpoints")


def overlay(base: Any, over: Any, key: str = "") -> Any:
    """`base` as a target changes it. `key` is the key both stand under."""
    if isinstance(base, Block) and isinstance(over, Block):
        return _overlay_block(base, over)
    if isinstance(base, Items) and isinstance(over, Items):
        return _overlay_list(base, over, key)
    return over


def _overlay_block(base: Block, over: Block) -> Block:
    merged = Block.at(base.marks[0])
    changes = {key: (value, marks) for key, value, marks in over.entries()}
    for key, value, marks in base.entries():
        if key in changes:
            changed, its_marks = changes.pop(key)
            merged.add(key, overlay(value, changed, key), its_marks)
        else:
            merged.add(key, value, marks)
    for key, (value, marks) in changes.items():
        merged.add(key, value, marks)
    return merged


def _overlay_list(base: Items, over: Items, key: str) -> Items:
    merged = Items.at(base.marks[0])
    changes: dict[Any, tuple[Any, int]] = {}
    appended: list[tuple[Any, int]] = []
    known = {_identity(item, key) for item in base} - {None}
    for item, mark in over.entries():
        name = _identity(item, key)
        if name in known and name not in changes:
            changes[name] = (item, mark)
        else:
            appended.append((item, mark))
    for item, mark in base.entries():
        name = _identity(item, key)
        change, its_mark = changes.pop(name, (None, mark))
        merged.add(item if change is None else overlay(item, change), its_mark)
    for item, mark in appended:
        merged.add(item, mark)
    return merged


def _identity(item: Any, key: str) -> str | None:
    if key not in _IDENTITY or not isinstance(item, Block):
        return None
    names = (item.get(name) for name in _IDENTITY[key])
    return next((name for name in names if isinstance(name, str) and name), None)
