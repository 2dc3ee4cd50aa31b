"""What of the world is used, adopted, replaced or removed, where state and world disagree."""

from __future__ import annotations

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.drift import DriftKind
from servestate.providers.fake import Fault
from servestate.providers.protocol import Marks, PermanentError
from servestate.runtime.executor import Outcome
from tests.planner.blocks import bundle, endpoint, local
from tests.planner.rig import LINEAGE, Site

ONE = bundle(endpoint("chat", local("a", 100)))
ADDRESS = next(n.step.address for n in Site().plan(ONE).nodes if n.id.startswith("launch:"))


def plant(site: Site, address: InstanceAddress, lineage: str = LINEAGE) -> str:
    return site.world.plant("process", Marks(lineage, address, 1, "op-lost")).handle


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_stray_of_the_wanted_revision_is_adopted(site: Site) -> None:
    handle = plant(site, ADDRESS)
    site.converge(ONE)
    assert site.world.effects == []
    assert site.state.instances[ADDRESS].handle == handle


def test_a_stray_of_another_revision_is_stopped(site: Site) -> None:
    other = InstanceAddress("chat", "a", "0badcafe")
    plant(site, other)
    site.converge(ONE)
    assert ("stop", str(other)) in site.world.effects


def test_a_stray_of_another_lineage_is_never_touched(site: Site) -> None:
    stranger = plant(site, ADDRESS, "another-lineage")
    site.apply(site.plan(ONE))
    assert stranger in site.world.things
    assert len(site.world.alive(ADDRESS)) == 2


@pytest.mark.parametrize("count", [2, 9, 10, 11])
def test_strays_that_share_an_address_are_all_removed(site: Site, count: int) -> None:
    """Which of them a provider would adopt is its own choice, so none is relied on."""
    handles = {plant(site, ADDRESS) for _ in range(count)}
    site.converge(ONE)
    assert not handles & site.world.things.keys()
    assert len(site.world.things) == 1


def test_a_duplicate_of_a_recorded_instance_is_removed_and_the_recorded_one_stays(site: Site) -> None:
    site.converge(ONE)
    (recorded,) = site.world.things
    plant(site, ADDRESS)
    site.converge(ONE)
    assert set(site.world.things) == {recorded}


def test_a_paused_instance_is_replaced_at_another_address(site: Site) -> None:
    site.converge(ONE)
    site.world.pause(ADDRESS)
    assert [d.kind for d in site.plan(ONE).drift] == [DriftKind.PAUSED]
    site.converge(ONE)
    assert {a.replica for a in site.state.instances} == {1}


def test_what_runs_under_a_recorded_address_with_another_handle_is_removed(site: Site) -> None:
    site.converge(ONE)
    site.world.vanish(ADDRESS)
    usurper = plant(site, ADDRESS)
    assert DriftKind.REPLACED in [d.kind for d in site.plan(ONE).drift]
    site.converge(ONE)
    assert usurper not in site.world.things


def test_a_launch_that_acted_and_failed_leaves_nothing_after_the_next_apply(site: Site) -> None:
    lost = Fault(PermanentError("SS500", "no answer"), late=True)
    site.world.fail("launch", ADDRESS, 1, lost)
    outcome = site.apply(site.plan(ONE))
    assert isinstance(outcome, Outcome)
    assert len(site.world.alive(ADDRESS)) == 1
    site.world.heal()
    site.converge(ONE)
    assert len(site.world.things) == 1


def test_an_instance_of_an_endpoint_that_another_bundle_owns_is_left_alone(site: Site) -> None:
    theirs = bundle(endpoint("embed", local("x", 100)), name="bank")
    site.converge(theirs)
    before = set(site.world.things)
    site.apply(site.plan(ONE))
    site.apply(site.plan(bundle()))
    assert set(site.world.things) == before
    site.check(theirs)
