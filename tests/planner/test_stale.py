"""What makes a saved plan stale, each kind alone, and what the refusal says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from servestate.planner.live import Live, LiveStatus
from servestate.planner.plan import Plan
from servestate.planner.stale import moved, relies_on_hosts
from servestate.planner.state import State
from tests.planner.blocks import bundle, endpoint, local
from tests.planner.gpu_worlds import host, on_gpus, surroundings
from tests.planner.rig import Site

ONE = bundle(endpoint("chat", local("current", 100)))
TWO = bundle(endpoint("chat", local("current", 100, "B")))


@pytest.fixture
def planned() -> tuple[Plan, State, Live]:
    """A replacement that is planned and not applied."""
    site = Site()
    site.converge(ONE)
    plan = site.plan(TWO)
    return plan, site.state, site.look()


def test_nothing_moved(planned) -> None:
    plan, state, live = planned
    assert moved(plan, state, live, None) == []
    assert moved(plan, state, live, TWO.digest) == []


def test_another_lineage_is_the_only_thing_said(planned) -> None:
    plan, state, live = planned
    reasons = moved(plan, replace(state, lineage="other", serial=99), live, "other")
    assert reasons == [f"the plan belongs to lineage {plan.lineage}, the state here to other"]


@pytest.mark.parametrize("by", [-1, 1])
def test_a_serial_that_moved_either_way(planned, by: int) -> None:
    plan, state, live = planned
    (reason,) = moved(plan, replace(state, serial=state.serial + by), live, None)
    assert (
        reason == f"the plan was made at serial {plan.serial}; the state is now at serial {plan.serial + by}"
    )


def test_a_configuration_that_changed(planned) -> None:
    plan, state, live = planned
    assert moved(plan, state, live, ONE.digest) == ["the configuration has changed since the plan was made"]


@pytest.mark.parametrize(
    ("field", "value"), [("handle", "new"), ("url", "http://new.invalid"), ("status", LiveStatus.EXITED)]
)
def test_a_live_field_that_moved_is_named_with_both_values(planned, field: str, value: str) -> None:
    plan, state, live = planned
    ((address, seen),) = live.instances.items()
    now = Live({address: replace(seen, **{field: value})}, (), live.table_version)
    (reason,) = moved(plan, state, now, None)
    assert reason == f'{address}: {field} = "{getattr(seen, field)}" -> "{value}"'


def test_what_is_gone_and_what_appeared(planned) -> None:
    plan, state, live = planned
    ((old, seen),) = live.instances.items()
    new = next(a for a, facts in plan.observed if a != str(old))
    reasons = moved(plan, state, Live({}, (), live.table_version), None)
    assert f'{old}: handle = "{seen.handle}" -> null' in reasons
    assert f'{old}: status = "running" -> "absent"' in reasons
    appeared = replace(seen, address=replace(seen.address, revision=new.split("@")[1].split("#")[0]))
    found = moved(plan, state, Live({old: seen, appeared.address: appeared}, (), None), None)
    assert f'{new}: status = "absent" -> "running"' in found


def test_several_reasons_are_all_said(planned) -> None:
    plan, state, _ = planned
    reasons = moved(plan, replace(state, serial=state.serial + 2), Live(), ONE.digest)
    assert len(reasons) > 3
    assert reasons[0].startswith("the plan was made at serial")
    assert reasons[1].startswith("the configuration has changed")


def test_an_object_the_plan_does_not_touch_may_move() -> None:
    site = Site()
    other = endpoint("other", local("x", 100))
    site.converge(bundle(*ONE.endpoints, other))
    plan = site.plan(bundle(*TWO.endpoints, other))
    site.world.crash(next(a for a in site.look().instances if a.endpoint == "other"))
    assert moved(plan, site.state, site.look(), None) == []


def test_a_plan_that_counts_on_gpus_is_stale_where_its_host_has_others() -> None:
    site = Site(surroundings=surroundings(host("h1", 2)))
    plan = site.plan(bundle(endpoint("chat", on_gpus("a", 100))))
    assert relies_on_hosts(plan)
    assert moved(plan, site.state, site.look(), None, site.surroundings) == []
    (reason,) = moved(plan, site.state, site.look(), None, surroundings(host("h1", 1)))
    assert reason.startswith('host:process:h1: gpus = "0 (85899345920 bytes), 1 (')
    lost = moved(plan, site.state, site.look(), None, surroundings(host("h1", 2, trouble="no route to host")))
    assert lost == ['host:process:h1: trouble = "" -> "no route to host"']
    assert moved(plan, site.state, site.look(), None)  # nobody asked: not the world it was made against


def test_a_plan_without_gpus_relies_on_no_host(planned) -> None:
    assert not relies_on_hosts(planned[0])


def test_a_stale_plan_has_no_effect_and_writes_nothing() -> None:
    """T9: the same plan twice, and a plan overtaken by another apply."""
    site = Site()
    first = site.plan(ONE)
    overtaken = site.plan(TWO)
    assert site.apply(first).complete  # type: ignore[union-attr]
    effects, commits = list(site.world.effects), site.store.commits  # type: ignore[attr-defined]
    for stale in (first, overtaken):
        reasons = site.apply(stale)
        assert isinstance(reasons, list)
        assert any("serial" in reason for reason in reasons)
    assert (site.world.effects, site.store.commits) == (effects, commits)  # type: ignore[attr-defined]
    site.check(ONE)
