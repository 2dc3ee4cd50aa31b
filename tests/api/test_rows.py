"""Every route for every caller: what is answered follows from the one table of routes, and there is nothing
beside it."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest

from servestate.runtime.api.call import Need, Row
from servestate.runtime.api.routes import ROWS
from tests.api.callers import ADMIN, HIDDEN, KNOWN, MAKER, MANAGE, OWN, QUERY, SHARED, STRANGERS, VIEW, Who
from tests.api.guarded import API, ENTITY, Guarded
from tests.api.wire import Answer
from tests.cli.harness import until
from tests.clients.harness import CHAT as CHAT_MODEL
from tests.clients.harness import hosted

EVERYBODY = STRANGERS + KNOWN
_LEVELS = {"VIEW": VIEW, "QUERY": QUERY, "MANAGE": MANAGE}
_RIGHTS = {"CREATE": "create", "APPLY": "apply"}
LET_IN = ("", "INVALID_PARAMETER_VALUE", "RESOURCE_CONFLICT")
"""The error codes of a request that was let in, which carries a body that no handler accepts."""

UNAUTHENTICATED = (401, "UNAUTHENTICATED")
DENIED = (403, "PERMISSION_DENIED")
NO_SUCH_ENDPOINT = (404, "RESOURCE_DOES_NOT_EXIST")
NO_SUCH_PATH = (404, "ENDPOINT_NOT_FOUND")


def refusal(need: Need, who: Who, endpoint: str) -> tuple[int, str] | None:
    """How the caller is refused; None where it is let in."""
    if need.name == "NOTHING":
        return None
    if not who.known:
        return UNAUTHENTICATED
    if need.name == "TOKEN":
        return None
    if need.name in _RIGHTS:
        return None if who.may(_RIGHTS[need.name]) else DENIED
    level = who.level(endpoint)
    if level == 0:
        return NO_SUCH_ENDPOINT
    return None if level >= _LEVELS[need.name] else DENIED


def target(site: Guarded, row: Row, endpoint: str) -> str:
    """The row's path with that endpoint in it."""
    known = {"name": endpoint, "entity": ENTITY, "model": CHAT_MODEL, "version": "1"}
    if "{id}" in row.path:
        known["id"] = site.id_of(endpoint)
    parts = [
        known.get(part[1:-1], "made-up") if part.startswith("{") else part for part in row.path.split("/")
    ]
    return "/".join(parts)


def asked(site: Guarded, row: Row, who: Who, endpoint: str) -> Answer:
    """The answer to a request that changes nothing, let in or not: the body of a write is none that a
    handler takes."""
    body = b"[]" if row.verb in ("POST", "PUT", "PATCH") else b""
    return site.ask(row.verb, target(site, row, endpoint), who, body)


def wrong(row: Row, who: Who, endpoint: str, got: Answer) -> str:
    """What is wrong with an answer, "" where nothing is."""
    expected = refusal(row.need, who, endpoint)
    if expected is not None:
        fits = (got.status, got.code) == expected
    elif row.need.name in ("TOKEN", "APPLY"):  # what they are about may not be there
        fits = got.status in (200, 400, 409) or (got.status, got.code) == NO_SUCH_ENDPOINT
    else:
        fits = got.status in (200, 400, 409) and got.code in LET_IN
    said = f"{got.status} {got.body[:200]!r}"
    return "" if fits else f"{row.verb} {row.path} of {endpoint} by {who.name}: {said}, not {expected}"


def matrix(site: Guarded) -> Iterator[tuple[Row, Who, str, Answer]]:
    """Everybody at every row; at the rows of endpoints, at each endpoint. What exists only to be deleted by
    who may is left out: see `test_only_who_manages_deletes`."""
    for row in ROWS:
        for endpoint in (SHARED, HIDDEN, OWN) if "{name}" in row.path or "{id}" in row.path else (SHARED,):
            for who in EVERYBODY:
                if row.verb == "DELETE" and endpoint == OWN and who.level(OWN) >= MANAGE:
                    continue
                yield row, who, endpoint, asked(site, row, who, endpoint)


