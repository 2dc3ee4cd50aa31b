"""Tokens: how many a request may use, what an answer says that it used, and estimates where it does not.

An estimate is a quarter of the text's length in characters and one more, which is the serving API's formula.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import orjson

from servestate.runtime.router import scan
from servestate.runtime.router.messages.body import (
    CHAT,
    COMPLETION,
    EMBEDDING,
    Document,
    Kind,
    without,
    written,
)
from servestate.runtime.router.records.record import Usage

find: Final = scan.find
flat_numbers: Final = scan.flat_numbers
rfind: Final = scan.rfind

UNBOUNDED_COMPLETION: Final = 1024
"""Tokens that are set aside for the answer to a request that bounds its answer by nothing."""

_OPTIONS: Final = "stream_options"
_DROPPED: Final = frozenset({_OPTIONS})
_TEXT_KEYS: Final = ("content", "text", "tool_calls", "function", "arguments")
_MOST_TOKENS: Final = 1 << 40
"""Nobody uses more in one request; what an upstream says beyond is no number of tokens."""
_TAIL_BYTES: Final = 4096  # usage stands at an answer's end, with little behind it
_USAGE: Final = b'"usage"'
_USAGE_OBJECT: Final = re.compile(
    rb'"usage"[ \t\r\n]*:[ \t\r\n]*(\{[^{}"]*(?:(?:"[^"\\]*"|\{[^{}]*\})[^{}"]*)*\})'
)
_USAGE_BEGINS: Final = b'"usage":{'
_PROMPT: Final = b'"prompt_tokens":'
_COMPLETION: Final = b'"completion_tokens":'
_MODEL_TEXT: Final = re.compile(
    rb'"(?:content|text|reasoning_content|arguments)"[ ]?:[ ]?"((?:[^"\\]|\\.)*)"'
)
_ANSWER_MODEL: Final = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*"([^"\\]{1,200})"')


def estimate(characters: int) -> int:
    """Tokens of a text of so many characters."""
    return (characters + 1) // 4


def prompt_estimate(kind: Kind, document: Document) -> int:
    """Tokens of what a body asks about, estimated."""
    if kind is CHAT:
        return estimate(sum(map(len, _texts(document.get("messages")))))
    if kind is COMPLETION:
        return estimate(sum(map(len, _texts(document.get("prompt")))))
    if kind is EMBEDDING:
        return estimate(sum(map(len, _texts(document.get("input")))))
    return 0


def reservation(kind: Kind, document: Document) -> int:
    """Tokens that a request may use: its prompt, estimated, and the most that its answer may have."""
    prompt = prompt_estimate(kind, document)
    if kind not in (CHAT, COMPLETION):
        return prompt
    most = document.get("max_completion_tokens", document.get("max_tokens"))
    most = most if type(most) is int and most >= 0 else UNBOUNDED_COMPLETION
    answers = document.get("n")
    return prompt + most * (answers if type(answers) is int and answers > 0 else 1)


def _texts(value: Any) -> Iterator[str]:
    """All texts that a model reads in a list of messages, of parts or of prompts. Keys are none, and neither
    are pictures."""
    left = [value]  # not by recursion: what nests a thousand deep is JSON too
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            if item and all(type(one) is int for one in item):  # a prompt in tokens
                yield "    " * len(item)
            else:
                left += reversed(item)
        elif isinstance(item, dict):
            left += [item[key] for key in reversed(_TEXT_KEYS) if key in item]


def prefix_of(kind: Kind, document: Document, most: int = 256) -> bytes:
    """The beginning of what a body asks about, at most so many bytes."""
    key = {CHAT: "messages", COMPLETION: "prompt", EMBEDDING: "input"}.get(kind)
    parts, size = [], 0
    for text in _texts(document.get(key)) if key else ():
        parts.append(text[:most].encode("utf-8", "surrogatepass"))
        size += len(parts[-1])
        if size >= most:
            break
    return b"".join(parts)[:most]


def asks_usage(document: Document) -> bool:
    """Whether the caller of a stream wants to hear of its usage."""
    options = document.get(_OPTIONS)
    return isinstance(options, dict) and options.get("include_usage") is True


def asking_usage(raw: bytes, document: Document) -> tuple[bytes, Document]:
    """A body that wants a stream, and what it says, with the wish to hear of its usage at the end; no other
    byte is changed."""
    options = document.get(_OPTIONS)
    wanted = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    if _OPTIONS in document:
        raw = without(raw, _DROPPED)
    end = raw.rindex(b"}")
    raw = b'%b,"%b":%b%b' % (raw[:end], _OPTIONS.encode(), written(wanted), raw[end:])
    kept = {key: value for key, value in document.items() if key != _OPTIONS}
    return raw, {**kept, _OPTIONS: wanted}


def usage_in(content: bytes) -> Usage | None:
    """What a whole JSON answer, or the line of an event, says of its usage."""
    at = len(content)
    while (at := rfind(content, _USAGE, 0, at)) >= 0:
        if not at or content[at - 1 : at] != b"\\":  # else within a text
            usage = _usage_at(content, at)
            if usage is not None:
                return usage
    return None


def _usage_at(content: bytes, at: int) -> Usage | None:
    """What the object says that is the value of the key at that place."""
    start = at + len(_USAGE_BEGINS) - 1
    if content[at : start + 1] == _USAGE_BEGINS:
        numbers = flat_numbers(content, start, _PROMPT, _COMPLETION)
        if numbers is not None and numbers[0] <= _MOST_TOKENS and numbers[1] <= _MOST_TOKENS:
            return Usage(numbers[0], numbers[1])
        end = find(content, b"}", start) + 1
        found = content[start : max(end, start)]
        if found and find(found, b"{", 1) < 0 and find(found, b"\\") < 0:
            return _usage(found)  # as it is written most often, for which the slow look is not needed
    match = _USAGE_OBJECT.match(content, at)
    return _usage(match[1]) if match is not None else None


def _usage(text: bytes) -> Usage | None:
    try:
        found = orjson.loads(text)
    except ValueError:
        return None
    prompt, completion = found.get("prompt_tokens"), found.get("completion_tokens", 0)
    for number in (prompt, completion):
        if type(number) is not int or not 0 <= number <= _MOST_TOKENS:
            return None
    return Usage(prompt, completion)


def text_bytes(content: bytes) -> int:
    """How much model's text stands in an answer or a piece of one, in bytes as written."""
    if find(content, b"tent") < 0 and find(content, b'"text"') < 0 and find(content, b'"arguments"') < 0:
        return 0
    return sum(len(match[1]) for match in _MODEL_TEXT.finditer(content))


