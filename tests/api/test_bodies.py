"""Bodies that nobody should send: each is refused in the API's own form, and has no effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from servestate.runtime.api.call import Row
from servestate.runtime.api.routes import ROWS
from servestate.runtime.router.http.errors import NEVER_SAID
from tests.api.callers import ADMIN
from tests.api.guarded import API, Guarded
from tests.api.test_rows import target
from tests.api.wire import Answer, connected

NEVER_SENT = (405, 413, 415, 422, 500, 502)
WRITES = [row for row in ROWS if row.takes is not None]
MIB = 1 << 20
VICTIM = "victim"


@pytest.fixture(autouse=True)
def victim(guarded: Guarded) -> Iterator[None]:
    """An endpoint that all of it may change."""
    guarded.make(VICTIM)
    yield
    assert guarded.say("DELETE", f"/{VICTIM}", None).status == 200


def refused(got: Answer) -> str:
    """The message of a refusal, which is one of the API's."""
    assert got.status not in NEVER_SENT, got
    assert got.headers["content-type"] == "application/json"
    assert {*got.json} == {"error_code", "message"}, got.body
    message = got.json["message"]
    assert 0 < len(message) <= 4000
    assert not any(phrase in message.lower() for phrase in NEVER_SAID), message
    return str(message)


def every_write(site: Guarded, body: bytes, *fields: str) -> Iterator[tuple[Row, Answer]]:
    """The answers of all that take a body."""
    for row in WRITES:
        yield row, site.ask(row.verb, target(site, row, VICTIM), ADMIN, body, *fields)


def deep(depth: int, kind: str) -> str:
    """JSON of that depth."""
    return "[" * depth + "]" * depth if kind == "list" else '{"a":' * depth + "1" + "}" * depth


def wrapped(inner: str) -> list[str]:
    """Bodies with that JSON value in places that are looked into."""
    return [
        inner,
        f'{{"name": {inner}}}',
        f'{{"name": "deep", "config": {inner}}}',
        f'{{"name": "deep", "config": {{"served_entities": [{inner}], "traffic_config": {inner}}}}}',
        f'{{"served_entities": [{inner}], "traffic_config": {{"routes": {inner}}}}}',
        f'{{"config": {{"served_entities": [{{"environment_vars": {inner}}}]}}}}',
        f'{{"add_tags": [{{"key": "k", "value": {inner}}}], "delete_tags": [{inner}]}}',
        f'{{"rate_limits": [{inner}], "guardrails": {inner}, "fallback_config": {inner}}}',
        f'{{"email_notifications": {inner}, "telemetry_config": {inner}}}',
        f'{{"access_control_list": [{{"permission_level": {inner}, "user_name": {inner}}}]}}',
    ]


@pytest.mark.parametrize("depth", [50, 300, 1000, 5000])
def test_deep_nesting(guarded: Guarded, depth: int) -> None:
    for kind in ("list", "object"):
        for body in wrapped(deep(depth, kind)):
            for row, got in every_write(guarded, body.encode()):
                if got.status != 200 or depth > 50:  # what an unknown field holds does not matter
                    assert (row.path, got.status) == (row.path, 400), body[:80]
                    refused(got)


BROKEN = [
    b"{",
    b'{"name": ',
    b"{'name': 'x'}",
    b'{"name": "x",}',
    b'{"name": NaN}',
    b'{"name": Infinity}',
    b'{"name": 1e999}',
    b'{"name": "\\ud800"}',
    b'{"name": "\xff"}',
    b'{"name": "a\nb"}',
    b'\xef\xbb\xbf{"name": "x"}',
    '{"name": "x"}'.encode("utf-16"),
    b"\x1f\x8b\x08\x00",
    b"a=b&c=d",
    b"<x/>",
    b"\x00",
    b'{"name": "x"}{"name": "y"}',
]
NO_OBJECTS = [b"[]", b"1", b'"text"', b"true", b"[{}]", b"1.5", b"-0"]


@pytest.mark.parametrize("body", BROKEN + NO_OBJECTS)
def test_what_is_no_object_in_json(guarded: Guarded, body: bytes) -> None:
    for kind in (
        "application/json",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "",
    ):
        for row, got in every_write(guarded, body, f"Content-Type: {kind}"):
            assert (row.path, got.status, got.code) == (row.path, 400, "INVALID_PARAMETER_VALUE")
            refused(got)


@pytest.mark.parametrize("body", [b"", b"   ", b"null", b"{}"])
def test_nothing_at_all(guarded: Guarded, body: bytes) -> None:
    for _, got in every_write(guarded, body):
        if got.status != 200:  # tags, notifications and the like: nothing to change
            refused(got)


ODD_VALUES = [
    10**30,
    -(10**30),
    2**64,
    -1,
    0,
    1.5,
    1e308,
    True,
    False,
    "",
    " ",
    "x" * 100_000,
    "\x00",
    "\u202e\u0000\n\r",
    "\U0001f600" * 100,
    [],
    {},
    [None],
    {"": {"": None}},
    "; ".join(NEVER_SAID),
    "%s%n{0}{name}",
    "../../../etc/passwd",
    "{{secrets/servestate-api/x}}",
    "{{secrets/servestate-engine/access-tokens}}",
    "${var.x}",
]