def test_every_row_for_everybody(guarded: Guarded) -> None:
    before = guarded.effects()
    found = [(wrong(row, who, endpoint, got), got) for row, who, endpoint, got in matrix(guarded)]
    assert [text for text, _ in found if text] == []
    assert len(found) > len(ROWS) * len(EVERYBODY)
    refused = {got.body for _, got in found if got.status == 401}
    assert len(refused) == 1, refused
    assert guarded.effects() == before


def test_only_who_manages_deletes(guarded: Guarded) -> None:
    for who in EVERYBODY:
        if who.known and who.level("fleeting") >= MANAGE:
            guarded.make("fleeting")
            assert guarded.say("DELETE", "/fleeting", None, who).status == 200, who.name
        assert guarded.say("GET", "/fleeting", None).status == 404
    guarded.make("fleeting", MAKER)
    assert guarded.say("DELETE", "/fleeting", None, MAKER).json == {}


def test_what_is_hidden_answers_as_what_is_not_there(guarded: Guarded) -> None:
    stranger = next(who for who in KNOWN if who.name == "ungranted")
    hidden_id, other_id = guarded.id_of(HIDDEN), "0" * 32
    for row in ROWS:
        if row.need.name not in _LEVELS:
            continue
        hidden = asked(guarded, row, stranger, HIDDEN)
        path = target(guarded, row, HIDDEN).replace(hidden_id, other_id).replace(HIDDEN, "nihil.")
        other = guarded.ask(row.verb, path, stranger, b"[]" if row.takes else b"")
        assert (other.status, hidden.status) == (404, 404)
        said = other.body.replace(other_id.encode(), hidden_id.encode()).replace(b"nihil.", HIDDEN.encode())
        assert said == hidden.body, row.path
        assert {*other.headers} == {*hidden.headers}


def test_what_is_only_promised_is_its_makers(guarded: Guarded) -> None:
    body = {"name": "promised", "config": {"served_entities": [hosted("it", CHAT_MODEL)]}}
    with guarded.locked():
        creating = Thread(target=guarded.say, args=("POST", "", body, MAKER))
        creating.start()
        until(lambda: guarded.say("GET", "/promised", None, MAKER).status == 200, "it is promised", 5)
        for who in KNOWN:
            got = guarded.say("PUT", "/promised/config", [], who).status
            level = MANAGE if who is MAKER else who.level("promised")
            assert got == (400 if level == MANAGE else 403 if level else 404), who.name
        namesake = Who("namesake-of-the-maker", kind="service_principal_name", principal="maker@example.com")
        guarded.declare(namesake)
        until(lambda: guarded.ask("GET", API, namesake).status == 200, "the namesake is known", 5)
        assert guarded.say("GET", "/promised", None, namesake).status == 404
        guarded.declare()
        assert guarded.say("DELETE", "/promised", None, namesake).status in (401, 404)
    creating.join()
    assert guarded.say("DELETE", "/promised", None, MAKER).status == 200


def test_lists_hold_what_the_caller_may_see(guarded: Guarded) -> None:
    for who in KNOWN:
        listed = {one["name"] for one in guarded.ask("GET", API, who).json["endpoints"]}
        assert listed == {name for name in (SHARED, HIDDEN, OWN) if who.level(name) >= VIEW}, who.name
        models = guarded.ask("GET", "/serving-endpoints/models", who).json["data"]
        names = {one["id"].partition("/")[0] for one in models}
        assert names == {name for name in (SHARED, HIDDEN, OWN) if who.level(name) >= QUERY}, who.name


def test_answers_say_the_callers_own_level(guarded: Guarded) -> None:
    names = {VIEW: "CAN_VIEW", QUERY: "CAN_QUERY", MANAGE: "CAN_MANAGE"}
    for who in KNOWN:
        got = guarded.say("GET", f"/{SHARED}", None, who)
        assert got.json.get("permission_level") == names.get(who.level(SHARED)), who.name


# The data plane.

CHAT = b'{"messages": [{"role": "user", "content": "x"}]}'