def model_in(content: bytes) -> str:
    """The model that an answer says it is by, "" where it does not say."""
    match = _ANSWER_MODEL.search(content, 0, 1024)
    return match[1].decode("utf-8", "replace") if match is not None else ""


class Meter:
    """Listens to an answer as it passes, for its usage. `counts_text` also adds up its text, so that there is
    something to estimate from; `hides` takes out the event that only the router asked for."""

    __slots__ = ("_counts_text", "_hides", "_tail", "text", "usage")

    def __init__(self, counts_text: bool, hides: bool) -> None:
        self._counts_text = counts_text
        self._hides = hides
        self._tail = b""
        self.text = 0
        self.usage: Usage | None = None

    def passes_plain(self, chunk: bytes) -> None:
        """Hear a piece of a stream of which `scan.is_plain_event` says that it is one."""
        if self._counts_text:
            self.text += text_bytes(chunk)

    def passes(self, chunk: bytes) -> bool:
        """Whether a piece of a stream, which holds whole events, can pass untouched; if so, it was heard."""
        if find(chunk, _USAGE) >= 0:
            if self._hides:
                return False
            self.usage = usage_in(chunk) or self.usage
        if self._counts_text:
            self.text += text_bytes(chunk)
        return True

    def lines(self, lines: bytes) -> bytes:
        """What of whole lines of a stream goes on."""
        if find(lines, _USAGE) >= 0:
            self.usage = usage_in(lines) or self.usage
            if self._hides:
                lines = b"\n".join(line for line in lines.split(b"\n") if not _is_usage_only(line))
        if self._counts_text:
            self.text += text_bytes(lines)
        return lines

    def piece(self, payload: bytes, last: bool) -> None:
        """Hear a piece of a JSON answer, which may be all of it."""
        if self._counts_text:
            self.text += text_bytes(payload)
        if last:
            self.usage = usage_in(self._tail + payload if self._tail else payload)
        else:
            self._tail = (self._tail + payload)[-_TAIL_BYTES:]


def _is_usage_only(line: bytes) -> bool:
    if _USAGE not in line or not line.startswith(b"data:"):
        return False
    try:
        event = orjson.loads(line[5:])
    except ValueError:
        return False
    return isinstance(event, dict) and event.get("choices") == [] and isinstance(event.get("usage"), dict)
