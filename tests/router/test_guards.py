"""Guardrails: what they refuse, what they mask, and that not one other byte changes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from servestate.planner.table import Guard
from servestate.runtime.router.guards import pii
from servestate.runtime.router.guards.guard import LiveGuard
from servestate.runtime.router.http.errors import Refused
from servestate.runtime.router.messages.body import CHAT, COMPLETION, CUSTOM, EMBEDDING, Kind
from tests.router.rig import run
from tests.router.upstreams import Upstream, answer, says

WORDS = LiveGuard(Guard(("secret plan", "ÄRGER")))
MASK = LiveGuard(Guard((), "MASK"))
BLOCK = LiveGuard(Guard((), "BLOCK"))
BOTH = LiveGuard(Guard(("secret plan",), "MASK"))


def sent(guard: LiveGuard, kind: Kind, body: Any) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return guard.request(kind, raw, orjson.loads(raw))


def chat(*contents: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": one} for one in contents], **more}


def why(refused: pytest.ExceptionInfo[Refused]) -> str:
    failure = refused.value.failure
    assert (failure.status, failure.code) == (400, "INVALID_PARAMETER_VALUE")
    return failure.message


# Keywords.

TOOL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"q": "s\\u0065cret plan"}'}}

KEYWORD_IN: list[tuple[Kind, Any]] = [
    (CHAT, chat("the Secret  PLAN is")),
    (CHAT, chat("hello", "the secret\nplan")),
    (CHAT, b'{"messages":[{"role":"user","content":"s\\u0065cr\\u0065t pl\\u0061n"}]}'),
    (CHAT, b'{"messages":[{"role":"user","content":"secret plan"}],"messages":[]}'),
    (CHAT, chat("s\u200becret\u00a0pl\u00adan")),
    (CHAT, chat("ｓｅｃｒｅｔ　ｐｌａｎ")),
    (CHAT, chat("𝐬𝐞𝐜𝐫𝐞𝐭 plan")),
    (CHAT, chat("Kein A\u0308rger!")),
    (CHAT, chat([{"type": "text", "text": "a secret plan"}])),
    (CHAT, chat([{"type": "text", "text": "a secret"}, {"type": "text", "text": "plan"}])),
    (CHAT, chat([{"type": "text", "text": "a sec"}, {"type": "text", "text": "ret plan"}])),
    (CHAT, chat([{"type": "image_url", "image_url": {"url": "https://x.example/secret plan"}}])),
    (CHAT, chat([{"text": "secret"}, {"image_url": {"url": "https://x.example/"}}, {"text": "plan"}])),
    (CHAT, chat(["sec", "ret plan"])),
    (CHAT, chat([{"type": "image_url", "image_url": {"url": "data:text/plain;base64,secret plan"}}])),
    (CHAT, {"messages": [{"role": "assistant", "content": None, "tool_calls": [TOOL]}]}),
    (CHAT, {"messages": [{"role": "tool", "tool_call_id": "1", "content": "secret plan"}]}),
    (CHAT, chat("hi", tools=[{"type": "function", "function": {"name": "f", "description": "secret plan"}}])),
    (CHAT, chat("hi", documents=[{"title": "secret plan"}])),
    (COMPLETION, {"prompt": "Secret plan"}),
    (COMPLETION, {"prompt": ["a", "secret plan"]}),
    (COMPLETION, {"prompt": "a", "suffix": "secret plan"}),
    (EMBEDDING, {"input": ["a", "the secret plan"]}),
    (CUSTOM, {"inputs": {"any": [{"deep": ["secret plan"]}]}}),
    (CUSTOM, {"dataframe_split": {"columns": ["id"], "data": [[1, "secret plan"]]}}),
    (CUSTOM, {"dataframe_records": [{"id": "secret plan", "role": "x"}]}),
]


@pytest.mark.parametrize(("kind", "body"), KEYWORD_IN)
def test_a_keyword_refuses_wherever_it_stands(kind: Kind, body: Any) -> None:
    with pytest.raises(Refused) as refused:
        sent(WORDS, kind, body)
    assert why(refused) == "a guardrail refused the request: it holds an invalid keyword"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CHAT, chat("the plan is no secret")),
        (CHAT, chat("a secret", "plan")),  # two messages are two texts
        (CHAT, chat("сecret plan")),  # another letter
        (CHAT, {**chat("hi"), "model": "secret plan", "stop": ["secret plan"]}),
        (CHAT, chat("hi", usage_context={"a": "secret plan"})),
        (COMPLETION, {"prompt": "", "max_tokens": 5}),
        (EMBEDDING, {"input": "plan secret"}),
        (CUSTOM, {"inputs": [1.5, 2, True, None]}),
    ],
)
def test_without_a_keyword_a_body_passes_untouched(kind: Kind, body: Any) -> None:
    raw = json.dumps(body, indent=1).encode()
    assert WORDS.request(kind, raw, body) is raw


def test_names_of_the_structure_are_no_content() -> None:
    guard = LiveGuard(Guard(("user", "text", "type", "function")))
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "tool_calls": [{"id": "text", "type": "function", "function": {}}]},
        ]
    }
    assert sent(guard, CHAT, body) == json.dumps(body).encode()
    body["messages"][1]["tool_calls"] = [{"function": {"arguments": '{"role": "user"}'}}]
    with pytest.raises(Refused):
        sent(guard, CHAT, body)


def tool(**function: Any) -> dict[str, Any]:
    return chat("hi", tools=[{"type": "function", "function": {"name": "f", **function}}])


def schema(*names: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}, **more}


READ_AS_NAMES: list[tuple[Kind, Any]] = [
    (CHAT, {"messages": [{"role": "secret plan", "content": "hi"}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "secret plan", "text": "hi"}]}]}),
    (CHAT, {"messages": [{"role": "tool", "tool_call_id": "secret plan", "content": "hi"}]}),
    (CHAT, {"messages": [{"role": "user", "name": "secret plan", "content": "hi"}]}),
    (CHAT, {"messages": [{"role": "user", "content": "hi", "secret plan": 1}]}),
    (CHAT, tool(name="secret plan")),
    (CHAT, tool(parameters=schema("Secret  Plan"))),
    (CHAT, tool(parameters=schema("a", properties={"b": schema("secret plan")}))),
    (CHAT, tool(parameters=schema("a", properties={"logprobs": {"description": "secret plan"}}))),
    (CHAT, {"messages": [{"role": "user", "content": [{"token_ids": {"text": "secret plan"}}]}]}),
    (CHAT, tool(parameters=schema("a", **{"$defs": {"secret plan": {}}}))),
    (CHAT, b'{"messages":[],"tools":[{"function":{"parameters":{"properties":{"s\\u0065cret plan":{}}}}}]}'),
    (CHAT, chat("hi", functions=[{"name": "f", "parameters": schema("secret plan")}])),
    (CHAT, chat("hi", documents=[{"secret plan": "x"}])),
    (
        CHAT,
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"arguments": {"secret plan": 1}}}]}
            ]
        },
    ),
    (COMPLETION, {"prompt": "hi", "response_format": {"json_schema": {"schema": schema("secret plan")}}}),
    (CUSTOM, {"dataframe_records": [{"a": 1, "secret plan": 2}]}),
]


@pytest.mark.parametrize(("kind", "body"), READ_AS_NAMES)
def test_a_keyword_refuses_as_a_name_that_the_model_reads(kind: Kind, body: Any) -> None:
    with pytest.raises(Refused) as refused:
        sent(WORDS, kind, body)
    assert why(refused) == "a guardrail refused the request: it holds an invalid keyword"


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
def test_known_roles_are_no_content_and_others_are(role: str) -> None:
    guard = LiveGuard(Guard((role, "pirate")))
    message = {"role": role, "content": "hi"}
    assert sent(guard, CHAT, {"messages": [message]})
    for other in ("pirate", f"{role} pirate", f" {role}"):
        with pytest.raises(Refused):
            sent(guard, CHAT, {"messages": [{"role": other, "content": "hi"}]})


def test_the_vocabulary_of_schemas_is_no_content_but_a_property_of_that_name_is() -> None:
    guard = LiveGuard(Guard(("properties", "required", "description", "usage")))
    body = tool(parameters=schema("a", required=["a"], description="x"), description="y")
    body["stream_options"] = {"include_usage": True}
    assert sent(guard, CHAT, body) == json.dumps(body).encode()
    with pytest.raises(Refused):
        sent(guard, CHAT, tool(parameters=schema("description")))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CHAT, {"messages": [{"role": "jane@example.com", "content": "hi"}]}),
        (CHAT, {"messages": [{"role": "user", "name": "jane@example.com", "content": "hi"}]}),
        (CHAT, tool(name="415-555-2671")),
        (CHAT, tool(parameters=schema("jane@example.com"))),
        (CUSTOM, {"dataframe_records": [{"jane@example.com": 1}]}),
    ],
)
def test_personal_data_in_a_name_is_refused_and_never_rewritten(kind: Kind, body: Any) -> None:
    for guard in (BLOCK, MASK):
        with pytest.raises(Refused) as refused:
            sent(guard, kind, body)
        assert "personal data" in why(refused)
        assert "jane" not in why(refused)


def test_a_column_called_name_is_masked() -> None:
    raw = b'{"dataframe_records":[{"name":"jane@example.com"}]}'
    assert MASK.request(CUSTOM, raw, {}) == raw.replace(b"jane@example.com", b"<EMAIL_ADDRESS>")


def test_many_rows_of_the_same_columns_are_one_set_of_names() -> None:
    row = {f"column_with_a_long_name_{n}": n for n in range(10)}
    body = {"dataframe_records": [row] * 20_000}
    assert sent(BLOCK, CUSTOM, body)


def test_pictures_pass_and_files_do_not() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8abc=="}}
    sound = {"type": "input_audio", "input_audio": {"data": "abcd", "format": "wav"}}
    guard = LiveGuard(Guard(("abc",)))
    sent(guard, CHAT, chat([picture, sound]))
    file = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}
    with pytest.raises(Refused) as refused:
        sent(guard, CHAT, chat([file]))
    assert "cannot be judged" in why(refused)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (COMPLETION, {"prompt": [15496, 995]}),
        (COMPLETION, {"prompt": [[15496], [995]]}),
        (COMPLETION, {"prompt": ["a", 7]}),
        (COMPLETION, b'{"prompt":[1],"prompt":"a"}'),
        (COMPLETION, {"prompt": "", "prompt_embeds": "AAAA"}),
        (EMBEDDING, {"input": [1, 2, 3]}),
    ],
)
def test_what_is_no_text_is_refused(kind: Kind, body: Any) -> None:
    with pytest.raises(Refused) as refused:
        sent(WORDS, kind, body)
    assert "cannot be judged" in why(refused)


def test_text_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servestate.runtime.router.guards.guard._TEXT_CHARACTERS", 1000)
    sent(WORDS, CHAT, chat("a" * 700))
    for contents in (["a" * 1001], ["a" * 480, "b" * 480], [""] * 30):
        with pytest.raises(Refused) as refused:
            sent(WORDS, CHAT, chat(*contents))
        assert "more than 1000 characters" in why(refused)


def test_more_numbers_than_can_be_judged_are_refused() -> None:
    with pytest.raises(Refused) as refused:
        sent(MASK, CHAT, chat("1234567 a " * 2001))
    assert "too much to look at" in why(refused)


@pytest.mark.parametrize("keyword", ["", " \n", "\u200b"])
def test_a_keyword_that_every_text_holds_makes_no_guard(keyword: str) -> None:
    with pytest.raises(ValueError, match="fix:"):
        LiveGuard(Guard(("word", keyword)))


def test_without_its_libraries_a_guard_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "stdnum", None)
    with pytest.raises(ValueError, match=r"servestate\[pii\]"):
        LiveGuard(Guard((), "BLOCK"))
    LiveGuard(Guard(("words need none",)))


# Personal data in requests.

PRIVATE: list[tuple[Kind, Any]] = [
    (CHAT, chat("I am jane@example.com")),
    (CHAT, chat([{"type": "text", "text": "jane@exa"}, {"type": "text", "text": "mple.com"}])),
    (
        CHAT,
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"arguments": '{"n":"536-22-1234"}'}}]}
            ]
        },
    ),
    (
        CHAT,
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"arguments": "{4111111111111111"}}]}
            ]
        },
    ),
    (CHAT, {"messages": [], "user": "jane@example.com"}),
    (COMPLETION, {"prompt": ["call 415-555-2671"]}),
    (EMBEDDING, {"input": "GB82 WEST 1234 5698 7654 32"}),
    (CUSTOM, {"dataframe_split": {"columns": ["a"], "data": [["jane@example.com"]]}}),
]


@pytest.mark.parametrize(("kind", "body"), PRIVATE)
def test_personal_data_is_refused_or_masked(kind: Kind, body: Any) -> None:
    with pytest.raises(Refused) as refused:
        sent(BLOCK, kind, body)
    assert re.search(r"it holds personal data \([A-Z_, ]+\)", why(refused))
    assert "jane" not in why(refused)
    masked = sent(MASK, kind, body)
    json.loads(masked)
    assert re.search(rb"<[A-Z_]+>", masked)
    for private in (b"jane", b"mple", b"536", b"4111", b"415", b"GB82"):
        assert private not in masked


def parts(*texts: bytes) -> bytes:
    joined = b" , ".join(b'{"type":"text", "text":"%b"}' % text for text in texts)
    return b'{"messages":[{"content":[%b]}]}' % joined


def call(arguments: str) -> bytes:
    function = b'{"arguments": %b}' % json.dumps(arguments).encode()
    return b'{"messages":[{"tool_calls":[{"function":%b}]}]}' % function


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            b'{ "messages" : [{"content":"caf\\u00e9 \\ud83d\\ude00 jo\\u0065@x.com \\/ \\n\xc3\xa9"}],'
            b'"t":1.50}',
            b'{ "messages" : [{"content":"caf\\u00e9 \\ud83d\\ude00 <EMAIL_ADDRESS> \\/ \\n\xc3\xa9"}],'
            b'"t":1.50}',
        ),
        (
            parts(b"m jim@exa", b"mple.com \\u0021 ", b"a@b.org"),
            parts(b"m <EMAIL_ADDRESS>", b" \\u0021 ", b"<EMAIL_ADDRESS>"),
        ),
        (parts(b"call 415", b"-555", b"-2671 now"), parts(b"call <PHONE_NUMBER>", b"", b" now")),
        (
            call('{"a": "x\\u0040y.org", "n" :4111111111111111, "\\u0062@c.org" : [1.50]}'),
            call('{"a": "<EMAIL_ADDRESS>", "n" :"<CREDIT_CARD>", "<EMAIL_ADDRESS>" : [1.50]}'),
        ),
        (
            b'{"messages":[{"content":"a@b.org"}],"messages":[{"content":"c@d.org"}]}',
            b'{"messages":[{"content":"<EMAIL_ADDRESS>"}],"messages":[{"content":"<EMAIL_ADDRESS>"}]}',
        ),
    ],
)
def test_masking_to_the_byte(raw: bytes, expected: bytes) -> None:
    assert MASK.request(CHAT, raw, {}) == expected


PIECE = st.text(
    st.characters(exclude_categories=["Cs", "Nd", "No", "Nl"], exclude_characters="@＠﹫"), max_size=12
)
SECRETS = st.sampled_from(["jane@example.com", "415-555-2671", "4111 1111 1111 1111", "536-22-1234"])
STYLE = st.sampled_from([{}, {"ensure_ascii": False}, {"indent": 1}, {"separators": (" , ", " :\t")}])


@given(st.lists(st.tuples(PIECE, SECRETS | st.just(""), PIECE), min_size=1, max_size=6), STYLE, st.booleans())
def test_every_other_byte_stays(
    texts: list[tuple[str, str, str]], style: dict[str, Any], in_parts: bool
) -> None:
    """A body made of texts around finds, against one made of the same texts around labels."""
    LABELS = {
        "j": "<EMAIL_ADDRESS>",
        "41": "<PHONE_NUMBER>",
        "4111": "<CREDIT_CARD>",
        "5": "<US_SSN>",
        "": "",
    }

    def label(secret: str) -> str:
        return LABELS[next(start for start in ("4111", "41", "5", "j", "") if secret.startswith(start))]

    def body(values: Iterable[str]) -> bytes:
        values = list(values)
        content: Any = [[{"type": "text", "text": value} for value in values]] if in_parts else values
        return json.dumps({"n": 1.0, **chat(*content), "x": None}, **style).encode()

    # White space and a mark no address or number has keep the random text from being part of a find.
    raw = body(f"{before} ; {secret} ; {after} ;" for before, secret, after in texts)
    want = body(f"{before} ; {label(secret)} ; {after} ;" for before, secret, after in texts)
    assert MASK.request(CHAT, raw, orjson.loads(raw)) == want


# Answers.


CHOICE = {"index": 0, "logprobs": None, "finish_reason": "stop"}


def completion(content: Any, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **more}
    choice = {**CHOICE, "message": message}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def test_an_answer_is_masked_in_place() -> None:
    raw = json.dumps(completion("write to jane@example.com"), indent=2).encode()
    got = MASK.answer(CHAT, raw, streaming=False)
    assert got == raw.replace(b"jane@example.com", b"<EMAIL_ADDRESS>")
    parsed = ChatCompletion.model_validate_json(got)
    assert parsed.choices[0].message.content == "write to <EMAIL_ADDRESS>"
    text = json.dumps(
        {**completion(""), "object": "text_completion", "choices": [{**CHOICE, "text": "a@b.org"}]}
    )
    spoken = Completion.model_validate_json(MASK.answer(COMPLETION, text.encode(), streaming=False))
    assert spoken.choices[0].text == "<EMAIL_ADDRESS>"


@pytest.mark.parametrize(
    "answer",
    [
        completion("the secret plan"),
        completion(None, tool_calls=[TOOL]),
        completion("x", reasoning_content="secret plan"),
        completion(None, refusal="no secret plan"),
        completion([{"type": "text", "text": "secret"}, {"type": "text", "text": "plan"}]),
        completion(None, tool_calls=[{"function": {"name": "secret plan", "arguments": "{}"}}]),
        completion(None, tool_calls=[{"function": {"name": "f", "arguments": {"secret plan": 1}}}]),
        {"error": {"message": "secret plan"}},
        ["secret plan"],
        "secret plan",
    ],
)
def test_an_answer_with_a_keyword_is_refused(answer: Any) -> None:
    with pytest.raises(Refused) as refused:
        WORDS.answer(CHAT, json.dumps(answer).encode(), streaming=False)
    assert why(refused) == "a guardrail refused the answer: it holds an invalid keyword"


@pytest.mark.parametrize(
    "content", [b"", b"not json", b'{"choices":[', b"\x1f\x8b\x08", b'"\xff"', b'{"a":1}{"b":2}', b"NaN"]
)
def test_an_answer_that_cannot_be_read_is_refused(content: bytes) -> None:
    for kind in (CHAT, COMPLETION, CUSTOM):
        with pytest.raises(Refused) as refused:
            WORDS.answer(kind, content, streaming=False)
        assert "cannot be judged" in why(refused)


def test_embeddings_hold_no_text() -> None:
    content = b'{"data":[{"embedding":"//8A"}]}'
    assert BOTH.answer(EMBEDDING, content, streaming=False) is content


def test_what_was_masked_is_not_said_by_its_tokens() -> None:
    raw = (
        b'{"choices":[{"index":0,"message":{"content":"a@b.org"},"logprobs" : {"content":[{"token":"a@b"}]} ,'
        b'"token_ids":[1,2]}],"prompt_logprobs":[{"1":{"decoded_token":"]}"}}] , '
        b'"logprobs":"x" ,"token_ids":null}'
    )
    want = (
        b'{"choices":[{"index":0,"message":{"content":"<EMAIL_ADDRESS>"},"logprobs" : null ,'
        b'"token_ids":null}],"prompt_logprobs":null , "logprobs":null ,"token_ids":null}'
    )
    assert MASK.answer(CHAT, raw, streaming=False) == want
    kept = raw.replace(b'"a@b.org"', b'"hello"')
    assert MASK.answer(CHAT, kept, streaming=False) is kept


# Streams.


def events(*chunks: Any, end: str = "\n\n") -> bytes:
    lines = (one if isinstance(one, str) else json.dumps(one) for one in chunks)
    return "".join(f"data: {line}{end}" for line in lines).encode()


def chunk(delta: dict[str, Any] | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta or {}, "finish_reason": None, **more}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


USAGE = {**chunk(), "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
END = (chunk(finish_reason="stop"), USAGE, "[DONE]")


def spoken(*texts: str, index: int = 0) -> list[dict[str, Any]]:
    return [chunk({"content": text}, index) for text in texts]


def read(stream: bytes) -> list[ChatCompletionChunk]:
    """The chunks, as the OpenAI client's own types read them."""
    lines = stream.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [ChatCompletionChunk.model_validate_json(line.removeprefix("data: ")) for line in lines[:-2]]