def queries(endpoint: str) -> Iterator[tuple[str, bytes]]:
    """Every path that queries an endpoint, with a body for it."""
    model = endpoint.encode()
    yield f"/serving-endpoints/{endpoint}/invocations", CHAT
    yield f"/serving-endpoints/{endpoint}/served-models/{ENTITY}/invocations", CHAT
    for base in ("/serving-endpoints", "/v1"):
        for name in (model, model + b"/" + ENTITY.encode()):
            yield f"{base}/chat/completions", CHAT[:-1] + b', "model": "%b"}' % name
    yield "/v1/completions", b'{"prompt": "x", "model": "%b"}' % model
    yield "/v1/embeddings", b'{"input": "x", "model": "%b"}' % model


@pytest.mark.parametrize("listener", ["management", "router"])
def test_queries_by_everybody(guarded: Guarded, listener: str) -> None:
    found = []
    for endpoint in (SHARED, HIDDEN, OWN):
        for path, body in queries(endpoint):
            for who in EVERYBODY:
                got = guarded.query(listener, path, body, who)
                expected = refusal(Need.QUERY, who, endpoint)
                if expected is None:  # the model is for chats: other bodies are refused once let in
                    fits = got.status == (200 if b"messages" in body else 400)
                else:
                    fits = got.status == expected[0] and expected[1] in got.body.decode()
                if not fits:
                    found.append(f"{path} of {endpoint} by {who.name}: {got.status} {got.body!r}")
    assert found == []


@pytest.mark.parametrize("listener", ["management", "router"])
def test_a_hidden_model_answers_as_none(guarded: Guarded, listener: str) -> None:
    who = next(one for one in KNOWN if one.name == "ungranted")
    for (path, body), (other, same) in zip(queries(HIDDEN), queries("nihil"), strict=True):
        hidden = guarded.query(listener, path, body, who)
        absent = guarded.query(listener, other, same, who)
        assert (hidden.status, absent.status) == (404, 404)
        assert hidden.body == absent.body.replace(b"nihil", HIDDEN.encode())


# What nobody grants by asking for it.


@pytest.mark.parametrize(
    "more",
    [
        {"permissions": [{"level": "CAN_MANAGE", "user_name": "ungranted@example.com"}]},
        {"lifecycle": {"prevent_destroy": True}},
        {"creator": "admin@example.com", "owner": "a-bundle", "id": "0" * 32},
        {"permission_level": "CAN_MANAGE", "rights": ["admin"], "state": {"ready": "READY"}},
    ],
)
def test_who_creates_decides_no_more_than_the_config(guarded: Guarded, more: dict[str, Any]) -> None:
    body = {"name": "greedy", "config": {"served_entities": [guarded.far_entity()]}, **more}
    made = guarded.say("POST", "", body, MAKER)
    try:
        assert made.status == 200, made.body
        assert made.json["creator"] == "maker@example.com"
        assert made.json["id"] != "0" * 32
        granted = guarded.ask("GET", f"/api/2.0/permissions/serving-endpoints/{made.json['id']}", MAKER).json
        assert [line["display_name"] for line in granted["access_control_list"]] == ["maker@example.com"]
    finally:
        assert guarded.say("DELETE", "/greedy", None, MAKER).status == 200


def test_grants_last_no_longer_than_they_stand(guarded: Guarded) -> None:
    asker = next(who for who in KNOWN if who.name == "ungranted")
    path = f"/api/2.0/permissions/serving-endpoints/{guarded.id_of(OWN)}"
    line = b'{"access_control_list": [{"permission_level": "%b", "user_name": "ungranted@example.com"}]}'
    for level, status in ((b"CAN_VIEW", 403), (b"CAN_MANAGE", 400), (b"CAN_QUERY", 403)):
        assert guarded.ask("PATCH", path, MAKER, line % level).status == 200
        assert guarded.say("PUT", f"/{OWN}/config", [], asker).status == status
    own = b'{"access_control_list": [{"permission_level": "CAN_MANAGE", "user_name": "maker@example.com"}]}'
    assert guarded.ask("PUT", path, MAKER, own).status == 200
    assert guarded.say("GET", f"/{OWN}", None, asker).status == 404
    assert guarded.ask("PATCH", path, asker, line % b"CAN_MANAGE").status == 404
    assert guarded.say("GET", f"/{OWN}", None, ADMIN).status == 200
