"""The table's file: what is written comes back, and a damaged or dishonest one is refused with its place."""

from __future__ import annotations

import json
import random

import pytest

from servestate.planner.revision import canonical_json, digest
from servestate.planner.table import Backend, Credential, EndpointRoutes, EntityRoute, RoutingTable
from servestate.planner.table_file import decode, encode

TABLE = RoutingTable(
    7,
    "lineage",
    (
        EndpointRoutes(
            "chat",
            3,
            (
                EntityRoute("a", 90, "m\u00e9", "", False, (Backend("chat/a#0", "http://127.0.0.1:1"),)),
                EntityRoute(
                    "b",
                    10,
                    "gpt",
                    "llm/v1/chat",
                    True,
                    (Backend("b", "https://api.example.com/v1/chat/completions"),),
                    Credential("Authorization", "Bearer ", "{{secrets/s/k}}"),
                    (("x-org", "o"),),
                ),
            ),
        ),
        EndpointRoutes("empty-entity", 1, (EntityRoute("x", 100, "", "", False, ()),)),
    ),
)


def test_round_trip() -> None:
    assert decode(encode(TABLE)) == TABLE
    assert encode(decode(encode(TABLE))) == encode(TABLE)
    assert set(json.loads(encode(TABLE))) == {"checksum", "format_version", "table"}


def test_any_flipped_byte_is_refused() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    text = encode(TABLE)
    for at in random.Random(seed).sample(range(len(text) - 1), 300):
        damaged = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
        with pytest.raises(ValueError):  # noqa: PT011 - which rule notices depends on the byte
            decode(damaged)
    for length in range(0, len(text) - 1, 7):
        with pytest.raises(ValueError):  # noqa: PT011
            decode(text[:length])


def changed(path: list[str | int], value: object) -> str:
    """The table's file with one value replaced and the checksum made right."""
    table = json.loads(encode(TABLE))["table"]
    at = table
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return canonical_json({"checksum": f"sha256:{digest(table)}", "format_version": 1, "table": table})


ENTITY: list[str | int] = ["endpoints", 0, "entities", 1]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["version"], "7", "expected int, found text"),
        (["version"], True, "expected int, found True"),
        (["version"], -1, "negative"),
        (["surprise"], 1, "unknown key 'surprise'"),
        (["endpoints"], {}, "expected list, found an object"),
        (["endpoints", 0, "name"], "a/b", "does not match"),
        (["endpoints", 0, "name"], "empty-entity", "used twice"),
        (["endpoints", 0, "entities"], [], "no entity"),
        ([*ENTITY, "name"], "a", "used twice"),
        ([*ENTITY, "weight"], 11, "add up to 101, not 100"),
        ([*ENTITY, "weight"], 101, "not within 0..100"),
        ([*ENTITY, "weight"], 10.0, "expected int"),
        ([*ENTITY, "fixed_path"], 1, "expected bool"),
        ([*ENTITY, "headers"], [["a\r\nb", "c"]], "not a header name"),
        ([*ENTITY, "headers"], [["a", "c\r\nd: e"]], "no header may hold"),
        ([*ENTITY, "headers"], [["Content-Length", "1"]], "router alone"),
        ([*ENTITY, "headers"], [["a"]], "expected [name, value]"),
        ([*ENTITY, "credential", "header"], "a b", "not a header name"),
        ([*ENTITY, "credential", "prefix"], "x\n", "does not match"),
        ([*ENTITY, "backends", 0, "url"], "ftp://x", "does not match"),
        ([*ENTITY, "backends", 0, "url"], "http://user:key@host/", "does not match"),
        ([*ENTITY, "backends", 0, "url"], "http://x/\r\nEvil: 1", "does not match"),
        ([*ENTITY, "backends", 0, "replica"], "a b", "does not match"),
    ],
)
def test_what_cannot_be_served_is_refused(path: list[str | int], value: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        decode(changed(path, value))
    assert message in str(caught.value)


def test_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="format_version is 2"):
        decode('{"checksum":"","format_version":2,"table":{}}')
    with pytest.raises(ValueError, match="exactly the keys"):
        decode("{}")
    with pytest.raises(ValueError, match="not JSON"):
        decode("[" * 100_000)
