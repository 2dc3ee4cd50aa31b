"""Field classes of an endpoint, as data: read by the planner, the documentation and the tests."""

from __future__ import annotations

FORCES_REPLACEMENT = frozenset({"name", "route_optimized", "description", "auto_capture_config"})
"""Immutable fields of an endpoint (the serving API's rule): a change deletes it and creates it anew. What
runs is not touched by that, since instances are identified by their launch specs."""
