"""`${…}` references: what a variable is worth, and values with their references replaced.

Precedence, highest first: the caller's variables (`--var`), the environment (`BUNDLE_VAR_<name>`), the
target's, the default. A value that is nothing but one reference keeps the type of what it refers to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import Any, NoReturn

from servestate.planner.spec.characters import named, refused_characters, shorten
from servestate.planner.spec.findings import Findings
from servestate.planner.spec.places import Block, Items, Path
from servestate.planner.spec.suggest import did_you_mean
from servestate.planner.spec.yaml_text import Budget

ENVIRONMENT_PREFIX = "BUNDLE_VAR_"

# `${HOME}` and the like, without a dot, belong to the commands that models run and are left alone.
_REFERENCE = re.compile(r"\$\{([A-Za-z][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)+)\}")
_MALFORMED = re.compile(r"\$\{\s*(?:var|variables|bundle|resources)\b[^}]*\}?")
_LONG_FORM = re.compile(r"\Avariables\.([^.]+)\.value\Z")
_ENDPOINT_PATH = ("resources", "model_serving_endpoints")
_ENDPOINTS = ".".join(_ENDPOINT_PATH) + "."
_MAX_CHAIN = 50


Given = tuple[Any, int]
"""A value and its mark. None where a variable is declared without a value."""

_NOTHING: Given = (None, 0)


class _Unresolved(Exception):
    """A reference has no value; the reason is among the findings."""


@dataclass(frozen=True, slots=True)
class _Use:
    """Where a reference is written."""

    mark: int
    path: Path


@dataclass(slots=True)
class Scope:
    """Everything that a reference may name, and the work so far.

    `values` and `sizes` are what is resolved and how many values it expands to; `open` is what is being
    resolved, outermost first, by which a circle is noticed.
    """

    declared: Mapping[str, Given]
    target: Mapping[str, Given]
    given: Mapping[str, str]
    environ: Mapping[str, str]
    target_name: str
    findings: Findings
    budget: Budget
    bundle: str = ""
    endpoints: Block = field(default_factory=lambda: Block.at(0))
    values: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    open: list[str] = field(default_factory=list)

    def replace(self, value: Any, mark: int, path: Path) -> Any:
        """`value` with its references replaced; itself where it holds none. What cannot be resolved is found
        and left as it is."""
        if isinstance(value, str):
            return self._text(value, mark, path) if "${" in value else value
        if isinstance(value, Block):
            return self.replace_block(value, path)
        if isinstance(value, Items):
            return self._items(value, path)
        return value

    def replace_block(self, block: Block, path: Path) -> Block:
        """The same for a mapping."""
        changed = Block.at(block.marks[0])
        for key, value, marks in block.entries():
            changed.add(key, self.replace(value, marks[1], (*path, key)), marks)
        self.budget.values -= len(block)
        return block if all(map(is_, block.values(), changed.values())) else changed

    def _items(self, items: Items, path: Path) -> Items:
        changed = Items.at(items.marks[0])
        for index, (value, mark) in enumerate(items.entries()):
            changed.add(self.replace(value, mark, (*path, index)), mark)
        self.budget.values -= len(items)
        return items if all(map(is_, items, changed)) else changed

    def _text(self, text: str, mark: int, path: Path) -> Any:
        try:
            return self._resolved(text, _Use(mark, path))
        except _Unresolved:
            self.findings.spoil(mark)
            return text

    def _resolved(self, text: str, at: _Use) -> Any:
        whole = _REFERENCE.fullmatch(text)
        return self._value(whole[1], at) if whole else self._interpolated(text, at)

    def _definition(self, value: Any, mark: int, path: Path) -> Any:
        """What is behind a reference, resolved. Text that cannot be resolved fails the reference as well."""
        if isinstance(value, str) and "${" in value:
            return self._resolved(value, _Use(mark, path))
        return self.replace(value, mark, path)

    def _interpolated(self, text: str, at: _Use) -> str:
        if malformed := _MALFORMED.search(_REFERENCE.sub("", text)):
            what = f'"{shorten(malformed[0])}" is not a complete reference'
            self._refuse(at, "SS175", what, "write ${var.NAME} with the closing brace")
        changed = _REFERENCE.sub(lambda match: self._as_text(match[1], at), text)
        self.budget.characters -= len(changed)
        self._check_budget(at)
        return changed

    def _as_text(self, name: str, at: _Use) -> str:
        value = self._value(name, at)
        if isinstance(value, (Block, Items)) or value is None:
            what = f"${{{name}}} is not a single value, so it cannot be part of a text"
            self._refuse(at, "SS175", what, "make it the whole value of a key")
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _value(self, name: str, at: _Use) -> Any:
        """What the reference `name` stands for. Raises _Unresolved, once found, if that is nothing."""
        name = _LONG_FORM.sub(r"var.\1", name)
        if name in self.values:
            self.budget.values -= self.sizes[name]
            self._check_budget(at)
            return self.values[name]
        if name in self.failed:
            raise _Unresolved
        self._check_circle(name, at)
        before = self.budget.values
        self.open.append(name)
        try:
            self.values[name] = self._look_up(name, at)
        except _Unresolved:
            self.failed.add(name)
            raise
        finally:
            self.open.pop()
        self.sizes[name] = before - self.budget.values
        return self.values[name]

    def _check_circle(self, name: str, at: _Use) -> None:
        if name in self.open:
            chain = " -> ".join([*self.open[self.open.index(name) :], name])
            self._refuse(at, "SS176", f"references form a circle: {chain}", "give one of them a plain value")
        if len(self.open) >= _MAX_CHAIN:
            what = f"references lead to references more than {_MAX_CHAIN} times"
            self._refuse(at, "SS176", what, "give one of them a plain value")

    def _check_budget(self, at: _Use) -> None:
        if self.budget.values < 0 or self.budget.characters < 0:
            what = "the files grow too large once their references are replaced"
            self._refuse(at, "SS155", what, "use fewer references inside references")

    def _look_up(self, name: str, at: _Use) -> Any:
        if name.startswith("var."):
            return self._variable(name.removeprefix("var."), at)
        if name == "bundle.name":
            return self.bundle
        if name == "bundle.target":
            return self.target_name
        if name.startswith(_ENDPOINTS) and name.endswith(".name"):
            return self._endpoint_name(name.removeprefix(_ENDPOINTS).removesuffix(".name"), at)
        fix = f"known are ${{var.NAME}}, ${{bundle.name}}, ${{bundle.target}} and ${{{_ENDPOINTS}KEY.name}}"
        self._refuse(at, "SS175", f"${{{name}}} refers to nothing that is known here", fix)

    def _variable(self, name: str, at: _Use) -> Any:
        if name not in self.declared:
            fix = f"declare it: variables: {{{name}: {{default: …}}}}{did_you_mean(name, self.declared)}"
            self._refuse(at, "SS175", f'the variable "{name}" is not declared', fix)
        for origin, key in ((self.given, name), (self.environ, ENVIRONMENT_PREFIX + name)):
            if key in origin:
                return self._from_outside(name, origin[key], at)
        for value, mark in (self.target.get(name, _NOTHING), self.declared[name]):
            if value is not None:
                return self._definition(value, mark, ("variables", name))
        by_environment = f"{ENVIRONMENT_PREFIX}{name}=VALUE in the environment"
        fix = f"pass --var {name}=VALUE, or set {by_environment}, or give it a default"
        self._refuse(at, "SS174", f'the variable "{name}" has no value', fix)

    def _from_outside(self, name: str, value: str, at: _Use) -> str:
        """A value that no file holds, and that has not been looked at yet."""
        for _, character in refused_characters(value):
            what = f'the value of the variable "{name}" contains {named(character)}'
            self._refuse(at, "SS175", what, "set it to printable text")
        return value

    def _endpoint_name(self, key: str, at: _Use) -> Any:
        block = self.endpoints.get(key)
        if not isinstance(block, Block) or "name" not in block:
            fix = f"use the key of an endpoint block that has a name{did_you_mean(key, self.endpoints)}"
            self._refuse(at, "SS175", f'there is no endpoint block with the key "{key}"', fix)
        return self._definition(block["name"], block.marks_of("name")[1], (*_ENDPOINT_PATH, key, "name"))

    def _refuse(self, at: _Use, code: str, what: str, fix: str) -> NoReturn:
        self.findings.error(code, what, fix, at.mark, at.path)
        raise _Unresolved


def defaults(variables: Block) -> dict[str, Given]:
    """What a `variables` block gives each variable: `{default: value}`, or in targets a plain value."""
    found: dict[str, Given] = {}
    for name, value, marks in variables.entries():
        if not isinstance(value, Block):
            found[name] = (value, marks[1])
        elif "default" in value:
            found[name] = (value["default"], value.marks_of("default")[1])
        else:
            found[name] = _NOTHING
    return found


def check_given(scope: Scope) -> None:
    """Find variables that were given by hand and that no file declares: most often a typing error."""
    for name in sorted(set(scope.given) - set(scope.declared)):
        fix = f"declare it under variables, or leave it out{did_you_mean(name, scope.declared)}"
        scope.findings.error("SS177", f'--var sets "{shorten(name)}", which no file declares', fix)
