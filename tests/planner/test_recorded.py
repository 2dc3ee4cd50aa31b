"""What is recorded as if it were desired, and the repairs that are planned from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from servestate.planner.address import EntityAddress, InstanceAddress
from servestate.planner.plan import Plan, make_plan, settled_state
from servestate.planner.recorded import ready_timeout_s, recorded
from servestate.planner.repair import (
    Refused,
    Served,
    entity_of,
    find_served,
    launches,
    plan_repair,
    until_ready,
    up_to_launch,
)
from servestate.planner.resolve import Resolved
from servestate.planner.spec.site import Site as SiteBlock
from servestate.planner.state import EndpointRecord, Phase, Target
from servestate.planner.steps import AwaitReady
from servestate.planner.surroundings import Host
from servestate.providers.protocol import Marks
from servestate.runtime.executor import Outcome
from tests.planner.blocks import bundle, endpoint, local
from tests.planner.gpu_worlds import host, on_gpus, surroundings
from tests.planner.memory_store import MemoryStore
from tests.planner.rig import Site
from tests.planner.scenarios import WORLDS

BOTH = WORLDS["a60-b40+c"]
A, B, C = EntityAddress("one", "a"), EntityAddress("one", "b"), EntityAddress("two", "c")


def applied(desired: Resolved = BOTH) -> Site:
    site = Site()
    site.converge(desired)
    return site


def address_of(site: Site, entity: EntityAddress) -> InstanceAddress:
    (found,) = (a for a in site.state.instances if a.of == entity)
    return found


def served(site: Site, *unseen: InstanceAddress) -> dict[EntityAddress, Served]:
    live = site.look()
    return {one.address: one for one in find_served(settled_state(site.state, live), live, unseen)}


def dead(site: Site, *unseen: InstanceAddress) -> set[EntityAddress]:
    return {address for address, one in served(site, *unseen).items() if one.dead}


def repair(site: Site, *entities: EntityAddress) -> Plan:
    found = served(site)
    return plan_repair(site.state, site.look(), [found[entity] for entity in entities], site.surroundings)


def carry_out(site: Site, plan: Plan) -> Outcome:
    outcome = site.apply(plan)
    assert isinstance(outcome, Outcome), outcome
    return outcome


@pytest.mark.parametrize("world", WORLDS)
def test_what_is_recorded_needs_nothing(world: str) -> None:
    site = applied(WORLDS[world])
    for found in recorded(site.state):
        plan = make_plan(found, site.state, site.look())
        assert plan.is_empty, [node.id for node in plan.nodes]
        assert [e.block for e in found.endpoints] == [e.block for e in WORLDS[world].endpoints]


def test_one_for_each_owner() -> None:
    site = applied(bundle(endpoint("one", local("a", 100)), name="ana"))
    site.converge(bundle(endpoint("two", local("c", 100)), name="bob"))
    found = recorded(site.state)
    assert [(r.bundle, [e.name for e in r.endpoints]) for r in found] == [("ana", ["one"]), ("bob", ["two"])]
    assert len({r.digest for r in found}) == 2


def test_only_the_dead_is_brought_back() -> None:
    site = applied()
    before = {address: instance.handle for address, instance in site.state.instances.items()}
    gone, left_alone = address_of(site, A), address_of(site, B)
    routes = site.routes()
    site.world.crash(gone)
    assert dead(site) == {A}
    plan = repair(site, A)
    new = replace(gone, replica=1)
    assert [node.id for node in plan.nodes] == [
        f"launch:{new}",
        f"ready:{new}",
        "publish:one",
        f"drain:{gone}",
        f"stop:{gone}",
    ]
    assert carry_out(site, plan).complete
    assert site.routes() == routes
    assert site.state.instances[left_alone].handle == before[left_alone]
    assert dead(site) == set()
    site.check(BOTH)


def test_what_has_vanished_is_dead_too() -> None:
    site = applied()
    site.world.vanish(address_of(site, C))
    assert dead(site) == {C}
    assert carry_out(site, repair(site, C)).complete
    site.check(BOTH)


def test_other_deaths_wait_for_their_own_repair() -> None:
    site = applied()
    for entity in (A, B, C):
        site.drifted.add(site.state.instances[address_of(site, entity)].url)
        site.world.crash(address_of(site, entity))
    assert launches(repair(site, A)) == {A}
    assert carry_out(site, repair(site, A)).complete
    assert dead(site) == {B, C}
    assert carry_out(site, repair(site, B, C)).complete
    site.check(BOTH)


def test_what_a_person_has_paused_is_left_alone() -> None:
    site = applied()
    site.world.pause(address_of(site, B))
    assert dead(site) == set()
    site.world.crash(address_of(site, A))
    plan = repair(site, A)
    assert launches(plan) == {A}
    assert carry_out(site, plan).complete
    assert site.state.instances[address_of(site, B)].phase is Phase.READY
    assert len(site.world.alive(address_of(site, B))) == 1


def test_strays_of_others_are_left_alone() -> None:
    site = applied()
    site.world.plant("process", Marks(site.lineage, InstanceAddress("two", "c", "00000000"), 1, "op"))
    site.world.plant("process", Marks(site.lineage, InstanceAddress("one", "a", "00000000"), 1, "op"))
    site.world.crash(address_of(site, A))
    stops = [node.id for node in repair(site, A).nodes if node.id.startswith("stop-stray:")]
    assert [id.split("@")[0] for id in stops] == ["stop-stray:one/a"]


def test_a_table_that_is_missing_comes_back_with_the_routes() -> None:
    site = applied()
    site.table.text = None
    site.world.crash(address_of(site, A))
    assert not any("rewrite" in node.id for node in repair(site, A).nodes)
    assert carry_out(site, repair(site, A)).complete
    site.check(BOTH)


def test_nothing_that_cannot_be_seen_is_dead() -> None:
    site = applied()
    site.world.vanish(address_of(site, A))
    site.world.vanish(address_of(site, C))
    assert dead(site, address_of(site, A)) == {C}


def test_in_two_halves() -> None:
    site = applied()
    site.world.crash(address_of(site, A))
    first = up_to_launch(repair(site, A))
    assert [node.id.split(":")[0] for node in first.nodes] == ["launch"]
    assert carry_out(site, first).complete
    found = served(site)[A]
    assert found.dead
    assert found.starting is not None
    assert found.starting.address.replica == 1
    second = until_ready(repair(site, A), 7.0)
    assert [n.step.timeout_s for n in second.nodes if isinstance(n.step, AwaitReady)] == [7.0]
    assert launches(second) == set()
    assert carry_out(site, second).complete
    site.check(BOTH)


def test_a_failed_replacement_makes_room_for_the_next() -> None:
    site = applied()
    routed = address_of(site, A)
    site.world.crash(routed)
    carry_out(site, up_to_launch(repair(site, A)))
    site.world.crash(replace(routed, replica=1))
    assert carry_out(site, until_ready(repair(site, A), 1.0)).failed
    assert site.state.instances[replace(routed, replica=1)].phase is Phase.FAILED
    third = up_to_launch(repair(site, A))
    assert {node.id for node in third.nodes} == {
        f"launch:{replace(routed, replica=2)}",
        f"stop:{replace(routed, replica=1)}",
    }
    assert carry_out(site, third).complete
    assert carry_out(site, repair(site, A)).complete
    site.check(BOTH)


def test_a_plan_that_would_change_other_routes_is_refused() -> None:
    site = applied()
    site.world.crash(address_of(site, A))
    without_b = {a: i for a, i in site.state.instances.items() if a.of != B}
    state = replace(site.state, instances=without_b)
    live = site.look()
    (found,) = (one for one in find_served(state, live, ()) if one.address == A)
    with pytest.raises(Refused, match="more of one"):
        plan_repair(state, live, [found])


def test_time_to_get_ready_is_what_the_site_says() -> None:
    versions = {"1": {"engine": "command", "ready_timeout_s": 40}, "2": {"engine": "vllm"}}
    site = SiteBlock.model_validate({"models": {"demo.chat": {"versions": versions}}})

    def record(version: str) -> EndpointRecord:
        block = (
            '{"config":{"served_entities":[{"entity_name":"demo.chat","entity_version":"%s","name":"x"}]}}'
        )
        return EndpointRecord("e", "e", "demo", block % version, 1, (Target("x", 100, ()),))

    assert [ready_timeout_s(site, record(v), "x") for v in ("1", "2", "3")] == [40.0, 1800.0, 300.0]


def on_gpus_of_their_own() -> Site:
    """One endpoint with two entities and another with one, on a host that has room for all."""
    site = Site(surroundings=surroundings(host("h1", 3)))
    first = endpoint("one", on_gpus("a", 60), on_gpus("b", 40))
    site.converge(bundle(first, endpoint("two", on_gpus("c", 100))))
    return site


def fail(site: Site, entity: EntityAddress, *, gone: bool = True) -> None:
    """All that is left of the entity is an instance that failed, as after an apply that stops the old one
    first; nothing is routed to it."""
    address = address_of(site, entity)
    record = site.state.endpoints[entity.endpoint]
    targets = tuple(replace(t, instances=()) if t.entity == entity.entity else t for t in record.targets)
    endpoints = {**site.state.endpoints, record.name: replace(record, targets=targets)}
    instances = dict(site.state.instances)
    instances[address] = replace(instances[address], phase=Phase.FAILED)
    assert isinstance(site.store, MemoryStore)
    site.store.state = replace(site.state, endpoints=endpoints, instances=instances)
    if gone:
        site.world.vanish(address)


@pytest.mark.parametrize("other", [B, C])
def test_what_cannot_be_placed_keeps_no_other_waiting(other: EntityAddress) -> None:
    site = on_gpus_of_their_own()
    fail(site, other)
    routes = site.state.endpoints[other.endpoint].targets
    placement = site.state.instances[address_of(site, A)].placement
    site.world.crash(address_of(site, A))
    taken = tuple(
        replace(gpu, holders=() if gpu.id in placement.gpus else ("a stranger",))
        for gpu in site.surroundings.hosts["process", "h1"].gpus
    )
    site.surroundings = surroundings(Host("h1", taken))
    plan = repair(site, A)
    assert launches(plan) == {A}
    assert {entity_of(node) for node in plan.nodes if entity_of(node) is not None} == {A}
    assert carry_out(site, plan).complete
    assert site.state.instances[address_of(site, other)].phase is Phase.FAILED
    if other.endpoint == A.endpoint:
        assert site.state.endpoints["one"].targets[1:] == routes[1:]
    else:
        assert site.state.endpoints[other.endpoint].targets == routes


def test_what_waits_for_a_load_keeps_what_is_recorded_of_it() -> None:
    entity = on_gpus("a", 100, fraction=0.5)
    site = Site(surroundings=surroundings(host("h1", 1)))
    site.converge(bundle(endpoint("one", entity), endpoint("two", replace(entity, name="b"))))
    one, two = EntityAddress("one", "a"), EntityAddress("two", "b")
    fail(site, two)
    site.world.crash(address_of(site, one))
    whole = repair(site, one, two)
    assert launches(whole) == {one, two}
    first = up_to_launch(whole)
    assert launches(first) == {one}
    assert not any(entity_of(node) == two for node in first.nodes)
    assert carry_out(site, first).complete
    assert [e.name for found in recorded(site.state) for e in found.endpoints if e.entities] == ["one", "two"]


def test_the_last_on_record_goes_after_the_launch() -> None:
    site = on_gpus_of_their_own()
    fail(site, C)
    last = address_of(site, C)
    plan = up_to_launch(repair(site, C))
    (stop,) = (node for node in plan.nodes if node.id == f"stop:{last}")
    assert stop.needs == (f"launch:{replace(last, replica=1)}",)
    assert carry_out(site, plan).complete


def test_the_last_on_record_is_not_given_up_for_its_gpu() -> None:
    site = on_gpus_of_their_own()
    fail(site, C, gone=False)
    with pytest.raises(Refused, match="the last that is recorded of two/c"):
        repair(site, C)
