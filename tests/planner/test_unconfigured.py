"""An endpoint without a config keeps what it has, where it is."""

from __future__ import annotations

import json

import pytest

from servestate.planner.address import EntityAddress, InstanceAddress
from servestate.planner.diagnostics import InvalidInput
from servestate.planner.launch import LaunchSpec, Placement
from servestate.planner.resolve import ResolvedEndpoint
from servestate.planner.state import EndpointRecord, Instance, Phase, Target
from servestate.planner.unconfigured import with_recorded_config

ADDRESS = InstanceAddress("chat", "llama", "3f9a1c27")


def test_it_may_stay_on_the_host_that_it_runs_on() -> None:
    placement = Placement("rack2", ("0",))
    instance = Instance(ADDRESS, LaunchSpec("docker", "vllm", "m"), Phase.READY, placement=placement)
    targets = (Target("llama", 100, (ADDRESS,)),)
    record = EndpointRecord("chat", "chat", "bundle", '{"config":{"served_entities":[]}}', 1, targets)
    bare = ResolvedEndpoint("chat", "chat", "{}", ())
    (entity,) = with_recorded_config(bare, record, {EntityAddress("chat", "llama"): [instance]}).entities
    assert entity.hosts == ("rack2",)


def bare_over(*names: str, **said: str) -> ResolvedEndpoint:
    """An endpoint without a config, over a record of these entities, the first one first."""
    found = [InstanceAddress("chat", name, "3f9a1c27") for name in names]
    groups = {a.of: [Instance(a, LaunchSpec("process", "command", "m"), Phase.READY)] for a in found}
    served = json.dumps({"config": {"served_entities": [{"name": name} for name in sorted(names)]}})
    targets = tuple(Target(a.entity, 0, (a,)) for a in found)
    record = EndpointRecord("chat", "chat", "bundle", served, 1, targets)
    block = said.get("block", "{}")
    desired = ResolvedEndpoint("chat", "chat", block, (), traffic=said.get("traffic", ""))
    return with_recorded_config(desired, record, groups)


def order_of(endpoint: ResolvedEndpoint) -> list[str]:
    return [entity["name"] for entity in json.loads(endpoint.block)["config"]["served_entities"]]


def test_the_order_of_entities_is_kept_where_it_has_a_meaning() -> None:
    fallback = '{"ai_gateway":{"fallback_config":{"enabled":true}}}'
    assert order_of(bare_over("b", "a", block=fallback)) == ["b", "a"]
    assert order_of(bare_over("b", "a")) == ["a", "b"]


def test_a_mirror_has_to_be_one_of_those_that_are_kept() -> None:
    assert bare_over("a", "b", traffic='{"mirror":{"entity":"b","percent":5}}').entities
    with pytest.raises(InvalidInput, match="SS211"):
        bare_over("a", "b", traffic='{"mirror":{"entity":"c","percent":5}}')
