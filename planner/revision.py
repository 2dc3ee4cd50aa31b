"""Canonical JSON and the content hashes made of it. One encoding, so equal values have equal bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from servestate.planner.launch import ExternalSpec, Spec

REVISION_DIGITS = 8
"""Hex digits of a revision: 32 bits, compared only among the revisions of one entity."""


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys, no spaces and no escapes beyond JSON's own. Raises on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def spec_to_json(spec: Spec) -> dict[str, Any]:
    """The spec as plain JSON values, tagged with its kind."""
    tag = "external" if isinstance(spec, ExternalSpec) else "launch"
    return {"type": tag, **{name: getattr(spec, name) for name in spec.__slots__}}


def revision(spec: Spec) -> str:
    """The short content hash that names this revision of an entity."""
    return digest(spec_to_json(spec))[:REVISION_DIGITS]
