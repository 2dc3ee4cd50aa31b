"""Endpoints that are recorded as YAML of a bundle: what was made through the API comes under `plan` so, and a
bundle whose YAML is lost gets it back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.spec.scalars import resolve
from servestate.planner.spec.written import written_form
from servestate.planner.stamp import Stamp
from servestate.planner.state import EndpointRecord
from servestate.providers.kept_secrets import refers

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*\Z")
_GUESSED = frozenset({"y", "n", "yes", "no", "on", "off"})
"""Words that other readers of YAML take for truth values."""

_REFERENCE = re.compile(r"\$\{\s*[A-Za-z][A-Za-z0-9_-]*\.|\$\{\s*(?:var|variables|bundle|resources)\b")
_WIDE = 1 << 20
"""No text is broken into lines: what was pasted into one line stays there."""


def exported(records: Iterable[EndpointRecord]) -> str:
    """A bundle with these endpoints. Raises InvalidInput for one that no YAML can say."""
    found = sorted(records, key=lambda record: record.name)
    _check(found)
    lines = ["resources:", "  model_serving_endpoints:"]
    keys: set[str] = set()
    for record in found:
        key = _key(record, keys)
        keys.add(key)
        lines += [f"    # {comment}" for comment in _comments(record)]
        lines += [f"    {line}" for line in _dumped({key: _block(record)}).splitlines()]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """The text as one YAML scalar that every reader takes for text."""
    return _dumped([text]).removeprefix("- ").rstrip("\n")


def _block(record: EndpointRecord) -> dict[str, Any]:
    block = written_form(json.loads(record.block), [target.entity for target in record.targets])
    config = block.get("config", {})
    for route in config.get("traffic_config", {}).get("routes", ()):
        del route["served_entity_name"]  # the API answers with both names; bundles know this one
    if "served_entities" in config:  # by which people find them
        config["served_entities"] = [{"name": one["name"], **one} for one in config["served_entities"]]
    return block


def _key(record: EndpointRecord, taken: set[str]) -> str:
    """The key that it has in its bundle; bundles do not know each other's, so two may be the same."""
    key, count = record.key, 1
    while key in taken:
        count += 1
        key = f"{record.key}_{count}"
    return key


def _comments(record: EndpointRecord) -> Iterator[str]:
    """Where it comes from, and what does not count elsewhere."""
    yield f"owner: {record.owner}"
    if record.history is not None:
        yield f"created {_stamp(record.history.created)}"
        if record.history.changed != record.history.created:
            yield f"changed {_stamp(record.history.changed)}"
    if record.traffic:
        policy = json.dumps(json.loads(record.traffic))  # ASCII, so it cannot end its line
        yield f"in the site, servestate.traffic has {quoted(record.name)}: {policy}"
    if refers(json.loads(record.block)):
        yield "its secrets of the scope servestate-api came with a request: they count at this site alone"


def _stamp(stamp: Stamp) -> str:
    moment = datetime.fromtimestamp(stamp.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    by = "".join(character if character.isprintable() else "?" for character in stamp.by)
    return f"{moment} by {by} through {stamp.through}"


def _check(records: Iterable[EndpointRecord]) -> None:
    found = [problem for record in records for problem in _problems(record)]
    if found:
        raise InvalidInput(found)


def _problems(record: EndpointRecord) -> Iterator[Diagnostic]:
    block = json.loads(record.block)
    for text in _texts(block):
        if _REFERENCE.search(text):
            what = f'"{record.name}" holds text that YAML of a bundle takes for a reference to a variable'
            yield Diagnostic(
                "SS626", what, "change that text through the API, then export", detail=text[:200]
            )
    units = [e for e in block.get("config", {}).get("served_entities", ()) if "provisioned_model_units" in e]
    if units:
        what = f'"{record.name}" is provisioned in model units, which a bundle cannot ask for'
        yield Diagnostic("SS626", what, "leave it to the API")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from _texts(key)
            yield from _texts(below)
    elif isinstance(value, list):
        for below in value:
            yield from _texts(below)


class _Dumper(yaml.SafeDumper):
    """Block style; text in quotes unless no reader can take it for anything else; nothing is shared by
    anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = _PLAIN.match(text) and text.lower() not in _GUESSED and isinstance(resolve(text), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _text)


def _dumped(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDE)
