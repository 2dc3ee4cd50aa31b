"""Suggestions for a name that is not known."""

from __future__ import annotations

from collections.abc import Iterable

from servestate.planner.spec.characters import describe_odd, shorten

_COMPARED = 200
_LENGTH_DIFFERENCE = 6
_LONGEST = 100


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name that looks most like `name`; "" if none does. `cutoff` 1 asks for equality."""
    from difflib import get_close_matches  # costs more to import than most runs have use for

    if len(name) > _LONGEST:
        return ""
    candidates = [k for k in known if abs(len(k) - len(name)) <= _LENGTH_DIFFERENCE][:_COMPARED]
    found = get_close_matches(name.lower().replace("-", "_"), candidates, n=1, cutoff=cutoff)
    return found[0] if found else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` and a word on look-alike characters, for the end of a fix. May be empty."""
    found = closest(name, known)
    odd = describe_odd(name)
    hint = f'; did you mean "{shorten(found)}"?' if found else ""
    return f"{hint} ({odd})" if odd else hint
