"""Suggestions for a name that is not known."""

from __future__ import annotations

from collections.abc import Iterable

from servestate.planner.spec.characters import describe_odd, shorten

_COMPARED = 1000


def closest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like `name`; "" if none does."""
    from difflib import get_close_matches  # costs more to import than most runs have use for

    plain = name[:100].lower().replace("-", "_")
    found = get_close_matches(plain, list(known)[:_COMPARED], n=1, cutoff=0.6)
    return found[0] if found else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` and a word on look-alike characters, for the end of a fix. May be empty."""
    found = closest(name, known)
    odd = describe_odd(name)
    hint = f'; did you mean "{shorten(found)}"?' if found else ""
    return f"{hint} ({odd})" if odd else hint