def test_the_openai_client_reads_a_rebuilt_stream() -> None:
    stream = events(chunk({"role": "assistant"}), *spoken("to jane@", "example", ".com"), *END)

    async def body() -> None:
        async with Upstream(says(answer(MASK.answer(CHAT, stream, streaming=True)))) as upstream:
            async with openai.AsyncOpenAI(
                api_key="k", base_url=f"{upstream.url}/v1", max_retries=0
            ) as client:
                chunks = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "hi"}], stream=True
                )
                said = [c.choices[0].delta.content async for c in chunks if c.choices]
            assert said == [None, "to <EMAIL_ADDRESS>", "", "", None]

    run(body())


def test_a_masked_stream_says_its_text_at_once() -> None:
    first, *rest = spoken("call ", "415", "-555-", "2671", " or so")
    stream = events(chunk({"role": "assistant", "content": ""}), first, *rest, *END)
    want = events(
        chunk({"role": "assistant", "content": "call <PHONE_NUMBER> or so"}), *spoken(*[""] * 5), *END
    )
    assert MASK.answer(CHAT, stream, streaming=True) == want


def test_a_stream_without_finds_passes_untouched() -> None:
    stream = b": ping\n\nevent: x\nid: 7\nretry: 5\n" + events(*spoken("hel", "lo"), *END, end="\r\n\r\n")
    assert BOTH.answer(CHAT, stream, streaming=True) is stream
    assert BOTH.answer(CHAT, b"", streaming=True) == b""


