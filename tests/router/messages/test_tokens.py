"""Usage: found in answers, asked for in streams, taken out again, and estimated where it is missing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.runtime.router.messages.body import CHAT, COMPLETION, EMBEDDING
from servestate.runtime.router.messages.tokens import (
    UNBOUNDED_COMPLETION,
    Meter,
    asking_usage,
    asks_usage,
    prefix_of,
    prompt_estimate,
    reservation,
    usage_in,
)
from servestate.runtime.router.records.record import Usage

USAGE = b'"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}'
LAST = b'data: {"id":"x","choices":[],%b}\n\n' % USAGE
CONTENT = b'data: {"choices":[{"index":0,"delta":{"content":"four letters"}}]}\n\n'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{%b}" % USAGE, Usage(7, 5)),
        (USAGE, Usage(7, 5)),  # the end of an answer whose beginning is gone
        (
            b'{"usage" : {"prompt_tokens": 7, "completion_tokens": 5, "details": {"cached": 1}}, "x": 1}',
            Usage(7, 5),
        ),
        (b'{"data":[],"usage":{"prompt_tokens":3,"total_tokens":3}}', Usage(3, 0)),
        (b'{"choices":[{"text":"\\"usage\\":{\\"prompt_tokens\\":9}"}],%b}' % USAGE, Usage(7, 5)),
        (b'{"choices":[{"text":"\\"usage\\":{\\"prompt_tokens\\":9}"}]}', None),
        (b'{"usage":null}', None),
        (b'{"usage":{"prompt_tokens":-1}}', None),
        (b'{"usage":{"prompt_tokens":"7"}}', None),
        (b'{"usage":{"prompt_tokens":7', None),
        (b"", None),
    ],
)
def test_usage_is_found_where_it_stands_and_nowhere_else(content: bytes, expected: Usage | None) -> None:
    assert usage_in(content) == expected


def test_a_json_answer_in_any_pieces_tells_its_usage() -> None:
    content = b'{"choices":[{"message":{"content":"hello"}}],%b}' % USAGE
    for cut in range(len(content)):
        meter = Meter(True, False)
        meter.piece(content[:cut], False)
        meter.piece(content[cut:], True)
        assert meter.usage == Usage(7, 5), cut


def test_the_event_that_only_the_router_asked_for_is_taken_out() -> None:
    meter = Meter(True, True)
    assert meter.passes(CONTENT)
    assert not meter.passes(LAST), "it has to be looked at line by line"
    assert meter.lines(CONTENT + LAST + b"data: [DONE]\n\n") == CONTENT + b"\ndata: [DONE]\n\n"
    assert meter.usage == Usage(7, 5)


def test_a_chunk_with_both_content_and_usage_stays() -> None:
    both = b'data: {"choices":[{"delta":{"content":"x"}}],%b}\n\n' % USAGE
    meter = Meter(True, True)
    assert meter.lines(both) == both
    assert meter.usage == Usage(7, 5)


def test_text_is_added_up_for_an_estimate() -> None:
    meter = Meter(True, False)
    assert meter.passes(CONTENT)
    assert meter.text == len("four letters")
    silent = Meter(False, False)
    assert silent.passes(CONTENT)
    assert silent.text == 0


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages":[],"stream":true}',
        b' {"messages" : [] , "stream":true } ',
        b'{"messages":[],"stream_options":{"include_usage":false},"stream":true}',
        b'{"stream_options":null,"messages":[]}',
        b'{"messages":[],"stream_options":{"chunk":1}}\n',
    ],
)
def test_the_wish_for_usage_is_added_and_nothing_else_changed(raw: bytes) -> None:
    document = json.loads(raw)
    assert not asks_usage(document)
    asking, said = asking_usage(raw, document)
    assert json.loads(asking) == said
    assert asks_usage(said)
    before = {key: value for key, value in document.items() if key != "stream_options"}
    assert {key: value for key, value in said.items() if key != "stream_options"} == before
    options = document.get("stream_options") or {}
    assert said["stream_options"] == {**options, "include_usage": True}


def test_what_a_request_may_use_is_its_prompt_and_the_most_of_its_answers() -> None:
    chat = {"messages": [{"role": "user", "content": "x" * 39}]}
    assert prompt_estimate(CHAT, chat) == 10
    assert reservation(CHAT, {**chat, "max_tokens": 50}) == 60
    assert reservation(CHAT, {**chat, "max_tokens": 50, "max_completion_tokens": 20, "n": 3}) == 70
    assert reservation(CHAT, chat) == 10 + UNBOUNDED_COMPLETION
    assert reservation(CHAT, {**chat, "max_tokens": "many"}) == 10 + UNBOUNDED_COMPLETION
    assert reservation(EMBEDDING, {"input": ["x" * 7, "y" * 8]}) == 4
    assert prompt_estimate(COMPLETION, {"prompt": [1, 2, 3]}) == 3
    parts = {"messages": [{"content": [{"type": "text", "text": "x" * 7}, {"type": "image_url"}]}]}
    assert prompt_estimate(CHAT, parts) == 2


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_no_json_is_too_odd_to_estimate(value: object) -> None:
    for kind, key in ((CHAT, "messages"), (COMPLETION, "prompt"), (EMBEDDING, "input")):
        assert prompt_estimate(kind, {key: value}) >= 0
        assert len(prefix_of(kind, {key: value})) <= 256
