"""Steps that come after others: once those have ended, whichever way, and never before."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.plan import Plan
from servestate.planner.resolve import Resolved
from servestate.planner.steps import AwaitReady, Launch
from servestate.providers.fake import Behaviour, Fault
from servestate.providers.protocol import PermanentError
from servestate.runtime.executor import Outcome
from tests.planner.blocks import bundle, endpoint
from tests.planner.gpu_worlds import host, on_gpus, surroundings
from tests.planner.rig import Site, killed_at

NAMES = ("one", "three", "two")
THREE = bundle(*(endpoint(name, on_gpus("a", 100, fraction=1 / 3, ready_timeout_s=3.0)) for name in NAMES))


@pytest.fixture
def site() -> Site:
    return Site(surroundings=surroundings(host("h1", 1)))


def loads(plan: Plan) -> list[InstanceAddress]:
    """The launches in the order in which they wait for each other."""
    return [n.step.address for n in plan.nodes if isinstance(n.step, Launch)]


def applied(site: Site, desired: Resolved, *, stop_at: int = 0) -> Outcome:
    found = site.apply(site.plan(desired), stop_at=stop_at)
    assert isinstance(found, Outcome)
    return found


def test_each_load_comes_after_those_before_it_and_needs_none_of_them(site: Site) -> None:
    nodes = [n for n in site.plan(THREE).nodes if isinstance(n.step, Launch)]
    ready = [f"ready:{n.step.address}" for n in nodes]
    assert [n.after for n in nodes] == [(), (ready[0],), (ready[0], ready[1])]
    assert not any(n.needs for n in nodes)


def test_three_loads_on_one_gpu_run_one_after_the_other(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[float, float]] = []
    first, second, third = loads(site.plan(THREE))
    for address in (first, second, third):
        site.world.behave(address, Behaviour(ready_after=3))
    began: dict[str, float] = {}
    real = site.proved

    def launching(name: str) -> None:
        if name == "launch:before":
            began[str(len(began))] = asyncio.get_running_loop().time()

    def proved(handle: str) -> None:
        spans.append((began[str(len(spans))], asyncio.get_running_loop().time()))
        real(handle)

    site.boundary = launching
    monkeypatch.setattr(site, "proved", proved)
    assert applied(site, THREE).complete
    assert len(spans) == 3
    assert all(start < end for start, end in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_on_three_gpus_they_run_at_once() -> None:
    site = Site(surroundings=surroundings(host("h1", 3)))
    whole = bundle(*(endpoint(name, on_gpus("a", 100)) for name in NAMES))
    assert not any(node.after for node in site.plan(whole).nodes)
    site.converge(whole)


@pytest.mark.parametrize("late", [False, True])
def test_a_launch_that_fails_does_not_keep_the_next_one(site: Site, late: bool) -> None:
    first, *others = loads(site.plan(THREE))
    site.world.fail("launch", first, 1, Fault(PermanentError("SS500", "no memory"), late=late))
    outcome = applied(site, THREE)
    assert set(outcome.failed) == {f"launch:{first}"}
    assert set(outcome.skipped) == {f"ready:{first}", f"publish:{first.endpoint}"}
    assert {f"ready:{address}" for address in others} <= set(outcome.done)


def test_a_load_that_never_gets_ready_does_not_keep_the_next_one_and_ends_before_it(site: Site) -> None:
    first, second, _ = loads(site.plan(THREE))
    site.world.behave(first, Behaviour(ready_after=None))
    outcome = applied(site, THREE)
    assert set(outcome.failed) == {f"ready:{first}"}
    assert site.world.effects.index(("stop", str(first))) < site.world.effects.index(("launch", str(second)))
    assert site.started.index(f"launch:{second}") > site.started.index(f"ready:{first}")


def test_after_an_interruption_nothing_more_starts_and_all_is_accounted_for(site: Site) -> None:
    plan = site.plan(THREE)
    first, *others = loads(plan)
    site.world.behave(first, Behaviour(ready_after=None))
    outcome = applied(site, THREE, stop_at=2)  # as the first one begins to wait
    assert outcome.interrupted
    assert set(outcome.done) == {f"launch:{first}"}
    assert {outcome.skipped[f"launch:{address}"] for address in others} == {"interrupted"}
    assert {*outcome.done, *outcome.failed, *outcome.skipped} == {node.id for node in plan.nodes}
    site.world.heal()
    site.converge(THREE)


def test_what_an_apply_that_died_still_loads_is_waited_out(site: Site) -> None:
    first, *_ = loads(site.plan(THREE))
    with killed_at(site, 7) as reaper:
        site.apply(site.plan(THREE))
    assert reaper.names[-1] == "probe"
    nodes = site.plan(THREE).nodes
    waited = next(n.id for n in nodes if isinstance(n.step, AwaitReady) and n.step.address == first)
    assert all(waited in n.after for n in nodes if isinstance(n.step, Launch))


def test_a_stop_that_fails_keeps_every_load_that_counts_on_its_room() -> None:
    """Also the second one, whose share is free only once that has stopped."""
    site = Site(surroundings=surroundings(host("h1", 1)))
    site.converge(bundle(endpoint("one", on_gpus("a", 100, fraction=0.5))))
    desired = bundle(
        endpoint("one", on_gpus("a", 100, "B", fraction=0.6)),
        endpoint("two", on_gpus("a", 100, fraction=0.4)),
    )
    (old,) = site.state.instances
    site.world.fail("stop", old, 1, Fault(PermanentError("SS500", "it does not answer")))
    outcome = applied(site, desired)
    assert f"stop:{old}" in outcome.failed
    assert any(id.startswith("launch:one/a") for id in outcome.skipped)
    assert site.violations == []
    site.world.heal()
    site.converge(desired)
