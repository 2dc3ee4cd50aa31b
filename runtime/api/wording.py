"""Messages that clients may see: nothing in them makes a client repeat what it must not."""

from __future__ import annotations

import re

from servestate.runtime.router.http.errors import NEVER_SAID

_LONGEST = 4000
_PHRASES = re.compile("|".join(map(re.escape, NEVER_SAID)), re.IGNORECASE)


def said(text: str) -> str:
    """`text` without the phrases on which the databricks SDK repeats a call whatever its status, at most so
    long that it fits into a message."""
    found = _PHRASES.sub("(…)", text)
    return found if len(found) <= _LONGEST else f"{found[: _LONGEST - 1]}…"
