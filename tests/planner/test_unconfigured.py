"""An endpoint without a config keeps what it has, where it is."""

from __future__ import annotations

from servestate.planner.address import EntityAddress, InstanceAddress
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
