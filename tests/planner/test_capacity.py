"""Who holds the GPUs when a plan starts, and how many are in use before, at most, and after."""

from __future__ import annotations

from dataclasses import replace

from servestate.planner.capacity import HostUse
from servestate.planner.launch import Placement
from servestate.planner.surroundings import Gpu, Host
from servestate.providers.protocol import Marks
from tests.planner.blocks import NOTHING, bundle, endpoint, local
from tests.planner.gpu_worlds import GIB, host, on_gpus, surroundings
from tests.planner.rig import LINEAGE, Site

ONE = bundle(endpoint("one", on_gpus("a", 100)))
NEXT = bundle(endpoint("one", on_gpus("a", 100, "B")))


def site_of(*counts: int) -> Site:
    return Site(surroundings=surroundings(*(host(f"h{i}", n) for i, n in enumerate(counts, 1))))


def test_a_first_launch_a_surge_a_recreate_and_an_end() -> None:
    for gpus, peak in ((2, 2), (1, 1)):
        site = site_of(gpus)
        assert site.plan(ONE).capacity == (HostUse("h1", gpus, 0, 1, 1),)
        site.converge(ONE)
        assert site.plan(NEXT).capacity == (HostUse("h1", gpus, 1, peak, 1),)
        assert site.plan(NOTHING).capacity == (HostUse("h1", gpus, 1, 1, 0),)


def test_a_plan_without_steps_or_gpus_tells_no_use() -> None:
    site = site_of(1)
    assert site.plan(bundle(endpoint("one", local("a", 100)))).capacity == ()
    site.converge(ONE)
    assert site.plan(ONE).capacity == ()


def test_only_hosts_on_which_something_is_held_are_told() -> None:
    assert [use.host for use in site_of(1, 4).plan(ONE).capacity] == ["h1"]


def test_what_others_hold_counts_as_in_use() -> None:
    taken = Host("h1", (Gpu("0", 80 * GIB, holders=("container train",)), Gpu("1", 80 * GIB, used=0)))
    site = Site(surroundings=surroundings(taken))
    assert site.plan(ONE).capacity == (HostUse("h1", 2, 1, 2, 2),)


def test_what_has_ended_holds_nothing_and_what_is_paused_does() -> None:
    site = site_of(2)
    site.converge(ONE)
    (address,) = site.state.instances
    site.world.pause(address)
    assert site.plan(ONE).capacity == (HostUse("h1", 2, 1, 2, 1),)
    site.world.crash(address)
    assert site.plan(ONE).capacity == (HostUse("h1", 2, 0, 1, 1),)


def test_a_stray_holds_what_its_marks_say() -> None:
    site = site_of(1)
    site.converge(ONE)
    (address,) = site.state.instances
    stray = replace(address, revision="0badcafe")
    site.world.plant("process", Marks(LINEAGE, stray, 1, "op", Placement("h9", ("7",))))
    assert HostUse("h9", 0, 1, 1, 0) in site.plan(ONE).capacity


def test_what_another_owner_runs_stays_in_the_books() -> None:
    site = site_of(2)
    site.converge(bundle(endpoint("theirs", on_gpus("a", 100)), name="bank"))
    assert site.plan(ONE).capacity == (HostUse("h1", 2, 1, 2, 2),)
