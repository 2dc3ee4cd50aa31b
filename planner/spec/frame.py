"""The frame of a document: which top-level keys there are. The schema knows the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from servestate.planner.spec.characters import shorten
from servestate.planner.spec.findings import Findings
from servestate.planner.spec.places import Block, Path, dotted
from servestate.planner.spec.suggest import closest, did_you_mean

_OURS = ("bundle", "presets", "resources", "servestate", "targets", "variables")
_ELSEWHERE = (
    "artifacts",
    "experimental",
    "include",
    "permissions",
    "python",
    "run_as",
    "scripts",
    "sync",
    "workspace",
)
"""Keys of Databricks bundles that say nothing about serving, or that whoever read the files has followed."""

_ENDPOINTS = "model_serving_endpoints"
_IN_TARGET = ("bundle", "presets", "resources", "servestate", "variables")
_TARGET_SCALARS = ("default", "mode", "cluster_id", "compute_id", "git")

_BUNDLE = (
    "name",
    "cluster_id",
    "compute_id",
    "databricks_cli_version",
    "deployment",
    "engine",
    "git",
    "uuid",
)
_VARIABLE = ("default", "description", "lookup", "type")


def framed(root: Block, findings: Findings) -> Block:
    """`root` with those top-level entries that matter here and have the right shape; all else is found, or
    left out because it is somebody else's."""
    kept = _mappings(root, _OURS, _ELSEWHERE, (), findings)
    kept = _with_resources(kept, (), findings)
    if "targets" in kept:
        kept = _with(kept, "targets", _targets(kept["targets"], findings))
    if "variables" in kept:
        _check_variables(kept["variables"], findings)
    if "bundle" in kept:
        _mappings(kept["bundle"], (), _BUNDLE, ("bundle",), findings)
    return kept


def _mappings(
    block: Block, ours: Sequence[str], others: Sequence[str], path: Path, findings: Findings
) -> Block:
    """The entries of `block` under `ours`, which must be mappings. Those under `others` are left out; any
    other key is found."""
    kept = Block.at(block.marks[0])
    for key, value, marks in block.entries():
        if key in ours:
            if isinstance(value, Block):
                kept.add(key, value, marks)
            elif value is not None:
                what = f"{dotted((*path, key))} must be a mapping"
                findings.error("SS161", what, "write its keys below it, indented", marks[1], (*path, key))
        elif key not in others:
            _unknown(key, marks[0], path, ours or others, [*ours, *others], findings)
    return kept


def _unknown(
    key: str, mark: int, path: Path, listed: Sequence[str], known: Sequence[str], findings: Findings
) -> None:
    inside = f" in {dotted(path)}" if path else ""
    hint = did_you_mean(key, known) or f"; known are {', '.join(listed)}"
    what = f'the key "{shorten(key)}" is not known{inside}'
    findings.error("SS160", what, f"correct or remove it{hint}", mark, (*path, key))


def _with(block: Block, name: str, changed: Any) -> Block:
    copy = Block.at(block.marks[0])
    for key, value, marks in block.entries():
        copy.add(key, changed if key == name else value, marks)
    return copy


def _with_resources(block: Block, path: Path, findings: Findings) -> Block:
    """`block` with nothing but serving endpoints among its resources."""
    if "resources" not in block:
        return block
    resources = block["resources"]
    at = (*path, "resources")
    others = [kind for kind in resources if kind != _ENDPOINTS and not _is_misspelt(kind)]
    if others:
        what = f"only model_serving_endpoints are read; ignored: {', '.join(map(shorten, others))}"
        mark = resources.marks_of(others[0])[0]
        findings.warning("SS171", what, "", mark, (*at, others[0]))
    return _with(block, "resources", _mappings(resources, (_ENDPOINTS,), others, at, findings))


def _is_misspelt(kind: str) -> bool:
    """Whether `kind` is meant to be the kind that is read. Ignoring it would delete what it describes."""
    return bool(closest(kind, [_ENDPOINTS], cutoff=0.85))


def _targets(targets: Block, findings: Findings) -> Block:
    kept = Block.at(targets.marks[0])
    for name, target, marks in targets.entries():
        path = ("targets", name)
        if target is None:
            target = Block.at(marks[1])
        if not isinstance(target, Block):
            findings.error(
                "SS161", f"{dotted(path)} must be a mapping", "write its keys below it", marks[1], path
            )
            continue
        kept.add(name, _target(target, path, findings), marks)
    return kept


def _target(target: Block, path: Path, findings: Findings) -> Block:
    kept = _mappings(target, _IN_TARGET, (*_TARGET_SCALARS, *_ELSEWHERE), path, findings)
    default, mode = target.get("default"), target.get("mode")
    if default is not None and not isinstance(default, bool):
        mark = target.marks_of("default")[1]
        findings.error(
            "SS161", f"{dotted(path)}.default must be true or false", "write true or false", mark, path
        )
    if mode not in (None, "development", "production"):
        what = f"{dotted(path)}.mode must be development or production"
        findings.error("SS161", what, "write one of the two", target.marks_of("mode")[1], path)
    if default is True:
        kept.add("default", default, target.marks_of("default"))
    return _with_resources(kept, path, findings)


def _check_variables(variables: Block, findings: Findings) -> None:
    for name, variable, marks in variables.entries():
        path = ("variables", name)
        if isinstance(variable, Block):
            _mappings(variable, (), _VARIABLE, path, findings)
        elif variable is not None:
            fix = f"write {shorten(name)}: {{default: …}}"
            findings.error("SS161", f"{dotted(path)} must be a mapping", fix, marks[1], path)
