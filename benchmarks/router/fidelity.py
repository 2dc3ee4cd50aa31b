"""Whether a target passes bodies on as they are: what the engine got of a request, what the caller got of an
answer and of a stream.

The request is written as people and libraries write it: spaces, escapes that need not be, 1.0 and 1e2, a
field that no specification knows.
"""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass
from typing import Any

from benchmarks.router.lineup import Bench, Target
from benchmarks.router.peer import CHAT, MODEL

ODD = (
    '{ "model" : "%s",\n  "messages":[{"role":"user","content":"caf\\u00e9 \\/ \u00e9 %s"}],'
    ' "temperature": 1.0, "top_p":0.10,"max_tokens":64, "x_unknown":{"b":1e2,"a":[ ]}, "user":"bench"%s}'
)
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Fidelity:
    """In words, for each direction: `same` or what differs."""

    request: str
    answer: str
    stream: str


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    content: bytes


def fidelity(on: Bench, target: Target) -> Fidelity:
    """One plain request and one short stream through the target, and the same without it."""
    fields = dict(line.split(": ", 1) for line in target.launch.fields)
    model, path = target.launch.model, target.launch.path
    answer = _post(on.ports[0], CHAT, _body(MODEL, "[direct]"), {})
    stream = _post(on.ports[0], CHAT, _body(MODEL, "[brief]", ', "stream":true'), {})
    plain = _body(model, f"[{target.name}]")
    got = _post(target.port, path, plain, fields)
    arrived = next((last for port in on.ports if f"[{target.name}]".encode() in (last := _last(port))), b"")
    streamed = _post(target.port, path, _body(model, "[brief]", ', "stream":true'), fields)
    return Fidelity(
        _of_request(plain, arrived, model, got), _of_answer(got, answer), _of_answer(streamed, stream)
    )


def _body(model: str, word: str, more: str = "") -> bytes:
    """`word` tells which request it was that arrived."""
    return (ODD % (model, word, more)).encode()


def _post(port: int, path: str, body: bytes, fields: dict[str, str]) -> _Reply:
    """The whole answer; status 0 where there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **fields})
        response = connection.getresponse()
        return _Reply(response.status, response.read())
    except (OSError, http.client.HTTPException) as error:
        return _Reply(0, repr(error).encode())
    finally:
        connection.close()


def _last(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/last")
        return connection.getresponse().read()
    finally:
        connection.close()


def _of_request(sent: bytes, arrived: bytes, model: str, got: _Reply) -> str:
    if got.status != 200:
        return _refused(got)
    if not arrived:
        return "did not arrive"
    if arrived == sent:
        return "same"
    if arrived == sent.replace(f'"{model}"'.encode(), f'"{MODEL}"'.encode(), 1):
        return "same but `model`"
    return "written anew" + _difference(json.loads(sent), json.loads(arrived))


def _of_answer(got: _Reply, expected: _Reply) -> str:
    if got.status != 200:
        return _refused(got)
    if _unstamped(got.content) == _unstamped(expected.content):
        return "same"
    first, second = _first_object(expected.content), _first_object(got.content)
    return "written anew" + _difference(first, second) if second else "altered"


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Fields of the outermost object that came, went or changed, `model` aside."""
    both = before.keys() & after.keys() - {"model"}
    found = (
        ("adds", sorted(after.keys() - before.keys())),
        ("drops", sorted(before.keys() - after.keys())),
        ("changes", sorted(key for key in both if before[key] != after[key])),
    )
    return "".join(f", {verb} {_names(names)}" for verb, names in found if names)


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_NAMED]) + more


def _first_object(content: bytes) -> dict[str, Any]:
    """Of an answer or of the first event of a stream; empty where there is none."""
    line = content.removeprefix(b"data: ").split(b"\n\n", 1)[0]
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _unstamped(content: bytes) -> bytes:
    """Without the moments at which the engine sent its chunks."""
    return re.sub(rb"~\d{16}:", b"~:", content)


def _refused(got: _Reply) -> str:
    return f"refused: {got.status}" if got.status else "no answer"
