"""A plan carried out in stages ends where the whole of it does, and keeps P3, P4, P7 and P9 on the way.

`staged` below is what the API's keepers do, without their threads: all that can be done at once, then the
waiting with nobody in the way, then a new plan. The site watches every apply of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servestate.planner.address import EndpointAddress
from servestate.planner.diagnostics import InvalidInput
from servestate.planner.match import settle
from servestate.planner.plan import Plan
from servestate.planner.resolve import Resolved
from servestate.planner.stages import (
    Wait,
    at_once,
    forgotten_first,
    publishes,
    retiring,
    routes_only,
    shortened,
    waits,
)
from servestate.planner.state import State
from servestate.planner.steps import AwaitReady, Drain, Forget, Stop, Withdraw
from servestate.planner.surroundings import Surroundings
from servestate.providers.fake import Behaviour
from servestate.providers.protocol import PermanentError
from servestate.providers.readiness import await_ready
from servestate.runtime.executor import Outcome
from tests.planner.blocks import NOTHING, bundle, endpoint, local
from tests.planner.gpu_worlds import Walk, sites, wishes
from tests.planner.rig import Site, killed_at
from tests.planner.scenarios import SCENARIOS, WORLDS
from tests.planner.virtual_time import run

MOST = 40
"""Stages that no change of these small sites takes."""


def site_at(before: Resolved) -> Site:
    site = Site()
    site.converge(before)
    return site


def waited_for(site: Site, steps: Mapping[str, Wait]) -> dict[str, str]:
    """What came of the waiting, by the id of each step: why it failed, "" where it did not."""
    return {id: run(_wait(site, step)) for id, step in steps.items()}


async def _wait(site: Site, step: Wait) -> str:
    if not isinstance(step, AwaitReady):
        return ""
    one, clock = site.state.instances[step.address], asyncio.get_running_loop().time
    provider = site.providers[one.spec.provider]
    try:
        await await_ready(provider, one.handle, one.spec, step.timeout_s, lambda _: None, clock=clock)
    except PermanentError as error:
        return error.what
    return ""


def staged(
    site: Site, desired: Resolved, rng: random.Random | None = None
) -> Outcome | dict[str, str] | None:
    """Apply in stages; what has failed, None once nothing is left. With `rng` every stage is also walked
    through in some order that its edges allow."""
    waited: set[str] = set()
    for _ in range(MOST):
        plan, unrecorded = site.plan(desired), any(settle(site.state, site.look()))
        if not plan.nodes and not unrecorded:
            return None
        now = shortened(at_once(plan, waited), dict.fromkeys(waited, 1.0))
        check_stage(plan, now, waited)
        if now.nodes or unrecorded:
            if rng is not None:
                assert Walk(now, site.state, site.look(), rng).run() == []
            outcome = site.apply(now)
            assert isinstance(outcome, Outcome), outcome
            if not outcome.complete:
                return outcome
        steps = waits(plan, [node.id for node in now.nodes])
        left = {id: step for id, step in steps.items() if id not in waited}
        assert left or now.nodes or unrecorded, "nothing to do and nothing to wait for"
        if failed := {id: why for id, why in waited_for(site, left).items() if why}:
            return failed
        waited |= left.keys()
    raise AssertionError(f"not done after {MOST} stages")


def check_stage(plan: Plan, now: Plan, waited: Collection[str]) -> None:
    """What is done at once waits for nothing that nobody has seen the end of."""
    ids = {node.id for node in now.nodes}
    assert ids <= {node.id for node in plan.nodes}
    assert all(ids.issuperset((*node.needs, *node.after)) for node in now.nodes)
    assert all(node.id in waited for node in now.nodes if isinstance(node.step, Wait))


@pytest.mark.parametrize("name", SCENARIOS)
def test_stages_end_where_the_whole_plan_does(name: str) -> None:
    before, after = SCENARIOS[name]
    whole, site = site_at(before), site_at(before)
    whole.converge(after)
    assert staged(site, after) is None
    site.check(after)
    assert site.meaning() == whole.meaning()


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_boundary_of_every_stage(name: str) -> None:
    """P2: whoever goes on afterwards ends there as well."""
    before, after = SCENARIOS[name]
    whole = site_at(before)
    whole.converge(after)
    for nth in count(1):
        site = site_at(before)
        with killed_at(site, nth) as reaper:
            staged(site, after)
        if not reaper.dead:
            break
        assert staged(site, after) is None, reaper.names[-1]
        site.check(after)
        assert site.meaning() == whole.meaning(), reaper.names[-1]
    assert nth >= 5


QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


@st.composite
def histories(draw: st.DrawFn) -> tuple[Surroundings, list[Resolved]]:
    site = draw(sites())
    return site, draw(st.lists(wishes(site), min_size=1, max_size=3))


@settings(max_examples=60, suppress_health_check=QUIET, deadline=None)
@given(histories(), st.integers(0, 2**32))
def test_random_sites_with_gpus(history: tuple[Surroundings, list[Resolved]], seed: int) -> None:
    facts, steps = history
    site, rng = Site(surroundings=facts), random.Random(seed)
    for desired in steps:
        try:
            site.plan(desired)
        except InvalidInput:  # it does not fit
            continue
        assert staged(site, desired, rng) is None
        site.check(desired)


@settings(max_examples=60, suppress_health_check=QUIET, deadline=None)
@given(histories(), st.integers(0, 2**32))
def test_what_never_gets_ready_ends_with_all_traffic_where_it_was(
    history: tuple[Surroundings, list[Resolved]], seed: int
) -> None:
    """Where every new instance dies, the routes keep what had them, but for what had to make room first."""
    facts, steps = history
    site, rng = Site(surroundings=facts), random.Random(seed)
    for desired in steps:
        try:
            plan = site.plan(desired)
        except InvalidInput:
            continue
        for node in plan.nodes:
            if isinstance(node.step, AwaitReady) and rng.random() < 0.5:
                site.world.behave(node.step.address, Behaviour(dies_after=rng.choice([0, 1, 2])))
        staged(site, desired)
        site.check()
        site.world.heal()


# Each part by itself.


SURGE, RECREATE = SCENARIOS["surge"], SCENARIOS["recreate"]


def plan_of(scenario: tuple[Resolved, Resolved]) -> tuple[Site, Plan]:
    site = site_at(scenario[0])
    return site, site.plan(scenario[1])


def kinds(plan: Plan) -> set[str]:
    return {type(node.step).__name__ for node in plan.nodes}


def test_a_surge_begins_with_its_launches() -> None:
    _, plan = plan_of(SURGE)
    assert kinds(at_once(plan)) == {"Launch"}


def test_a_recreate_begins_with_the_routes() -> None:
    _, plan = plan_of(RECREATE)
    now = at_once(plan)
    assert [node.id for node in now.nodes] == ["publish-without:one"]
    assert publishes(now)


def test_what_was_waited_for_lets_the_rest_through() -> None:
    site, plan = plan_of(SURGE)
    site.apply(at_once(plan))
    plan = site.plan(SURGE[1])
    found = waits(plan)
    assert {type(step) for step in found.values()} == {AwaitReady}
    assert len(found) == 2
    assert at_once(plan).nodes == ()
    first, second = found
    assert kinds(at_once(plan, [first])) == {"AwaitReady"}
    assert kinds(at_once(plan, [first, second])) == {"AwaitReady", "PublishTable"}


def test_what_needs_another_step_cannot_be_waited_for_yet() -> None:
    _, plan = plan_of(SURGE)
    assert waits(plan) == {}
    assert any(isinstance(node.step, AwaitReady) for node in plan.nodes)


def test_shortened_is_about_time_alone() -> None:
    _, plan = plan_of(SURGE)
    ready = next(node for node in plan.nodes if isinstance(node.step, AwaitReady))
    short = shortened(plan, {ready.id: 2.5})
    assert [(n.id, n.needs, n.after) for n in short.nodes] == [(n.id, n.needs, n.after) for n in plan.nodes]
    for node, was in zip(short.nodes, plan.nodes, strict=True):
        match node.step:
            case AwaitReady(timeout_s=timeout_s) if node.id == ready.id:
                assert timeout_s == 2.5
            case Drain(timeout_s=timeout_s):
                assert timeout_s == 0.0
            case step:
                assert step == was.step


@pytest.mark.parametrize("world", ["a60-b40+c", "a50-x50+c", "x+c", "A60-B40-recreate+none"])
def test_a_deletion_frees_the_name_first_and_ends_the_rest_later(world: str) -> None:
    site = site_at(WORLDS[world])
    running = site.running()
    plan = site.plan(NOTHING, destroy=True)
    first = forgotten_first(plan)
    assert kinds(first) == {"Withdraw", "Forget"}
    assert all(isinstance(n.step.address, EndpointAddress) for n in first.nodes if isinstance(n.step, Forget))
    outcome = site.apply(first)
    assert isinstance(outcome, Outcome)
    assert outcome.complete
    assert (site.state.endpoints, site.routes(), site.running()) == ({}, {}, running)
    assert staged(site, NOTHING) is None
    site.check(NOTHING)
    assert site.running() == []


def test_a_name_that_is_free_again_can_be_taken_while_the_old_one_still_runs() -> None:
    site = site_at(WORLDS["a60-b40+none"])
    site.apply(forgotten_first(site.plan(NOTHING, destroy=True)))
    anew = WORLDS["A+none"]
    assert staged(site, anew) is None
    site.check(anew)


def test_withdrawal_comes_before_the_forgetting() -> None:
    first = forgotten_first(site_at(WORLDS["a+c"]).plan(NOTHING, destroy=True))
    places = {node.id: index for index, node in enumerate(first.nodes)}
    for node in first.nodes:
        assert all(places[id] < places[node.id] for id in node.needs)
        if isinstance(node.step, Forget):
            assert node.needs, "requests would still be routed to an endpoint that is forgotten"
        else:
            assert isinstance(node.step, Withdraw)


@pytest.mark.parametrize("name", SCENARIOS)
def test_settings_move_no_route_and_start_nothing(name: str) -> None:
    before, after = SCENARIOS[name]
    site = site_at(before)
    was, plan = site.state, site.plan(after)
    only = routes_only(plan, was)
    assert kinds(only) <= {"PublishTable"}
    kept = [node for node in only.nodes if node.step.record.name in was.endpoints]  # type: ignore[union-attr]
    outcome = site.apply(Plan(**{**_fields(only), "nodes": tuple(kept)}))
    assert isinstance(outcome, Outcome)
    assert outcome.complete
    site.check()
    assert site.state.instances == was.instances
    for endpoint_name, record in site.state.endpoints.items():
        earlier = was.endpoints[endpoint_name]
        assert (record.targets, record.config_version) == (earlier.targets, earlier.config_version)


def _fields(plan: Plan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in Plan.__dataclass_fields__}


def test_settings_are_recorded() -> None:
    site = site_at(WORLDS["a+none"])
    described = WORLDS["a-described+none"]
    site.apply(routes_only(site.plan(described), site.state))
    assert site.state.endpoints["one"].block == described.endpoints[0].block
    site.check(described)


def given_up(scenario: tuple[Resolved, Resolved]) -> tuple[Site, State]:
    """A site where an update was given up after its launches; and its state of before."""
    before, after = scenario
    site = site_at(before)
    was = site.state
    site.apply(at_once(site.plan(after)))
    return site, was


def test_what_was_given_up_is_ended_and_the_routes_stay() -> None:
    site, was = given_up(SURGE)
    assert len(site.running()) == 4
    tables = len(site.tables)
    plan = site.plan(SURGE[0])
    assert kinds(retiring(plan, site.state)) == {"Stop"}
    outcome = site.apply(retiring(plan, site.state))
    assert isinstance(outcome, Outcome)
    assert outcome.complete
    site.check(SURGE[0])
    assert (site.state.endpoints, len(site.tables)) == (was.endpoints, tables)


@pytest.mark.parametrize("name", SCENARIOS)
def test_retiring_never_touches_what_is_routed(name: str) -> None:
    before, after = SCENARIOS[name]
    site = site_at(before)
    routed = {a for r in site.state.endpoints.values() for t in r.targets for a in t.instances}
    kept = retiring(site.plan(after), site.state)
    assert all(isinstance(n.step, Drain | Stop | Forget) and n.step.address not in routed for n in kept.nodes)
    ids = {node.id for node in kept.nodes}
    assert all(ids.issuperset(node.needs) for node in kept.nodes)


@settings(max_examples=60, suppress_health_check=QUIET, deadline=None)
@given(histories())
def test_retiring_in_random_sites(history: tuple[Surroundings, list[Resolved]]) -> None:
    """Half of each change is done and then given up; what serves goes on serving."""
    facts, steps = history
    site = Site(surroundings=facts)
    site.converge(NOTHING)
    for desired in steps:
        try:
            site.apply(at_once(site.plan(desired)))
            plan = site.plan(desired)
        except InvalidInput:
            continue
        routes = site.routes()
        outcome = site.apply(retiring(plan, site.state))
        assert isinstance(outcome, Outcome)
        assert outcome.complete
        assert site.routes() == routes
        site.check()


def test_only_publishing_counts_as_publishing() -> None:
    site = site_at(WORLDS["a+none"])
    assert publishes(site.plan(WORLDS["A+none"]))
    assert not publishes(site.plan(NOTHING))
    assert not publishes(site.plan(WORLDS["a+none"]))
    assert publishes(site.plan(bundle(endpoint("one", local("a", 100), description="x"))))
