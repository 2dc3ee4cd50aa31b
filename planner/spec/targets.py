"""Targets: which one is meant, and what it changes."""

from __future__ import annotations

import re
from typing import Any

from servestate.planner.spec.findings import Findings
from servestate.planner.spec.layers import overlay
from servestate.planner.spec.places import Block
from servestate.planner.spec.suggest import did_you_mean

OVERLAID = ("bundle", "presets", "resources", "servestate")
"""Top-level keys that a target overrides; its `variables` are looked up by the references themselves."""


def chosen(root: Block, wanted: str | None, findings: Findings) -> tuple[str, Block]:
    """Name and block of the target that applies: the wanted one, else the default one, else the only one."""
    targets = root.get("targets")
    known = targets if isinstance(targets, Block) else Block.at(root.marks[0])
    name = _default_name(known, findings) if wanted is None else wanted
    if wanted is not None and wanted not in known:
        listed = f"those that exist: {', '.join(known)}" if known else "no file has a targets block"
        what = f'there is no target "{wanted}"; {listed}'
        findings.error("SS172", what, f"choose one of them, or declare it{did_you_mean(wanted, known)}")
    block = known.get(name)
    return name, block if isinstance(block, Block) else Block.at(root.marks[0])


def _default_name(targets: Block, findings: Findings) -> str:
    defaults = [name for name, t in targets.items() if isinstance(t, Block) and t.get("default") is True]
    if len(defaults) > 1:
        second = targets.marks_of(defaults[1])[0]
        what = f"more than one target is the default: {', '.join(defaults)}"
        findings.error("SS173", what, "keep default: true in one of them", second, ("targets", defaults[1]))
    if not defaults and len(targets) > 1:
        what = f"no target is chosen and none of {', '.join(targets)} is the default"
        findings.error(
            "SS173", what, "choose one, or set default: true in one of them", targets.marks[0], ("targets",)
        )
    return next(iter(defaults or targets), "")


def apply_target(root: Block, target: Block) -> Block:
    """The tree with the target's changes."""
    changes = Block.at(target.marks[0])
    for key, value, marks in target.entries():
        if key in OVERLAID and value is not None:
            changes.add(key, value, marks)
    merged = overlay(root, changes)
    assert isinstance(merged, Block), "two mappings make a mapping"
    return merged


def name_prefix(text: Any) -> str:
    """The prefix of endpoint names that a preset asks for, in the alphabet of names: `[dev ann] ` gives
    `dev_ann_`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text.removeprefix("[")) if isinstance(text, str) else ""


def prefixed(endpoints: Block, prefix: str) -> Block:
    """The endpoint blocks with `prefix` before every name."""
    changed = Block.at(endpoints.marks[0])
    for key, value, marks in endpoints.entries():
        changed.add(key, _prefixed_block(value, prefix) if isinstance(value, Block) else value, marks)
    return changed


def _prefixed_block(block: Block, prefix: str) -> Block:
    changed = Block.at(block.marks[0])
    for key, value, marks in block.entries():
        changed.add(key, prefix + value if key == "name" and isinstance(value, str) else value, marks)
    return changed
