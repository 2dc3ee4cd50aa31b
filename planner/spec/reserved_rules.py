"""The secret scope of the engines' keys: it names keys that only servestate itself may fill in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from servestate.planner.engine_keys import SCOPE
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.places import Path
from servestate.planner.spec.report import Report
from servestate.planner.spec.site import Site

_RESERVED = re.compile(r"\{\{\s*secrets/" + re.escape(SCOPE) + "/", re.IGNORECASE)


def in_endpoint(endpoint: Endpoint, report: Report) -> None:
    """Wherever an entity may name a secret."""
    for index, entity in enumerate(endpoint.entities):
        at: Path = ("config", "served_entities", index)
        _report(entity.environment_vars, (*at, "environment_vars"), report)
        if entity.external_model is not None:
            _report(entity.external_model.model_dump(exclude_none=True), (*at, "external_model"), report)


def in_site(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Anywhere in the site block."""
    _report(site.model_dump(exclude_defaults=True), (), report)


def _report(value: Any, path: Path, report: Report) -> None:
    for found in _references(value, path):
        what = f'the secret scope "{SCOPE}" is reserved: it holds the keys of engines'
        report.error("SS195", what, "keep the secret in another scope", *found)


def _references(value: Any, path: Path) -> Iterator[Path]:
    """The paths of the texts that refer to the scope."""
    if isinstance(value, str):
        if _RESERVED.search(value):
            yield path
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from _references(below, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, below in enumerate(value):
            yield from _references(below, (*path, index))
