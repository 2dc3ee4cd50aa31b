"""How callers are called in what is written of their requests."""

from __future__ import annotations

from servestate.planner.access import Caller

_TOKEN_CHARACTERS = 12


def requester(caller: Caller | None) -> str:
    """The principal, or where tokens stand for nobody in particular the beginning of this one's digest: it
    tells it from others and gives it to nobody. "" where no tokens are declared."""
    if caller is None:
        return ""
    return f"token:{caller.token[:_TOKEN_CHARACTERS]}" if caller.token else caller.name
