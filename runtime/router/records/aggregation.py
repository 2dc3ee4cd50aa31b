"""A stream of events as the one answer that it amounts to."""

from __future__ import annotations

from typing import Any

import orjson

_DONE = b"[DONE]"


def aggregated(stream: bytes) -> bytes:
    """The answer in the shape of one that was not streamed: texts joined, tool calls put together, the last
    `usage`. What is no stream of choices is given back as it is."""
    events = []
    lines = stream.splitlines()
    for at, line in enumerate(lines, 1):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == _DONE:
            continue
        try:
            event = orjson.loads(data)
        except ValueError:
            if at == len(lines):  # broken off, or cut
                break
            return stream
        if not isinstance(event, dict):
            return stream
        events.append(event)
    if not any(isinstance(event.get("choices"), list) for event in events):
        return stream
    return orjson.dumps(_answer(events))


def _answer(events: list[dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        answer.update((k, v) for k, v in event.items() if k not in ("choices", "object") and v is not None)
        for choice in event.get("choices") or ():
            if isinstance(choice, dict):
                _add_choice(choices.setdefault(choice.get("index", 0), {}), choice)
    return {**answer, "choices": [choices[index] for index in sorted(choices)]}


def _add_choice(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if key == "delta" and isinstance(value, dict):
            _add_message(whole.setdefault("message", {}), value)
        elif key == "text" and isinstance(value, str):
            whole[key] = whole.get(key, "") + value
        elif value is not None or key not in whole:
            whole[key] = value


def _add_message(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls" and isinstance(value, list):
            _add_calls(message.setdefault(key, []), value)
        elif isinstance(value, str) and key != "role":
            message[key] = (message.get(key) or "") + value
        elif value is not None or key not in message:
            message[key] = value


def _add_calls(calls: list[dict[str, Any]], parts: list[Any]) -> None:
    for part in parts:
        if not isinstance(part, dict):
            continue
        call = next((one for one in calls if one.get("index") == part.get("index")), None)
        if call is None:
            calls.append({**part, "function": dict(part.get("function") or {})})
            continue
        function = part.get("function") or {}
        arguments = function.get("arguments") or ""
        call["function"]["arguments"] = (call["function"].get("arguments") or "") + arguments
