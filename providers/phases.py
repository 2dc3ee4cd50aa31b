"""What a starting engine is doing, by its log. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from servestate.providers.engines.engine import Engine


def newest(engine: Engine, lines: Sequence[str]) -> str:
    """The newest phase among the log's last lines, else the newest line; "" for an empty log."""
    for line in reversed(lines):
        if phase := engine.phase(line):
            return phase
    return next((line for line in reversed(lines) if line), "")
