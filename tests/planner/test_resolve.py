"""The digest of a configuration: everything a plan depends on, and nothing else."""

from __future__ import annotations

import pytest

from servestate.planner.resolve import Resolved, resolve
from servestate.planner.spec.bundle import Document, load

TEXT = """\
bundle: {name: shop}
servestate:
  models:
    small: {task: llm/v1/chat, versions: {"1": {engine: command, argv: [serve, "{port}", a]}}}
  overrides: {chat: {strategy: surge, drain_timeout_s: 5}}
resources:
  model_serving_endpoints:
    chat:
      name: chat
      tags: [{key: team, value: search}]
      config:
        served_entities:
          - {name: a, entity_name: small, entity_version: "1", workload_size: Small}
"""


def resolved(text: str) -> Resolved:
    return resolve(load([Document("endpoints.yaml", text)]), frozenset({"process"}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: shop", "name: bank"),
        ("value: search", "value: ads"),
        ('"{port}", a', '"{port}", b'),
        ("strategy: surge", "strategy: recreate"),
        ("drain_timeout_s: 5", "drain_timeout_s: 6"),
        ("      tags:", "      lifecycle: {prevent_destroy: true}\n      tags:"),
        ("{name: a, ", "{name: b, "),
    ],
)
def test_whatever_changes_a_plan_changes_the_digest(old: str, new: str) -> None:
    assert old in TEXT
    assert resolved(TEXT.replace(old, new)).digest != resolved(TEXT).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bundle:", "# a comment\nbundle:"),
        ("    chat:\n", "    talk:\n"),
        ('entity_version: "1"', "entity_version: 1"),
        ("drain_timeout_s: 5", "drain_timeout_s: 5s"),
    ],
)
def test_another_spelling_does_not(old: str, new: str) -> None:
    assert old in TEXT
    assert resolved(TEXT.replace(old, new)).digest == resolved(TEXT).digest
