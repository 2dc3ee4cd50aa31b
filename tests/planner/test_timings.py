"""How an instance is ended: as the configuration says, or as it said at launch once it says nothing more."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from servestate.planner.codec import decode_instance, encode_instance
from servestate.planner.plan import Plan, make_plan
from servestate.planner.steps import Drain, Launch, Stop
from tests.planner.blocks import NOTHING, bundle, endpoint, local
from tests.planner.rig import Site

SLOW = {"drain_timeout_s": 300.0, "stop_grace_s": 60.0}
KEPT = local("kept", 100)
BOTH = bundle(endpoint("chat", local("kept", 50), local("slow", 50, **SLOW)))


def ends(plan: Plan) -> set[tuple[str, float]]:
    """What every instance that ends is given, drain and stop, by entity."""
    steps = [node.step for node in plan.nodes]
    drains = {(step.address.entity, step.timeout_s) for step in steps if isinstance(step, Drain)}
    return drains | {(step.address.entity, step.grace_s) for step in steps if isinstance(step, Stop)}


@pytest.fixture
def site() -> Site:
    found = Site()
    found.converge(BOTH)
    return found


def test_an_entity_that_is_removed_ends_as_was_configured_at_launch(site: Site) -> None:
    assert ends(site.plan(bundle(endpoint("chat", KEPT)))) == {("slow", 300.0), ("slow", 60.0)}


def test_so_does_an_endpoint_that_is_removed(site: Site) -> None:
    wanted = {("kept", 30.0), ("kept", 10.0), ("slow", 300.0), ("slow", 60.0)}
    assert ends(site.plan(NOTHING)) == ends(site.plan(NOTHING, destroy=True)) == wanted


def test_what_was_never_published_ends_so_too(site: Site) -> None:
    orphaned = replace(site.state, endpoints={})
    assert ends(make_plan(NOTHING, orphaned, site.look())) == ends(site.plan(NOTHING))


def test_while_it_is_desired_the_configuration_wins(site: Site) -> None:
    quick = {"drain_timeout_s": 1.0, "stop_grace_s": 2.0}
    slow = local("slow", 50, "B", **quick)
    now = bundle(endpoint("chat", local("kept", 50), slow))
    assert ends(site.plan(now)) == {("slow", 1.0), ("slow", 2.0)}


def test_other_timings_alone_are_no_change(site: Site) -> None:
    now = bundle(endpoint("chat", local("kept", 50), local("slow", 50, drain_timeout_s=7.0)))
    assert site.plan(now).is_empty


def test_a_launch_carries_them() -> None:
    steps = [node.step for node in Site().plan(BOTH).nodes]
    found = {s.address.entity: (s.drain_timeout_s, s.stop_grace_s) for s in steps if isinstance(s, Launch)}
    assert found == {"kept": (30.0, 10.0), "slow": (300.0, 60.0)}


def test_an_instance_that_was_written_without_them_has_the_defaults(site: Site) -> None:
    slow = next(i for a, i in site.state.instances.items() if a.entity == "slow")
    value = json.loads(encode_instance(slow))
    del value["drain_timeout_s"], value["stop_grace_s"]
    found = decode_instance(json.dumps(value))
    assert (found.drain_timeout_s, found.stop_grace_s) == (30.0, 10.0)