def odd_bodies(value: Any) -> Iterator[dict[str, Any]]:
    """That value in every field of every body, one after the other."""
    entity = {"name": "e", "entity_name": "demo.models.chat", "entity_version": "1"}
    route = {"served_model_name": "e", "traffic_percentage": 100}
    for key in (
        "name",
        "entity_name",
        "entity_version",
        "workload_size",
        "workload_type",
        "environment_vars",
    ):
        yield {"name": "odd", "config": {"served_entities": [{**entity, key: value}]}}
    for key in ("external_model", "min_provisioned_throughput", "max_provisioned_concurrency"):
        yield {"name": "odd", "config": {"served_entities": [{"name": "e", key: value}]}}
    for key in route:
        yield {
            "name": "odd",
            "config": {"served_entities": [entity], "traffic_config": {"routes": [{**route, key: value}]}},
        }
    for key in ("name", "config"):
        yield {"name": "odd", key: value}
    for key in (
        "description",
        "tags",
        "ai_gateway",
        "rate_limits",
        "email_notifications",
        "telemetry_config",
    ):
        yield {"name": "odd", "config": {"served_entities": [{**entity, "entity_version": "no"}]}, key: value}
    for key in ("served_entities", "served_models", "traffic_config", "auto_capture_config"):
        yield {"name": "odd", "config": {key: value}, "served_entities": [entity], key: value}
    yield {"add_tags": value, "delete_tags": ["x"]}
    yield {"add_tags": [{"key": value}, value]}
    yield {"rate_limits": [{"calls": value, "renewal_period": "minute"}], "guardrails": value}
    yield {"rate_limits": [{"calls": 1, "renewal_period": value, "key": value}], "fallback_config": value}
    yield {"access_control_list": [{"permission_level": value, "user_name": "x"}]}
    yield {"access_control_list": [{"permission_level": "CAN_VIEW", "user_name": value, "group_name": value}]}


def _that_read(body: dict[str, Any], rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.takes is not None and row.takes.model_fields.keys() & body.keys()]


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: repr(value)[:24])
def test_odd_values(guarded: Guarded, value: Any) -> None:
    found = []
    rows = [row for row in WRITES if "{name}" in row.path or "{id}" in row.path]
    created = [row for row in WRITES if row not in rows]
    with connected(guarded.server.url) as connection:
        for body in odd_bodies(value):
            content = json.dumps(body).encode()
            for row in created if "name" in body else _that_read(body, rows):
                got = connection.ask(row.verb, target(guarded, row, VICTIM), content, *ADMIN.lines)
                if got.status == 200:
                    if row in created:
                        assert guarded.say("DELETE", f"/{body['name']}", None).status == 200
                    continue
                try:
                    refused(got)
                except AssertionError as error:
                    found.append(f"{row.verb} {row.path} {content[:200]!r}: {got.status} {str(error)[:200]}")
    assert found == []


# Sizes.


def padded(size: int) -> bytes:
    """An object of exactly that many bytes, which no handler takes."""
    return b'{"name": 1, "x": "' + b"y" * (size - 20) + b'"}'


def chunked(body: bytes, size: int = 60_000) -> bytes:
    """The body in chunks."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_the_largest_body(guarded: Guarded, framing: str) -> None:
    for size, too_large in ((MIB, False), (MIB + 1, True), (3 * MIB, True)):
        body = padded(size)
        assert len(body) == size
        with connected(guarded.server.url) as connection:
            if framing == "length":
                got = connection.ask("POST", API, body, *ADMIN.lines)
            else:
                head = f"POST {API} HTTP/1.1\r\nHost: {connection.host}\r\n{ADMIN.lines[0]}\r\n"
                got = connection.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunked(body))
        assert (got.status, got.code) == (400, "INVALID_PARAMETER_VALUE")
        assert ("larger than" in refused(got)) == too_large


def test_a_body_that_never_comes_whole(guarded: Guarded) -> None:
    before = guarded.effects()
    body = b'{"name": "half", "config": {}}'
    head = f"POST {API} HTTP/1.1\r\nHost: x\r\n{ADMIN.lines[0]}\r\nContent-Length: {len(body) + 1}\r\n\r\n"
    with connected(guarded.server.url) as connection:
        head = head.replace("Host: x", f"Host: {connection.host}")
        connection.push(head.encode() + body)
    assert guarded.say("GET", "/half", None).status == 404
    assert guarded.effects() == before


def test_of_equal_keys_the_last_counts_once(guarded: Guarded) -> None:
    content = b'{"name": "first", "name": "second", "tags": [{"key": "a"}], "tags": [{"key": "b"}]}'
    made = guarded.ask("POST", API, ADMIN, content)
    assert (made.status, made.json["name"], made.json["tags"]) == (200, "second", [{"key": "b", "value": ""}])
    assert guarded.say("GET", "/first", None).status == 404
    assert guarded.say("DELETE", "/second", None).status == 200
