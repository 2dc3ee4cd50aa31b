"""What log lines tell of a start: patterns with the short text for each. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

Telling = tuple[re.Pattern[str], str]
"""A pattern, and the text with {0}, {1}, … for its groups."""


def telling(pattern: str, text: str) -> Telling:
    """One row of such a table. Case does not count: versions of engines differ in it."""
    return re.compile(pattern, re.IGNORECASE), text


SERVING: tuple[Telling, ...] = (
    telling(r"Application startup complete|Uvicorn running on", "started, waiting for its first answer"),
    telling(r"Waiting for application startup", "starting the HTTP server"),
)
"""What every server on uvicorn says."""


def phase_of(line: str, table: Sequence[Telling]) -> str:
    """The text of the first row that matches, "" where none does."""
    for pattern, text in table:
        if match := pattern.search(line):
            return text.format(*match.groups())
    return ""
