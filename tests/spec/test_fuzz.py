"""Whatever is read, `load` answers with Desired or InvalidInput, in bounded time."""

import json
import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.spec.bundle import Desired, Document, load

VALID = """\
bundle: {name: demo}
variables:
  split: {default: 90}
  version: {default: "1"}
servestate:
  router: {listen: "127.0.0.1:8080"}
  models:
    demo.chat:
      task: llm/v1/chat
      versions:
        "1": {engine: command, argv: [serve, "--port", "{port}"], ready_timeout_s: 5m}
  overrides: {multi-model/current: {strategy: recreate}}
resources:
  model_serving_endpoints:
    multi: &multi
      name: multi-model
      tags: [{key: team, value: ai}]
      config:
        served_entities:
          - {name: current, entity_name: demo.chat, entity_version: "${var.version}"}
          - name: challenger
            entity_name: demo.chat
            entity_version: 2
            environment_vars: {A: "{{secrets/s/k}}"}
        traffic_config:
          routes:
            - served_model_name: current
              traffic_percentage: ${var.split}
            - {served_entity_name: challenger, traffic_percentage: "10"}
    other:
      <<: *multi
      name: other
      description: |
        text, ${bundle.name}
targets:
  dev: {default: true, variables: {split: 90}}
"""
PIECES = [
    "&a ", "*a", "<<: *multi", "!!python/object:x ", "!!int ", "${var.split}", "${", "}", "{{", "[", "]", "{",
    "null", "~", "true", ".nan", "1e999", "-1", "0x10", "\t", "\n", "  ", "- ", ": ", "'", '"', "#", "|", ">",
    "---", "...", "%YAML 1.1", "@", "`", "\x00", "\u202e", "\ud800", "\ufeff", "é", "?", "\\", ",",
]  # fmt: skip
ENVIRON = {"BUNDLE_VAR_version": "2"}
SECONDS = 2.0


def answer(text: str) -> None:
    start = time.process_time()
    outcome: Desired | InvalidInput
    try:
        outcome = load([Document("f.yaml", text)], variables={"split": "90"}, environ=ENVIRON)
    except InvalidInput as error:
        outcome = error
    assert time.process_time() - start < SECONDS
    assert isinstance(outcome, Desired) or str(outcome)


def mutated(seed: int) -> str:
    """VALID after a few random edits: pieces put in, spans cut out, doubled, moved, characters changed."""
    chance = random.Random(seed)
    text = VALID
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(text) + 1)
        end = min(len(text), at + chance.randint(1, 40))
        to = chance.randrange(len(text) + 1)
        character = chr(chance.choice([chance.randrange(128), chance.randrange(0x10FFFF)]))
        edits = (
            text[:at] + chance.choice(PIECES) + text[at:],
            text[:at] + text[end:],
            text[:end] + text[at:],
            text[:to] + text[at:end] + text[to:],
            text[:at] + character + text[end:],
        )
        text = chance.choice(edits)
    return text


def test_the_text_that_is_mutated_is_valid() -> None:
    assert [e.spec.name for e in load([Document("f.yaml", VALID)]).endpoints] == ["multi-model", "other"]


@pytest.mark.parametrize("block", range(10))
def test_mutated_yaml_is_answered(block: int) -> None:
    for seed in range(block * 30, block * 30 + 30):
        answer(mutated(seed))


@pytest.mark.slow
def test_much_mutated_yaml_is_answered() -> None:
    for seed in range(1000, 6000):
        answer(mutated(seed))


TEXT = st.text(max_size=200) | st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=40).map(
    "".join
)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_random_text_is_answered(text: str) -> None:
    answer(text)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXT)
def test_much_random_text_is_answered(text: str) -> None:
    answer(text)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10)
FIELDS = """
name config served_entities served_models traffic_config routes tags key value external_model provider task
openai_config openai_api_key entity_name entity_version traffic_percentage served_model_name ai_gateway
rate_limits guardrails permissions lifecycle environment_vars workload_size description
"""
KEYS = st.sampled_from(FIELDS.split())
TREES = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=4) | st.dictionaries(KEYS, below, max_size=6)
)


@settings(max_examples=300, deadline=None)
@given(TREES)
def test_blocks_of_any_shape_are_answered(tree: object) -> None:
    for path in (
        "resources model_serving_endpoints a",
        "resources",
        "servestate",
        "targets t",
        "variables v",
    ):
        wrapped = tree
        for key in reversed(path.split()):
            wrapped = {key: wrapped}
        answer(json.dumps(wrapped))
