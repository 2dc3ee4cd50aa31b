"""Canonical JSON and the content hashes made of it. One encoding, so equal values have equal bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, fields
from typing import Any

from servestate.planner.launch import ExternalSpec, LaunchSpec, Spec

REVISION_DIGITS = 8
"""Hex digits of a revision: 32 bits, compared only among the revisions of one entity."""


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys, no spaces and no escapes beyond JSON's own. Raises on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


_LEFT_OUT_AT_DEFAULT = {
    field.name: field.default
    for field in fields(LaunchSpec)
    if field.name in ("options", "gpus", "gpu_fraction", "python", "container")
}
"""Fields that came later. They are not written where they say nothing, so that specs of before keep their
hash: a new version of servestate restarts nothing."""

assert MISSING not in _LEFT_OUT_AT_DEFAULT.values()


def spec_to_json(spec: Spec) -> dict[str, Any]:
    """The spec as plain JSON values, tagged with its kind."""
    if isinstance(spec, ExternalSpec):
        return {"type": "external", **{name: getattr(spec, name) for name in spec.__slots__}}
    found: dict[str, Any] = {"type": "launch"}
    for name in spec.__slots__:
        value = getattr(spec, name)
        if name not in _LEFT_OUT_AT_DEFAULT or value != _LEFT_OUT_AT_DEFAULT[name]:
            found[name] = asdict(value) if name == "container" else value
    return found


def revision(spec: Spec) -> str:
    """The short content hash that names this revision of an entity."""
    return digest(spec_to_json(spec))[:REVISION_DIGITS]
