"""Bodies that go on before they are whole: what comes out is what a whole body would have become, however it
is cut into pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servestate.runtime.router.http.errors import Refused
from servestate.runtime.router.messages.body import CHAT, CUSTOM, OURS, parse, rewrite
from servestate.runtime.router.messages.passage import Passage

BEGINNING = b'{"model":"m","messages":["' + b"x" * 40

TEXTS = st.text(st.sampled_from('ab"\\{}[],:\n é\u2028'), max_size=8)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
KEYS = st.one_of(
    st.sampled_from(["model", "client_request_id", "usage_context", "messages", "n", "models", "Model"]),
    TEXTS,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=8)


def spelled(document: dict[str, Any], style: int) -> bytes:
    """A document as callers write it: compact, spaced, spread over lines or with escapes."""
    text = json.dumps(
        document,
        ensure_ascii=style % 2 == 0,
        separators=(",", ":") if style < 2 else None,
        indent=2 if style > 3 else None,
    )
    if style % 3 == 2:
        text = text.replace('"model"', '"mo\\u0064el"').replace('"usage_context"', '"\\u0075sage_context"')
    return text.encode("utf-8", "surrogatepass")


def pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(raw)) for cut in cuts})
    return [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True)]


def through(passage: Passage, rest: list[bytes], model: str) -> list[bytes]:
    made = [passage.first(model)]
    made += [passage.next(piece, last=False) for piece in rest]
    return [*made, passage.next(b"", last=True)]


@given(DOCUMENTS, st.integers(0, 5), st.lists(st.integers(0, 200), max_size=6), st.sampled_from(["", "new"]))
@example({"a": 1, "model": "m"}, 0, [4, 6], "new")
@example({"client_request_id": 1, "usage_context": 2, "a": 3}, 0, [50], "")
@example({"a": 1, "client_request_id": {"b": '"}'}, "usage_context": [1, "]"]}, 0, [3, 12, 20], "new")
def test_it_means_what_a_whole_one_would(
    document: dict[str, Any], style: int, cuts: list[int], model: str
) -> None:
    raw = spelled(document, style)
    beginning, *rest = pieces(raw, cuts)
    passage = Passage(beginning, len(raw))
    if passage.breaks_off in OURS | {"model"} or passage.keys <= OURS:
        return  # the whole of such a body is waited for
    parts = through(passage, rest, model)
    made = b"".join(parts)
    assert len(made) == passage.length, "as announced"
    wanted = rewrite(raw, parse(raw), model)
    assert json.loads(made) == json.loads(wanted)
    if passage.keys >= document.keys() & (OURS | {"model"}):
        assert "model" in passage.keys or not model or made.startswith(b'{"model":"new",')


@given(DOCUMENTS, st.integers(0, 5), st.lists(st.integers(0, 200), max_size=6))
def test_what_is_not_changed_is_byte_for_byte(document: dict[str, Any], style: int, cuts: list[int]) -> None:
    for key in OURS:
        document.pop(key, None)
    raw = spelled(document, style)
    beginning, *rest = pieces(raw, cuts)
    passage = Passage(beginning, len(raw))
    if passage.keys:
        assert b"".join(through(passage, rest, "")) == raw
        assert passage.length == len(raw)


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_of_anything_at_all_it_keeps_every_byte_or_refuses(raw: bytes, cuts: list[int]) -> None:
    """It never raises anything else, never waits for ever and never invents or loses a byte."""
    beginning, *rest = pieces(b'{"a":' + raw, [cut + 5 for cut in cuts])
    try:
        passage = Passage(beginning, len(raw) + 5)
        made = b"".join(through(passage, rest, ""))
    except Refused:
        return
    assert len(made) == len(raw) + 5
    assert made == b'{"a":' + raw


def test_a_model_that_comes_late_is_overwritten_to_its_length() -> None:
    rest = b'"], "n": 1, "model" : "mine" , "x": 2}'
    beginning = BEGINNING.replace(b'"model":"m",', b"")
    passage = Passage(beginning, len(beginning) + len(rest))
    made = b"".join(through(passage, [rest[:14], rest[14:]], "new"))
    assert made.startswith(b'{"model":"new","messages"')
    assert made.endswith(b'"], "n": 1' + b" " * len(b', "model" : "mine" ') + b', "x": 2}')
    assert passage.length == len(made)


def test_what_the_beginning_says() -> None:
    passage = Passage(b'{"model": "m", "n": 1, "messages": [1', 99)
    assert passage.document == {"model": "m", "n": 1}
    assert (passage.keys, passage.breaks_off) == ({"model", "n", "messages"}, "messages")
    between = Passage(b'{"model": "m", "mess', 99)
    assert (between.keys, between.breaks_off) == ({"model"}, "")
    assert Passage(b'{"n": 12', 99).document == {}, "another digit may follow"


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (b'"],"model":"other"}', "more than once"),
        (b'"],"mo\\u0064el":"other"}', "more than once"),
        (b'"],"prompt":"x"}', "too late"),
        (b'"],"extra_params":{}}', "too late"),
        (b'"],"n":100}', "n is a whole number"),
        (b'"],"n" : 9 , "a":1}', "n is a whole number"),
        (b'"],"n":[1]}', "n is a whole number"),
        (b'"],"n":1' + b"0" * 70, "n is a whole number"),
        (b'"],"n":1,"n":1}', "more than once"),
        (b'"],"n":1x}', "not valid JSON"),
        (b'"],"temperature":2.5}', "temperature is a number"),
        (b'",' + b"[" * 1030, "nested too deeply"),
        (b'",' + b"[]," * 500_001, "arrays and objects"),
        (b'"]' + b',"k":0' * 10_000 + b"}", "keys"),
        (b'"]', "ends in the middle"),
        (b'"]} x', "not valid JSON"),
        (b'"],}', "not valid JSON"),
        (b'"],"a" 1}', "not valid JSON"),
        (b'"],"a":}', "not valid JSON"),
        (b'"] "a":1}', "not valid JSON"),
        (b'"],"\x01":1}', "not valid JSON"),
        (b'"],"' + b"k" * 5000, "longer than"),
        (b'"],' + b" " * 5000, "longer than"),
    ],
)
def test_what_cannot_go_on_is_refused(rest: bytes, message: str) -> None:
    for size in (len(rest), 1):
        passage = Passage(BEGINNING, 9999)
        passage.kind = CHAT
        with pytest.raises(Refused, match=message) as refusal:
            through(passage, [rest[at : at + size] for at in range(0, len(rest), size)], "new")
        assert refusal.value.failure.status == 400


@pytest.mark.parametrize("raw", [b"[", b"x", b'{"a" "b"', b'{"a":1,"a":2,', b"{,", b'{"a":1 2', b'{"\\x":1,'])
def test_a_beginning_of_nothing_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        Passage(raw, 99)
    assert refusal.value.failure.status == 400


def test_what_is_allowed_late_goes_on() -> None:
    rest = b'"],"n":5,"temperature" : 0.5 ,"stream":true}'
    for size in (len(rest), 1, 3):
        passage = Passage(BEGINNING, len(BEGINNING) + len(rest))
        passage.kind = CHAT
        made = through(passage, [rest[at : at + size] for at in range(0, len(rest), size)], "")
        assert b"".join(made) == BEGINNING + rest


def test_a_custom_body_has_a_model_of_its_own() -> None:
    passage = Passage(b'{"model":1,"inputs":[', 99)
    passage.kind = CUSTOM
    assert b"".join(through(passage, [b'],"model":2}'], "")) == b'{"model":1,"inputs":[],"model":2}'
