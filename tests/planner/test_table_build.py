"""What an endpoint's block and its site say, in the routing table."""

from __future__ import annotations

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import ExternalSpec, LaunchSpec, Spec
from servestate.planner.policies import policies_of, written_policy
from servestate.planner.resolve import resolve
from servestate.planner.revision import revision
from servestate.planner.spec.bundle import Document, load
from servestate.planner.state import EndpointRecord, Instance, Phase, State, Target
from servestate.planner.table import Guard, Limit, Mirror, Payloads, RoutingTable, Sticky, Traffic
from servestate.planner.table_build import build_table
from servestate.planner.table_file import decode, encode
from servestate.planner.traffic_words import in_words

HEAD = """
servestate:
  models: {m: {versions: {"1": {engine: command, argv: ["{port}"]}}}}
  traffic: {chat: TRAFFIC}
resources:
  model_serving_endpoints:
    chat:
      name: chat
      ai_gateway: GATEWAY
      rate_limits: [{calls: 7, renewal_period: minute}]
      config:
        served_entities:
          - {name: b, entity_name: m, entity_version: "1"}
          - {name: a, entity_name: m, entity_version: "1"}
        traffic_config: {routes: [{served_model_name: b, traffic_percentage: 90}, {served_model_name: a, traffic_percentage: 10}]}
"""  # noqa: E501  # YAML as people write it
EVERYTHING = """{split: sticky, sticky: {from: "header:X-Session", salt: s}, replicas: prefix_hash,
    fallback: {after_send: true}, deadline_s: 30s, stall_s: 5, concurrency: 4, limits: shadow,
    entity_header: true,
    mirror: {entity: a, percent: 5, max_inflight: 2, allow_external: true},
    inference_table: {format: parquet, percent: 10, max_body_bytes: 4KiB}}"""
GATEWAY = """{fallback_config: {enabled: true}, usage_tracking_config: {enabled: true},
    inference_table_config: {enabled: true, catalog_name: ops, schema_name: logs, table_name_prefix: ours},
    rate_limits:
      [{renewal_period: minute, tokens: 9, key: user}, {renewal_period: minute, calls: 5, tokens: 6}],
    guardrails: {input: {pii: {behavior: BLOCK}, invalid_keywords: [x]}, output: {pii: {behavior: NONE}}}}"""


def table_of(traffic: str, gateway: str) -> RoutingTable:
    """The table, after a way through its file: what the router reads."""
    text = HEAD.replace("TRAFFIC", traffic).replace("GATEWAY", gateway)
    (endpoint,) = resolve(load([Document("x.yaml", text)]), frozenset({"process"})).endpoints
    record = EndpointRecord(
        endpoint.name, "chat", "x", endpoint.block, 1, targets(), traffic=endpoint.traffic
    )
    instances = {address: instance(address) for target in targets() for address in target.instances}
    state = State("lineage", 3, 3, {"chat": record}, instances)
    return decode(encode(build_table(state)))


def targets() -> tuple[Target, ...]:
    found = [
        InstanceAddress("chat", entity, revision(LaunchSpec("process", "command", "m")), 0) for entity in "ba"
    ]
    return tuple(Target(a.entity, share, (a,)) for a, share in zip(found, (90, 10), strict=True))


def instance(address: InstanceAddress, spec: Spec | None = None) -> Instance:
    spec = spec or LaunchSpec("process", "command", "m", health_path="/ping")
    return Instance(address, spec, Phase.READY, "handle", "http://127.0.0.1:4000")


def test_all_that_is_said_is_in_the_table() -> None:
    (found,) = table_of(EVERYTHING, GATEWAY).endpoints
    assert found.traffic == Traffic(
        split="sticky",
        sticky=Sticky("header", "x-session", "s"),
        replicas="prefix_hash",
        fallback=True,
        after_send=True,
        deadline_s=30.0,
        stall_s=5.0,
        concurrency=4,
        shadow=True,
        named_by_header=True,
        mirror=Mirror("a", 5, 2),
    )
    assert sorted(found.limits, key=str) == [
        Limit("endpoint", "", 5, 6),
        Limit("endpoint", "", 7, 0),
        Limit("user", "", 0, 9),
    ]
    assert (found.guard_input, found.guard_output) == (Guard(("x",), "BLOCK"), None)
    assert (found.usage, found.payloads) == (True, Payloads("ops.logs.ours_payload", "parquet", 10, 4096))
    assert [entity.name for entity in found.entities] == ["b", "a"]
    assert [backend.health for entity in found.entities for backend in entity.backends] == ["/ping", "/ping"]


def test_nothing_said_is_the_default() -> None:
    (found,) = table_of("{}", "{}").endpoints
    assert (found.traffic, found.guard_input, found.guard_output) == (Traffic(), None, None)
    assert (found.usage, found.payloads, found.limits) == (False, None, (Limit("endpoint", "", 7),))


def test_an_inference_table_without_a_prefix_is_called_after_its_endpoint() -> None:
    table = "{inference_table_config: {enabled: true, catalog_name: c, schema_name: s}}"
    assert table_of("{}", table).endpoints[0].payloads == Payloads("c.s.chat_payload")
    old = '{"config":{"auto_capture_config":{"enabled":true,"catalog_name":"c","schema_name":"s"}}}'
    assert policies_of("e", old, "").payloads == Payloads("c.s.e_payload")


def test_an_external_entity_is_judged_by_its_answers_alone() -> None:
    spec = ExternalSpec("custom", "https://far.example/v1/chat/completions", "m", "llm/v1/chat")
    address = InstanceAddress("chat", "far", revision(spec), 0)
    record = EndpointRecord("chat", "chat", "x", "{}", 1, (Target("far", 100, (address,)),))
    state = State("lineage", 1, 1, {"chat": record}, {address: instance(address, spec)})
    assert build_table(state).endpoints[0].entities[0].backends[0].health == ""


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("{}", ""),
        ("{split: exact, limits: enforce, deadline_s: 0, fallback: {}}", ""),
        ("{mirror: {entity: a, percent: 5, max_inflight: 8}}", '{"mirror":{"entity":"a","percent":5}}'),
        ("{split: sticky, sticky: {from: caller}}", '{"split":"sticky","sticky":{"from":"caller"}}'),
    ],
)
def test_what_is_recorded_is_what_differs_from_the_defaults(written: str, kept: str) -> None:
    site = load([Document("x.yaml", f"servestate: {{traffic: {{a: {written}}}}}")]).site
    assert written_policy(site.traffic["a"]) == kept
    assert written_policy(None) == ""


def test_the_words_of_a_plan() -> None:
    limits = '{"ai_gateway":{"rate_limits":{"user:":{"key":"user","calls":1,"tokens":50}}}}'
    assert list(in_words("a", limits, "")) == ["at most 1 call and 50 tokens a minute for each user"]
    shadow = '{"limits":"shadow","concurrency":1,"split":"random"}'
    assert list(in_words("a", limits, shadow)) == [
        "entities are drawn at random, by their shares",
        "at most 1 call and 50 tokens a minute for each user; more is only counted",
        "at most 1 request at once; more is only counted",
    ]
    assert not list(in_words("a", "{}", ""))
