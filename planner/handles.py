"""Handles as people are shown them: long enough to find the thing, short enough to read."""

from __future__ import annotations

import re

_CONTAINER = re.compile(r"(?P<id>[0-9a-f]{12})[0-9a-f]{52}(?:/(?:created|[0-9TZ:.+-]+))?\Z")


def shown(handle: str) -> str:
    """The handle with a container's id cut to the twelve digits that Docker shows, without its start time."""
    return _CONTAINER.sub(lambda found: found["id"], handle)
