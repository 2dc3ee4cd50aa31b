"""The document that the API gives of itself, and calls made from it: nothing fails, and every answer is as
the document says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.api.callers import ADMIN
from tests.api.guarded import Guarded, guarded_site

DOCUMENT = "/api/servestate/v1/openapi.json"
STANDING = "fuzzed"
ALWAYS_SAFE = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def document(guarded: Guarded) -> dict[str, Any]:
    """The document."""
    found: dict[str, Any] = guarded.ask("GET", DOCUMENT).json
    return found


def test_it_is_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    operations = [one for verbs in document["paths"].values() for one in verbs.values()]
    ids = [one["operationId"] for one in operations]
    assert len(set(ids)) == len(ids)
    for operation in operations:
        assert operation["summary"]
        assert {"200", "401", "403", "404"} <= {*operation["responses"]}
    for reference in references(document):
        assert resolved(document, reference) is not None, reference
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})


def references(value: Any) -> Iterator[str]:
    """Every `$ref` below a value."""
    if isinstance(value, dict):
        for key, below in value.items():
            if key == "$ref":
                yield below
            else:
                yield from references(below)
    elif isinstance(value, list):
        for below in value:
            yield from references(below)


def resolved(document: dict[str, Any], reference: str) -> Any:
    """What a reference names; None where there is nothing."""
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found


# Calls made from it.

Found = dict[str, int]
"""How many answers of each status."""


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A site of its own: what these calls do to it matters to nobody."""
    with guarded_site(tmp_path_factory.mktemp("fuzzed")) as site:
        yield site


def calls(site: Guarded, examples: int) -> Found:
    """That many calls of every operation, some of them about an endpoint that is there."""
    schema = schemathesis.openapi.from_dict(site.ask("GET", DOCUMENT).json)
    schema.config.update(base_url=site.server.url)
    found: Found = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        if site.say("GET", f"/{STANDING}", None).status == 404:
            site.make(STANDING)
            site.effects()  # so that nothing goes on any more
        known = {"name": STANDING, "id": site.id_of(STANDING), "entity": "far"}
        _fuzz(site, operation, known, examples, found)
    return found


def _fuzz(
    site: Guarded, operation: schemathesis.APIOperation, known: dict[str, str], examples: int, found: Found
) -> None:
    @seed(1)
    @settings(ALWAYS_SAFE, max_examples=examples)
    @given(case=operation.as_strategy(), aimed=st.booleans())
    def one(case: schemathesis.Case, aimed: bool) -> None:
        if aimed:
            case.path_parameters = {
                key: known.get(key, value) for key, value in (case.path_parameters or {}).items()
            }
        before = site.server.site.state().serial
        answer = case.call(headers={"Authorization": f"Bearer {ADMIN.token}"}, timeout=30)
        check_answer(case, answer)
        if answer.status_code != 200:
            assert site.server.site.state().serial == before, f"{answer.status_code} had an effect"
        elif case.method in ("POST", "DELETE") or case.path.endswith("/config"):
            site.effects()  # what goes on after the answer
        key = f"{answer.status_code}"
        found[key] = found.get(key, 0) + 1

    one()


def check_answer(case: schemathesis.Case, answer: schemathesis.Response) -> None:
    """That the answer is one the document tells of, and that nothing has failed."""
    said = f"{case.method} {case.formatted_path} {case.body!r}: {answer.status_code} {answer.text[:500]}"
    assert answer.status_code in (200, 400, 401, 403, 404, 409), said
    if answer.status_code != 200:
        more = {*answer.json()} - {"error_code", "message"}
        assert not more or case.path.startswith("/api/servestate/"), said  # clients of those read more
    elsewhere = answer.status_code in (400, 404) and "x-request-id" in answer.headers
    if not (elsewhere and answer.json().get("error_code") == "BAD_REQUEST"):
        case.operation.validate_response(answer)


def test_calls_from_the_document(fuzzed: Guarded) -> None:
    check_calls(fuzzed, 6)


@pytest.mark.slow
def test_many_calls_from_the_document(fuzzed: Guarded) -> None:
    check_calls(fuzzed, 100)


def check_calls(site: Guarded, examples: int) -> None:
    """That so many calls of each operation are answered, and leave no traceback."""
    found = calls(site, examples)
    print(f"{sum(found.values())} calls: {found}")
    assert {"200", "400", "404"} <= {*found}
    assert "Traceback" not in site.log
