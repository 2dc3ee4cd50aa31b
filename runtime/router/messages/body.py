"""Request bodies: what kind they are, what they name, and the few bytes of them that change.

A body is parsed once, to be judged; what goes out is the caller's own bytes with the model's name spliced
in, and without the two members that belong to the router. Engines and strict providers see no other change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import orjson

from servestate.runtime.router import scan
from servestate.runtime.router.http.errors import Refused, refused

find: Final = scan.find
loads: Final = orjson.loads
dumps: Final = orjson.dumps


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """A kind of body: the engine's path for it, the task that it belongs to ("" = a custom model's). There
    is one object of each, compared by identity."""

    name: str
    path: str
    task: str = ""


CHAT: Final = Kind("messages", "/v1/chat/completions", "llm/v1/chat")
COMPLETION: Final = Kind("prompt", "/v1/completions", "llm/v1/completions")
EMBEDDING: Final = Kind("input", "/v1/embeddings", "llm/v1/embeddings")
CUSTOM: Final = Kind("dataframe_split, dataframe_records, instances or inputs", "/invocations")

KINDS: Final = (CHAT, COMPLETION, EMBEDDING, CUSTOM)

_BY_KEY: dict[str, Kind] = {
    "messages": CHAT,
    "prompt": COMPLETION,
    "input": EMBEDDING,
    "dataframe_split": CUSTOM,
    "dataframe_records": CUSTOM,
    "instances": CUSTOM,
    "inputs": CUSTOM,
}
DECIDING: Final = frozenset(_BY_KEY)
"""Keys of which exactly one says of which kind a body is."""
OURS: Final = frozenset({"client_request_id", "usage_context"})
"""Keys that are for the router, not for models."""
LLM_TASKS: Final = frozenset({CHAT.task, COMPLETION.task, EMBEDDING.task})

MOST_PARTS: Final = 500_000
"""Arrays and objects of one body: an empty one takes two bytes as text, and thirty times that once read."""
_MODEL_KEY: Final = b'"model"'
_MODEL: Final = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*("[^"\\]*")')
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]', re.DOTALL)

_GZIP: Final = b"\x1f\x8b"

Document = dict[str, Any]


def parse(raw: bytes) -> Document:
    """The body's JSON object. Raises Refused (400)."""
    if len(raw) > MOST_PARTS and raw.count(b"[") + raw.count(b"{") > MOST_PARTS:
        raise too_many_parts()
    try:
        document = orjson.loads(raw)
    except ValueError as error:
        if raw.startswith(_GZIP):
            raise refused("the request's body is compressed; send it as it is") from None
        raise refused(f"the request's body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise refused("the request's body is not a JSON object")
    return document


def too_many_parts() -> Refused:
    """A body of more than `MOST_PARTS`."""
    return refused(f"the request's body has more than {MOST_PARTS:,} arrays and objects")


def nested_too_deeply() -> Refused:
    """A body that is nested deeper than anybody reads or writes."""
    return refused("the request's body is nested too deeply")


def written(value: Any) -> bytes:
    """A part of a body as JSON. Raises Refused (400) where it is nested deeper than can be written, though
    not than can be read."""
    try:
        return dumps(value)
    except TypeError:  # as orjson says it
        raise nested_too_deeply() from None


def kind_of(keys: Set[str]) -> Kind:
    """The kind that the one deciding key names. Raises Refused (400) for none or several."""
    keys = keys & DECIDING
    if len(keys) == 1:
        return _BY_KEY[next(iter(keys))]
    found = f"found {', '.join(sorted(keys))}" if keys else "found none of them"
    raise refused(f"the body needs exactly one of the keys {', '.join(_BY_KEY)}; {found}")


def check_task(kind: Kind, task: str, entity: str) -> None:
    """Raises Refused (400) if a body of `kind` contradicts the entity's task; "" takes any."""
    if task in LLM_TASKS and kind.task != task:
        raise refused(f"the served entity {entity!r} has the task {task}, the body has {kind.name!r}")


def model_of(document: Document) -> str:
    """What `model` names: an endpoint, or ENDPOINT/ENTITY. Raises Refused (400)."""
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise refused('the body needs "model": the name of an endpoint, or ENDPOINT/ENTITY')
    return model


def rewrite(raw: bytes, document: Document, model: str) -> bytes:
    """`raw` as it goes upstream: `model` ("" = leave alone) in its place or put first, the members of the
    router taken out, every other byte untouched. `document` is used up. Raises Refused (400) if `model`
    stands twice."""
    ours = "client_request_id" in document or "usage_context" in document
    if not ours and not model:
        return raw
    if not ours and "model" in document:
        span = _sole_span(raw)
        if span is not None:
            return b"%b%b%b" % (raw[: span[0]], _quoted(model), raw[span[1] :])
    if "model" in document and _is_as_written(document, raw):
        # The caller writes JSON as orjson does, so writing it again changes what was changed and no more;
        # and no key stood twice, or it would have come out shorter.
        if ours:
            document = {key: value for key, value in document.items() if key not in OURS}
        document["model"] = model or document["model"]
        return dumps(document)
    if ours:
        raw = without(raw, OURS)
    if not model:
        return raw
    text = _quoted(model)
    if "model" in document:
        start, end = _sole_span(raw) or _found_span(raw)
        return b"%b%b%b" % (raw[:start], text, raw[end:])
    start = raw.index(b"{") + 1
    return b"%b%b:%b,%b" % (raw[:start], _MODEL_KEY, text, raw[start:])


@lru_cache(maxsize=256)
def _quoted(model: str) -> bytes:
    return dumps(model)


def _is_as_written(document: Document, raw: bytes) -> bool:
    try:
        return dumps(document) == raw
    except TypeError:  # nested deeper than it writes, though not than it reads
        return False


def _sole_span(raw: bytes) -> tuple[int, int] | None:
    """Where the value of the top-level key `model` stands, which is known to be there; None where it takes a
    closer look to know.

    Written without escapes the key is the bytes `"model"`. Every letter of it lies in \\u0060..\\u006f, so if
    no such escape is in the body, and those bytes occur once, they are that key.
    """
    at = find(raw, _MODEL_KEY)
    if at < 0 or find(raw, _MODEL_KEY, at + len(_MODEL_KEY)) >= 0:
        return None
    start = at + len(_MODEL_KEY) + 1
    end = find(raw, b'"', start + 1) + 1
    escape = find(raw, b"\\")
    if escape >= 0 and find(raw, b"\\u006", escape) >= 0:
        return None
    if raw[start - 1 : start + 1] == b':"' and (escape < 0 or find(raw, b"\\", start, end) < 0):
        return start, end
    match = _MODEL.match(raw, at)
    return match.span(1) if match is not None else None


def _found_span(raw: bytes) -> tuple[int, int]:
    """As `_sole_span`, by going through the whole body. Raises Refused (400) if the key stands twice."""
    spans = [(start, end) for key, _, start, end in _members(raw) if key == "model"]
    if len(spans) != 1:
        raise refused('the key "model" stands in the body more than once')
    return spans[0]


def without(raw: bytes, keys: frozenset[str]) -> bytes:
    """`raw` less the members of those `keys`, each with the one comma that parted it."""
    members = list(_members(raw))
    first_kept = next((i for i, member in enumerate(members) if member[0] not in keys), len(members))
    pieces, at = [], 0
    if first_kept:
        pieces.append(raw[: members[0][1]])
        at = members[first_kept][1] if first_kept < len(members) else members[-1][3]
    for i in range(first_kept + 1, len(members)):
        if members[i][0] in keys:
            pieces.append(raw[at : members[i - 1][3]])
            at = members[i][3]
    return b"".join((*pieces, raw[at:]))


def _members(raw: bytes) -> Iterator[tuple[str, int, int, int]]:
    """(key, start of the key, start and end of the value) of the top-level members of a valid object."""
    depth = 0
    key: str | None = None
    key_at = colon = last = 0
    for token in _TOKEN.finditer(raw):
        byte = raw[token.start()]
        if byte in b"}]":
            depth -= 1
        if (depth == 1 and byte == 0x2C) or depth == 0:
            if key is not None:
                start, end = _trimmed(raw, colon, token.start())
                yield key, key_at, start, end
            key = None
        elif depth == 1 and byte == 0x3A and key is not None and colon <= key_at:
            colon = token.end()
        elif depth == 1 and byte == 0x22 and key is None:
            key, key_at = orjson.loads(token[0]), token.start()
        if byte in b"{[":
            depth += 1
        last = token.end()
    assert depth == 0, last


def _trimmed(raw: bytes, start: int, end: int) -> tuple[int, int]:
    text = raw[start:end]
    return end - len(text.lstrip(b" \t\r\n")), start + len(text.rstrip(b" \t\r\n"))
