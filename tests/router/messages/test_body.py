"""Bodies: only the model's bytes change, wherever the key stands and whatever else looks like it."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servestate.runtime.router.http.errors import Refused
from servestate.runtime.router.messages.body import (
    CHAT,
    CUSTOM,
    check_task,
    kind_of,
    model_of,
    parse,
    rewrite,
)

TEXT = st.text(max_size=8) | st.sampled_from(["model", '"model"', '\\"model', "mod\u00e9l", "usage_context"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=5)
STYLES = st.sampled_from(
    [
        {"separators": (",", ":"), "ensure_ascii": False},
        {"separators": (",", ":")},
        {},
        {"indent": 1},
        {"ensure_ascii": False, "separators": (" , ", "\t:\r\n")},
    ]
)


@given(OBJECTS, STYLES, st.integers(0, 5))
@example({"model": "a", "x": {"model": "a"}, "messages": []}, {}, 0)
def test_the_model_and_nothing_else(members: dict[str, Any], style: dict[str, Any], at: int) -> None:
    keys = [*members.items()]
    keys.insert(at, ("messages", [{"content": 'a "model": "b"'}]))
    value = dict(keys)
    raw = json.dumps(value, **style).encode("utf-8", "surrogatepass")
    sent = rewrite(raw, parse(raw), "engine")
    want = {k: v for k, v in value.items() if k not in ("usage_context", "client_request_id")}
    assert json.loads(sent) == {**want, "model": "engine"}  # exact, however large a number is
    if value.keys() == want.keys() and "model" in value:
        assert any(spliced(raw, sent, match.start(), value["model"]) for match in re.finditer(ENGINE, sent))


ENGINE = b'"engine"'


def spliced(raw: bytes, sent: bytes, at: int, old: Any) -> bool:
    """Whether `sent` is `raw` with the value `old` at that place replaced and every other byte kept."""
    after = sent[at + len(ENGINE) :]
    if not (raw.startswith(sent[:at]) and raw.endswith(after)):
        return False
    try:
        return bool(json.loads(raw[at : len(raw) - len(after)]) == old)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"model":"a","messages":[]}', b'{"model":"E","messages":[]}'),
        (b'{"messages":[] , "model" : "a" }', b'{"messages":[] , "model" : "E" }'),
        (b'{"x":"model","mod\\u0065l":"a","messages":[]}', b'{"x":"model","mod\\u0065l":"E","messages":[]}'),
        (b'{"x":{"model":"a"},"mod\\u0065l":"a"}', b'{"x":{"model":"a"},"mod\\u0065l":"E"}'),
        (b'{"messages":[],"model":null}', b'{"messages":[],"model":"E"}'),
        (b'{"messages":[],"model": {"a":[1]} ,"n":1}', b'{"messages":[],"model": "E" ,"n":1}'),
        (b' \n{"messages":[1.50]}', b' \n{"model":"E","messages":[1.50]}'),
        (b'{"t":1.50,"model":"\\u0061"}', b'{"t":1.50,"model":"E"}'),
        (b'{"usage_context":{},"model":"a"}', b'{"model":"E"}'),
        (b'{"model":"a", "client_request_id":"x", "n":1.0}', b'{"model":"E", "n":1.0}'),
        (b'{"client_request_id":1,"usage_context":2,"input":1.50}', b'{"model":"E","input":1.50}'),
    ],
)
def test_rewriting_to_the_byte(raw: bytes, expected: bytes) -> None:
    assert rewrite(raw, parse(raw), "E") == expected


@pytest.mark.parametrize(
    "raw",
    [b'{"model":"a","model":"a"}', b'{"model":"a", "x":1.50, "mod\\u0065l":"a"}', b'{"model":1,"model":2}'],
)
def test_two_models_are_refused(raw: bytes) -> None:
    with pytest.raises(Refused, match="more than once"):
        rewrite(raw, parse(raw), "E")


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'"x"', b"{'a':1}", b'{"a":NaN}', b'{"a":1}x', b"\xff{}", b"null"]
)
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        parse(raw)
    assert refusal.value.failure.status == 400


def test_a_compressed_body_is_called_that() -> None:
    with pytest.raises(Refused, match="is compressed"):
        parse(gzip.compress(b'{"messages": []}'))


def test_a_body_of_nothing_but_brackets_is_refused_unread() -> None:
    """Read, it would take thirty times its bytes."""
    few, many = (b'{"x":[%b[]]}' % (b"[]," * count) for count in (499_997, 499_998))
    assert len(parse(few)["x"]) == 499_998
    with pytest.raises(Refused, match="arrays and objects"):
        parse(many)


def test_exactly_one_key_decides_the_kind() -> None:
    assert kind_of({"messages", "n"}) is CHAT
    assert kind_of({"inputs"}) is CUSTOM
    for document in ({}, {"messages": [], "prompt": ""}, {"input": 1, "inputs": 2}):
        with pytest.raises(Refused, match="exactly one of the keys"):
            kind_of(document.keys())


def test_the_task_and_the_model_are_checked() -> None:
    check_task(CHAT, "", "e")
    check_task(CHAT, "llm/v1/chat", "e")
    with pytest.raises(Refused, match="has the task llm/v1/embeddings"):
        check_task(CHAT, "llm/v1/embeddings", "e")
    assert model_of({"model": "a/b"}) == "a/b"
    assert model_of({"model": "a"}) == "a"
    for document in ({}, {"model": 1}, {"model": ""}):
        with pytest.raises(Refused):
            model_of(document)