def test_a_long_stream_is_judged_whole() -> None:
    stream = events(*spoken(*["a token "] * 15_000), *END)
    assert BOTH.answer(CHAT, stream, streaming=True) is stream


def test_choices_are_texts_of_their_own() -> None:
    """Two choices take turns, each alone in its chunk; only one holds an address."""
    stream = events(
        *spoken("jane@"), *spoken("no ", index=1), *spoken("example.com"), *spoken("body", index=1), *END
    )
    got = MASK.answer(CHAT, stream, streaming=True)
    want = [*spoken("<EMAIL_ADDRESS>"), *spoken("no ", index=1), *spoken(""), *spoken("body", index=1)]
    assert got == events(*want, *END)


def test_arguments_of_tool_calls_stay_json() -> None:
    pieces = ['{"to": "ja', 'ne@example.com", "n', 'o": 41111', "11111111111}"]
    deltas = [{"tool_calls": [{"index": 1, "function": {"arguments": piece}}]} for piece in pieces]
    got = MASK.answer(CHAT, events(*map(chunk, deltas), *END), streaming=True)
    chunks = [json.loads(line[6:]) for line in got.decode().splitlines() if line.startswith("data: {")]
    said = [c["choices"][0]["delta"].get("tool_calls") for c in chunks[:4]]
    assert [one[0]["function"]["arguments"] for one in said][1:] == ["", "", ""]
    arguments = json.loads(said[0][0]["function"]["arguments"])
    assert arguments == {"to": "<EMAIL_ADDRESS>", "no": "<CREDIT_CARD>"}


