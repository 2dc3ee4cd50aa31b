"""`extra_params`, `n` and `temperature` on /invocations; bodies of other paths keep their bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.runtime.router.http.errors import Refused
from servestate.runtime.router.messages.body import CHAT, COMPLETION, CUSTOM, EMBEDDING, parse, without
from servestate.runtime.router.messages.parameters import check, merged
from tests.router import rig
from tests.router.rig import ask, request, serving
from tests.router.upstreams import Upstream, entity, table

INVOKE = "/serving-endpoints/chat-ep/invocations"
M = b'"messages":[]'


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"messages":[],"extra_params":{"top_p":"0.50"}}', b'{"messages":[],"top_p":0.50}'),
        (b'{"extra_params":{"a":"-1e3"} , "messages":[ ] }', b'{"messages":[ ] ,"a":-1e3}'),
        (b'{"messages":[],"extra_params":{"a":"true","b":"false"}}', b'{"messages":[],"a":true,"b":false}'),
        (b'{"messages":[],"extra_params":{"a":"null","b":"[1]"}}', b'{"messages":[],"a":"null","b":"[1]"}'),
        (b'{"messages":[],"extra_params":{"a":"01","b":" 1"}}', b'{"messages":[],"a":"01","b":" 1"}'),
        (b'{"messages":[],"extra_params":{"a":"1e999","b":"NaN"}}', b'{"messages":[],"a":"1e999","b":"NaN"}'),
        (b'{"messages":[],"extra_params":{"a":1,"b":[true]}}', b'{"messages":[],"a":1,"b":[true]}'),
        (b'{"n":2,"messages":[],"extra_params":{"n":"5"}}', b'{"n":2,"messages":[]}'),
        (b'{"messages":[],"extra_params":{}}', b'{"messages":[]}'),
        (b'{"messages":[],"extra_params":{"usage_context":"x","extra_params":"y"}}', b'{"messages":[]}'),
        (b'{"extra_params":{"a":"1"},"messages":[],"extra_params":{"b":"2"}}', b'{"messages":[],"b":2}'),
        (b'{"messages":[],"extra_params":{"\\u0061":"\xc3\xa9\\n"}}', b'{"messages":[],"a":"\xc3\xa9\\n"}'),
        (b'{"prompt":"x","extra_params":{"stop":"}"}}', b'{"prompt":"x","stop":"}"}'),
        (b'{"input":"x","extra_params":{"dimensions":"3"}}', b'{"input":"x","dimensions":3}'),
        (b'{"inputs":[1],"extra_params":{"a":"1"}}', b'{"inputs":[1],"extra_params":{"a":"1"}}'),
        (b'{"messages":[1.50] }', b'{"messages":[1.50] }'),
    ],
)
def test_extra_parameters_join_the_body(raw: bytes, expected: bytes) -> None:
    sent, document = merged(raw, parse(raw))
    assert sent == expected
    assert document == parse(expected)


@given(
    st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.integers(-9, 9) | st.none(), max_size=4),
    st.dictionaries(
        st.text(max_size=4), st.text(max_size=4) | st.from_regex(r"-?[0-9]{1,3}", fullmatch=True)
    ),
    st.sampled_from([None, 1]),
)
def test_nothing_is_overridden_and_all_is_there(
    own: dict[str, Any], extra: dict[str, str], indent: int | None
) -> None:
    raw = json.dumps({**own, "messages": [], "extra_params": extra}, indent=indent).encode()
    sent, document = merged(raw, parse(raw))
    assert json.loads(sent) == document
    own = {**own, "messages": []}
    assert {key: document[key] for key in own} == own
    assert document.keys() == own.keys() | (extra.keys() - {"usage_context", "client_request_id"})


@pytest.mark.parametrize("value", [b"1", b"null", b"[]", b'"x"', b"true"])
def test_extra_parameters_that_are_no_map_are_refused(value: bytes) -> None:
    raw = b'{"messages":[],"extra_params":%b}' % value
    with pytest.raises(Refused, match="not a map"):
        merged(raw, parse(raw))


def test_members_that_stand_thousands_of_times_are_taken_out_at_once() -> None:
    many = b",".join([b'"extra_params":{"a":1}'] * 20_000)
    for raw in (b'{%b,"n":1}' % many, b'{"n":1,%b}' % many, b'{%b,"n":1,%b}' % (many, many)):
        assert without(raw, frozenset({"extra_params"})) == b'{"n":1}'
    assert without(b"{%b}" % many, frozenset({"extra_params"})) == b"{}"


GOOD: list[dict[str, Any]] = [{}, {"n": 1}, {"n": 5}, {"n": None}, {"temperature": 0}, {"temperature": 2.0}]
BAD: list[dict[str, Any]] = [{"n": 0}, {"n": 6}, {"n": -1}, {"n": 1.0}, {"n": True}, {"n": "2"}, {"n": [1]}]
BAD += [{"temperature": -0.01}, {"temperature": 2.01}, {"temperature": True}, {"temperature": "1"}]


def test_ranges() -> None:
    for kind in (CHAT, COMPLETION):
        for document in GOOD:
            check(kind, document)
        for document in BAD:
            with pytest.raises(Refused) as refusal:
                check(kind, document)
            assert (refusal.value.failure.status, refusal.value.failure.code) == (
                400,
                "INVALID_PARAMETER_VALUE",
            )
    for kind in (EMBEDDING, CUSTOM):
        for document in BAD:
            check(kind, document)


def test_over_http_on_invocations_only() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            raw = b'{"messages":[],"extra_params":{"top_k":"3","model":"evil"},"client_request_id":"1"}'
            got = await ask(r, request(raw, INVOKE))
            assert (got.status, got.fields["served-model-name"]) == (200, "a")
            assert json.loads(up.received[-1].body) == {"messages": [], "top_k": 3, "model": "engine-model"}
            for content, status in (
                (b'{"messages":[],"n":6}', 400),
                (b'{"messages":[],"extra_params":{"n":"6"}}', 400),
                (b'{"messages":[],"extra_params":{"prompt":"x"}}', 400),
                (b'{"messages":[],"extra_params":[]}', 400),
                (b'{"prompt":"x","temperature":3}', 400),
                (b'{"input":"x","temperature":3}', 200),
            ):
                got = await ask(r, request(content, INVOKE))
                assert got.status == status, content
                assert status == 200 or got.json()["error_code"] == "INVALID_PARAMETER_VALUE"
            raw = b'{"model":"chat-ep","messages":[],"n":6,"extra_params":{"a":"1"}}'
            for target in ("/v1/chat/completions", "/serving-endpoints/chat/completions"):
                assert (await ask(r, request(raw, target))).status == 200
                assert up.received[-1].body == raw.replace(b"chat-ep", b"engine-model")

    rig.run(body())
