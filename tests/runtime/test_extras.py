"""What only an optional dependency can do is refused before it is applied where that is missing."""

from __future__ import annotations

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.spec.bundle import Document, load
from servestate.runtime import extras
from servestate.runtime.api.goals import resolved
from servestate.runtime.wanted import wanted

BODY = """
name: a
config:
  served_entities:
    - name: e
      external_model: {provider: custom, name: m, task: llm/v1/chat,
        custom_provider_config: {custom_provider_url: "https://far.example/v1"}}
ai_gateway:
  inference_table_config: {enabled: true, catalog_name: c, schema_name: s}
  guardrails: {output: {pii: {behavior: MASK}}}
"""
TRAFFIC = "servestate: {traffic: {a: {inference_table: {format: parquet}}}}\n"


def bundle(body: str = BODY) -> str:
    block = "\n".join(f"      {line}" for line in body.strip().splitlines())
    return f"{TRAFFIC}resources:\n  model_serving_endpoints:\n    a:\n{block}\n"


def test_all_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    desired = load([Document("b.yaml", bundle())])
    with pytest.raises(InvalidInput) as caught:
        wanted(desired, destroy=False)
    found = caught.value.diagnostics
    assert [(one.code, str(one.where).partition(" ")[0]) for one in found] == [("SS207", "b.yaml:4:5")] * 2
    assert [one.fix.partition(",")[0] for one in found] == [
        "pip install 'servestate[pii]'",
        "pip install 'servestate[parquet]'",
    ]


def test_a_request_hears_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    desired = load([Document("b.yaml", bundle())])
    body = {"name": "a", "ai_gateway": {"guardrails": {"input": {"pii": {"behavior": "BLOCK"}}}}}
    with pytest.raises(InvalidInput, match="SS207"):
        resolved(body, None, desired.site)
    body = {"name": "a", "ai_gateway": {"guardrails": {"input": {"invalid_keywords": ["x"]}}}}
    assert resolved(body, None, desired.site).endpoints


def test_what_needs_none_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    body = BODY.replace("MASK", "NONE")
    text = bundle(body).replace("parquet", "jsonl")
    assert wanted(load([Document("b.yaml", text)]), destroy=False).endpoints