@pytest.mark.parametrize(
    "stream",
    [
        events(*spoken("the sec", "ret ", "plan"), *END),
        events(chunk({"reasoning_content": "secret plan"}), *END),
        events({"choices": [{"index": 0, "text": "secret "}]}, {"choices": [{"index": 0, "text": "plan"}]}),
        events({"error": {"message": "secret plan"}}),
        events({"type": "response.output_text.delta", "delta": "secret "}, {"delta": "plan"}),
        b": secret plan\n\n",
        b"event: secret plan\n\n",
    ],
)
def test_a_stream_with_a_keyword_is_refused(stream: bytes) -> None:
    with pytest.raises(Refused) as refused:
        WORDS.answer(CHAT, stream, streaming=True)
    assert "an invalid keyword" in why(refused)


@pytest.mark.parametrize(
    "stream",
    [
        b"data: {\n\n",
        b"data: hello\n\n",
        b'data: {"choices":\ndata: []}\n\ndata: {"a":1}\n\n',
        b'data: {"a":1}\ndata: {"b":2}\n\n',
        b'{"choices":[]}',
        b"data\n\n",
        b"foo: bar\n\n",
        b"data: \xff\n\n",
        b": jane@example.com\n\n",
    ],
)
def test_a_stream_that_cannot_be_read_is_refused(stream: bytes) -> None:
    with pytest.raises(Refused) as refused:
        MASK.answer(CHAT, stream, streaming=True)
    assert "cannot be judged" in why(refused)


@given(
    st.lists(
        st.sampled_from(["hi ", "jane@example.com ", "415-555-2671 ", "é😀\u2028", '\\ "\n']), max_size=5
    ),
    st.data(),
)
def test_the_openai_types_read_what_was_rebuilt(words: list[str], data: st.DataObject) -> None:
    """However a text is cut into pieces, the client puts the masked text together from them."""
    text = "".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stream = events(chunk({"role": "assistant"}), *spoken(*pieces), *END)
    chunks = read(MASK.answer(CHAT, stream, streaming=True))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == text.replace("jane@example.com", "<EMAIL_ADDRESS>").replace(
        "415-555-2671", "<PHONE_NUMBER>"
    )
    assert len(chunks) == len(pieces) + 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 3


# Negative controls: what these tests find if the guard does not look.


def test_the_tests_see_a_guard_that_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pii.Detector, "find", lambda *_: [])
    monkeypatch.setattr("servestate.runtime.router.guards.guard.folded", lambda text: "")
    blind = LiveGuard(Guard((), "BLOCK"))
    for kind, body in PRIVATE:
        sent(blind, kind, body)
    for kind, body in KEYWORD_IN:
        sent(WORDS, kind, body)
