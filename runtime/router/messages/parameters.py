"""Parameters of a query that the serving API has rules for: `extra_params`, `n` and `temperature`.

The OpenAI surfaces have no such rules and take bodies as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from servestate.runtime.router.http.errors import refused
from servestate.runtime.router.messages.body import (
    CHAT,
    COMPLETION,
    LLM_TASKS,
    OURS,
    Document,
    Kind,
    kind_of,
    without,
    written,
)

EXTRA = "extra_params"
CHECKED = frozenset({"n", "temperature"})
"""What `check` looks at."""

_NUMBER_OR_BOOLEAN = re.compile(r"true|false|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_DROPPED = frozenset({EXTRA})


def merged(raw: bytes, document: Document) -> tuple[bytes, Document]:
    """`raw` and what it says with the members of `extra_params` among its own, at the end, and without that
    key; no member that stands there already is changed. Values are strings in the SDK's type, so those that
    spell a number or a boolean become one. Bodies of custom models are left alone. Raises Refused (400)."""
    if EXTRA not in document or kind_of(document.keys()).task not in LLM_TASKS:
        return raw, document
    extra = document[EXTRA]
    if not isinstance(extra, dict):
        raise refused(f"{EXTRA} is not a map of names to values")
    kept = {key: value for key, value in document.items() if key != EXTRA}
    texts = dict(_texts(extra, taken=kept.keys() | OURS | _DROPPED))
    raw = without(raw, _DROPPED)
    if texts:
        members = b",".join(b"%b:%b" % (orjson.dumps(key), text) for key, text in texts.items())
        raw = b"%b,%b}" % (raw[: raw.rindex(b"}")], members)
    return raw, kept | {key: orjson.loads(text) for key, text in texts.items()}


def _texts(extra: Document, taken: set[str]) -> Iterator[tuple[str, bytes]]:
    """The members that are added, each with its value as JSON."""
    for key, value in extra.items():
        if key not in taken:
            yield key, _spelled(value) if isinstance(value, str) else written(value)


def _spelled(value: str) -> bytes:
    """What a string stands for, as JSON: the number or the boolean that it spells, else itself."""
    if _NUMBER_OR_BOOLEAN.fullmatch(value):
        try:
            orjson.loads(value)
        except ValueError:  # a number too large for any
            return orjson.dumps(value)
        return value.encode("ascii")
    return orjson.dumps(value)


def check(kind: Kind, document: Document) -> None:
    """Raises Refused (400) for an `n` or a `temperature` of a chat or completion that the serving API does
    not allow. null is as good as absent."""
    if kind not in (CHAT, COMPLETION):
        return
    n: Any = document.get("n")
    if n is not None and not (type(n) is int and 1 <= n <= 5):
        raise refused("n is a whole number from 1 to 5")
    temperature: Any = document.get("temperature")
    if temperature is not None and not (type(temperature) in (int, float) and 0 <= temperature <= 2):
        raise refused("temperature is a number from 0 to 2")
