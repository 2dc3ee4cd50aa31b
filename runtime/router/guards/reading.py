"""What of a body a model may read, or has written: which literals are text, which are names, which neither.

| literal                                                                  | is                       |
| ------------------------------------------------------------------------ | ------------------------ |
| a string                                                                 | text                     |
| a `name`; a role, type or id of a chat that is none of the usual form    | a name                   |
| a key that a caller or a model chose: a property, a column, a parameter  | a name                   |
| a usual role, type or id of a chat, why it ended                         | neither                  |
| a key of the API's or JSON Schema's own vocabulary, or of the body itself | neither                  |
| a member of the envelope, numbers of tokens, pictures, sound             | neither                  |

Text may be masked. A name stands for something elsewhere, so it may not: it passes or it does not.
"""

from __future__ import annotations

import re
from enum import Enum

from servestate.runtime.router.guards.literals import Literal, Path
from servestate.runtime.router.messages.body import CUSTOM, Kind


class Reading(Enum):
    """As what a literal is read."""

    TEXT = 1
    NAME = 2
    NOTHING = 3


TOKENS = frozenset({"logprobs", "prompt_logprobs", "token_ids", "prompt_token_ids"})
"""Members that say a text over again, token by token."""

_ENVELOPE = frozenset(
    {
        "client_request_id",
        "encoding_format",
        "id",
        "model",
        "object",
        "service_tier",
        "stop",
        "system_fingerprint",
        "usage_context",
    }
)
_TURNS: tuple[Path, ...] = (
    ("messages", 0),
    ("choices", 0),
    ("choices", 0, "message"),
    ("choices", 0, "delta"),
)
_PLACES: frozenset[Path] = frozenset(
    (*turn, *part) for turn in _TURNS for part in ((), ("content", 0), ("tool_calls", 0))
)
"""Where chats have names of their structure; every place in an array is 0."""
_OPAQUE = re.compile(r"[\w.:-]{0,128}", re.ASCII)  # no white space: an id says one word at most
_ANY = re.compile(r".*", re.DOTALL)
_STRUCTURE = {
    "finish_reason": _ANY,  # of answers: nothing reads it again
    "stop_reason": _ANY,
    "id": _OPAQUE,
    "tool_call_id": _OPAQUE,
    "type": _OPAQUE,
    "role": re.compile("system|developer|user|assistant|tool|function"),
}
"""Members of those places, and the form in which they are no more than that. Templates print a role as it
comes, whatever it is."""

_WORDS = """
    annotations arguments audio cache_control content custom data description detail documents file file_data
    file_id filename format function function_call grammar id image_url include_usage index input_audio
    json_schema name parameters prefix reasoning reasoning_content refusal role schema strict text thinking
    tool tool_call_id tool_calls type url video_url
    columns dtype fields inputs instances
    $anchor $comment $defs $id $ref $schema additionalItems additionalProperties allOf anyOf const contains
    contentEncoding contentMediaType default definitions dependentRequired dependentSchemas deprecated else
    enum examples exclusiveMaximum exclusiveMinimum if items maxItems maxLength maxProperties maximum minItems
    minLength minProperties minimum multipleOf not nullable oneOf pattern patternProperties prefixItems
    properties propertyNames readOnly required then title unevaluatedItems unevaluatedProperties uniqueItems
    writeOnly
"""
_VOCABULARY = frozenset(_WORDS.split())
"""Keys of chats and tools, of data frames and of JSON Schema (2020-12)."""
_HOLDS_NAMES = frozenset(
    {"$defs", "definitions", "dependentRequired", "dependentSchemas", "patternProperties", "properties"}
)
"""Members of a schema whose keys are names, whatever they are."""
_WRITTEN = frozenset({"arguments", "content"})
"""What of a chat's answer the model wrote: the other keys are its server's."""

_MEDIA_KEYS = frozenset({"image_url", "video_url", "audio_url"})
_MEDIA = re.compile(r"data:(?:image|video|audio)/[\w.+-]+;base64,[A-Za-z0-9+/]*={0,2}")
_SOUND = re.compile(r"[A-Za-z0-9+/]*={0,2}")


def reading(kind: Kind, literal: Literal, *, answer: bool) -> Reading:
    """As what a literal of a request's body, or of an `answer`, is read."""
    path = literal.path
    if literal.number or (kind is not CUSTOM and _is_envelope(path, answer=answer)):
        return Reading.NOTHING
    if literal.key:
        chosen = _is_chosen(path, answer=answer and kind is not CUSTOM)
        return Reading.NAME if chosen else Reading.NOTHING
    if kind is CUSTOM or not path:
        return Reading.TEXT
    form = _form_at(path)
    if (form is not None and form.fullmatch(literal.value)) or _is_media(path, literal.value):
        return Reading.NOTHING
    return Reading.NAME if is_name(kind, path) else Reading.TEXT


def is_name(kind: Kind, path: Path) -> bool:
    """Whether a string there is part of the structure, or what something is called: a tool, a schema, who
    speaks; but not what a model was told of, or said of, somebody."""
    if kind is CUSTOM or not path:
        return False
    called = path[-1] == "name" and path[0] != "documents" and "arguments" not in path
    return called or _form_at(path) is not None


def content_of(path: Path) -> Path | None:
    """The content that a text at `path` is a part of, if it is one."""
    if "content" in path[:-1] and (path[-1] == "text" or isinstance(path[-1], int)):
        return path[: path.index("content") + 1]
    return None


def _is_envelope(path: Path, *, answer: bool) -> bool:
    """Also numbers of tokens and their texts, where servers put them: not any member of that name."""
    if not path:
        return False
    return path[0] in _ENVELOPE or path[0] in TOKENS or (answer and len(path) > 2 and path[2] in TOKENS)


def _form_at(path: Path) -> re.Pattern[str] | None:
    """The form of what stands there, if that is part of the structure of chats."""
    place = tuple(0 if isinstance(step, int) else step for step in path[:-1])
    return _STRUCTURE.get(str(path[-1])) if place in _PLACES else None


def _is_chosen(path: Path, *, answer: bool) -> bool:
    """Whether somebody chose that key, who may say something with it."""
    if len(path) == 1 or (answer and _WRITTEN.isdisjoint(path[:-1])):
        return False
    return path[-1] not in _VOCABULARY or path[-2] in _HOLDS_NAMES or "arguments" in path[:-1]


def _is_media(path: Path, value: str) -> bool:
    last, holder = path[-1], path[-2] if len(path) > 1 else ""
    if last in _MEDIA_KEYS or (last == "url" and holder in _MEDIA_KEYS):
        return bool(_MEDIA.fullmatch(value))
    return last == "data" and holder in ("input_audio", "audio") and bool(_SOUND.fullmatch(value))
