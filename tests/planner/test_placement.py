"""Where launches go: the cases that random sites found hard, and what a refusal means."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.address import InstanceAddress
from servestate.planner.claims import Books, Holder
from servestate.planner.diagnostics import InvalidInput
from servestate.planner.launch import Placement
from servestate.planner.match import Match, Need
from servestate.planner.placement import Placer
from servestate.planner.plan import Plan, make_plan
from servestate.planner.resolve import Resolved
from servestate.planner.state import Phase
from servestate.planner.steps import Launch, Node, Stop
from servestate.planner.surroundings import Gpu, Host
from servestate.providers.protocol import Marks
from tests.planner.blocks import bundle, endpoint
from tests.planner.gpu_worlds import GIB, Walk, host, on_gpus, surroundings
from tests.planner.rig import LINEAGE, Site


def site_of(*counts: int) -> Site:
    return Site(surroundings=surroundings(*(host(f"h{i}", n) for i, n in enumerate(counts, 1))))


def placements(plan: Plan) -> dict[str, Placement]:
    steps = (node.step for node in plan.nodes)
    return {str(s.address.of): s.placement for s in steps if isinstance(s, Launch)}


def one(version: str = "A", **how: object) -> Resolved:
    return bundle(endpoint("one", on_gpus("a", 100, version, **how)))  # type: ignore[arg-type]


def refusal(site: Site, desired: Resolved) -> str:
    with pytest.raises(InvalidInput) as refused:
        site.plan(desired)
    return str(refused.value)


def test_a_failed_instance_of_a_removed_entity_makes_room_at_once() -> None:
    """Its stop waits for nothing: waiting for the routes would wait for the entity that needs its GPU."""
    site = site_of(1)
    site.converge(one())
    ((address, instance),) = site.state.instances.items()
    state = replace(site.state, instances={address: replace(instance, phase=Phase.FAILED)})
    renamed = bundle(endpoint("one", on_gpus("b", 100)))
    nodes = {n.id: n for n in make_plan(renamed, state, site.look(), site.surroundings).nodes}
    assert nodes[f"stop:{address}"].needs == ()
    (launch,) = (n for n in nodes.values() if isinstance(n.step, Launch))
    assert launch.needs == (f"stop:{address}",)


def test_a_second_launch_waits_for_the_stop_that_the_first_one_waits_for() -> None:
    site = site_of(1)
    site.converge(bundle(endpoint("gone", on_gpus("a", 100, fraction=0.6))))
    (old,) = site.state.instances
    both = bundle(*(endpoint(name, on_gpus("a", 100, fraction=0.5)) for name in ("one", "two")))
    launches = [n for n in site.plan(both).nodes if isinstance(n.step, Launch)]
    assert [n.needs for n in launches] == [(f"stop:{old}",)] * 2


def test_a_launch_does_not_wait_out_a_load_that_waits_for_its_endpoint() -> None:
    """`two` waits for the old instance of `one`, whose successor shares the other GPU with `two`."""
    site = site_of(2)
    site.converge(one(fraction=0.6))
    pair = endpoint("two", on_gpus("a", 100, gpus=2, fraction=0.5))
    desired = bundle(endpoint("one", on_gpus("a", 100, "B", fraction=0.5)), pair)
    plan = site.plan(desired)
    assert placements(plan)["one/a"].gpus == ("1",)
    assert not any(node.after for node in plan.nodes)
    site.converge(desired)


def test_a_stray_and_the_instance_whose_address_it_wears_both_make_room() -> None:
    site = site_of(1)
    site.converge(one(fraction=0.5))
    (address,) = site.state.instances
    site.world.plant("process", Marks(LINEAGE, address, 1, "op", Placement("h1", ("0",), 0.5)))
    desired = bundle(endpoint("two", on_gpus("a", 100)))
    (launch,) = (n for n in site.plan(desired).nodes if isinstance(n.step, Launch))
    assert {id.partition(":")[0] for id in launch.needs} == {"stop", "stop-stray"}


def test_an_entity_with_strategy_surge_is_not_vacated_by_its_neighbour() -> None:
    def pair(version: str, **how: object) -> Resolved:
        kept = on_gpus("b", 40, version, fraction=0.5, **how)  # type: ignore[arg-type]
        return bundle(endpoint("one", on_gpus("a", 60, version, fraction=0.5), kept))

    site = site_of(1)
    site.converge(pair("A", surge=True))
    assert "held by" in refusal(site, pair("B", surge=True))
    assert not site.plan(pair("B")).blocked


def test_a_forced_recreate_stays_on_its_gpu() -> None:
    site = site_of(2)
    site.converge(one())
    plan = site.plan(one("B", recreate=True))
    assert placements(plan) == {"one/a": Placement("h1", ("0",))}
    assert [use.peak for use in plan.capacity] == [1]


def test_the_mildest_way_is_taken() -> None:
    site = site_of(1, 1)
    both = ("h1", "h2")
    site.converge(one(hosts=both))
    assert placements(site.plan(one("B", hosts=both)))["one/a"].host == "h2"  # surge beats staying
    (change,) = site.plan(one("B", hosts=("h1",))).changes
    assert change.category == "recreate"


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"fault": "Xid 79"}, "GPU 0: Xid 79"),
        ({"holders": ("container train",)}, "GPU 0: held by container train"),
        ({"used": 30 * GIB}, "GPU 0: 30.0 of its 80.0 GiB are in use by something that servestate did not"),
    ],
)
def test_a_gpu_that_may_not_be_used_is_named_with_the_reason(facts: dict, why: str) -> None:
    bare = Host("h1", (Gpu("0", 80 * GIB, **facts),))
    assert why in refusal(Site(surroundings=surroundings(bare)), one())


def test_a_little_use_is_that_of_the_driver() -> None:
    bare = Host("h1", (Gpu("0", 80 * GIB, used=GIB),))
    assert placements(Site(surroundings=surroundings(bare)).plan(one()))


@pytest.mark.parametrize("facts", [{"trouble": "no route"}, {"gpu_trouble": "no runtime"}])
def test_a_host_in_trouble_is_passed_over(facts: dict) -> None:
    site = Site(surroundings=surroundings(host("h1", 4, **facts), host("h2", 1)))
    assert placements(site.plan(one(hosts=("h1", "h2"))))["one/a"].host == "h2"
    assert next(iter(facts.values())) in refusal(site, one(hosts=("h1",)))


SHARES = st.lists(st.sampled_from([0.25, 0.5, 1.0]), max_size=4)


@given(SHARES, st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_what_is_refused_has_no_way_and_what_is_placed_fits(
    shares: list[float], count: int, wanted: int, fraction: float
) -> None:
    """A single launch beside what stays, against every choice of GPUs."""
    holders = [
        Holder(address(f"x{i}"), Placement("h1", (str(i % count),), share)) for i, share in enumerate(shares)
    ]
    free = {str(g): 1.0 - sum(s for i, s in enumerate(shares) if i % count == g) for g in range(count)}
    entity = on_gpus("a", 100, gpus=wanted, fraction=fraction)
    use = address("a")
    placer = Placer(Books(holders), surroundings(host("h1", count)), {})
    placed = placer.place([Match(entity, use, Need.LAUNCH, ())])
    ways = [c for c in combinations(free, wanted) if all(free[g] + 1e-9 >= fraction for g in c)]
    assert bool(placed) == bool(ways)
    assert bool(placer.refused) != bool(ways)
    if placed:
        assert tuple(sorted(placed[use].placement.gpus)) in ways
        assert all(free[g] + 1e-9 >= fraction for g in placed[use].placement.gpus)
        assert placed[use].needs == ()


def address(entity: str) -> InstanceAddress:
    return InstanceAddress("one", entity, "0badcafe")


def test_the_walk_notices_a_gpu_that_is_taken_twice() -> None:
    """Negative control: a plan whose launch does not wait for what holds its GPU."""
    site = site_of(1)
    site.converge(one())
    plan = site.plan(one("B", recreate=True))
    hasty = (replace(n, needs=()) if isinstance(n.step, Launch | Stop) else n for n in plan.nodes)
    wrong = replace(plan, nodes=tuple(hasty))
    found = [w for seed in range(20) for w in Walk(wrong, site.state, site.look(), random.Random(seed)).run()]
    assert any(w.startswith("P9: ('h1', '0') is taken 2 times") for w in found)
    assert any(w.startswith("P3:") for w in found)


def test_what_another_launch_of_the_plan_got_is_not_called_held() -> None:
    text = refusal(site_of(1), bundle(*(endpoint(n, on_gpus("a", 100)) for n in ("one", "two"))))
    assert "given to one/a@" in text
    assert "by this plan" in text
    assert "held by" not in text


@pytest.mark.parametrize(
    ("hosts", "fix"),
    [
        ((host("h1", 0, gpu_trouble="no driver"),), "declare `gpus` in servestate.providers"),
        ((host("h1", 1),), "share GPUs (gpu_fraction)"),
    ],
)
def test_the_way_out_fits_the_cause(hosts: tuple[Host, ...], fix: str) -> None:
    wanted = bundle(*(endpoint(n, on_gpus("a", 100)) for n in ("one", "two")))
    assert fix in refusal(Site(surroundings=surroundings(*hosts)), wanted)


def mishaps(site: Site, plan: Plan) -> set[str]:
    """What goes wrong on a hundred ways through a plan on which much fails."""
    state, live = site.state, site.look()
    return {w for seed in range(100) for w in Walk(plan, state, live, random.Random(seed), 0.4).run()}


def launches(plan: Plan) -> dict[str, Node]:
    return {str(n.step.address.of): n for n in plan.nodes if isinstance(n.step, Launch)}


def test_a_load_that_only_waits_out_another_is_itself_waited_for_or_waits() -> None:
    """`one` comes after `two`, and `two` after the old instance of `three`. Where `two` is given up, for its
    own old instance does not stop, `one` starts at once, and the new instance of `three` may be loading."""
    site = site_of(2)
    site.converge(
        bundle(
            endpoint("three", on_gpus("a", 100, fraction=0.7)),
            endpoint("two", on_gpus("a", 100, fraction=0.2)),
        )
    )
    desired = bundle(
        endpoint("one", on_gpus("a", 100, fraction=0.3)),
        endpoint("three", on_gpus("a", 100, "B", fraction=0.3)),
        endpoint("two", on_gpus("a", 100, "B", gpus=2, fraction=0.4, recreate=True)),
    )
    plan = site.plan(desired)
    assert {placements(plan)[name].gpus for name in ("one/a", "three/a")} == {("1",)}
    found = launches(plan)
    assert f"ready:{found['three/a'].step.address}" in found["one/a"].after
    assert mishaps(site, plan) == set()
    site.converge(desired)


def test_what_is_adopted_may_be_loading_and_is_waited_out() -> None:
    """Although what takes more GPUs is placed first."""
    site = site_of(2)
    site.converge(bundle(endpoint("one", on_gpus("a", 100, fraction=0.5))))
    entity = on_gpus("a", 100, fraction=0.5)
    stray = InstanceAddress("two", "a", entity.revision)
    site.world.plant("process", Marks(LINEAGE, stray, 1, "op", Placement("h1", ("1",), 0.5)))
    pair = endpoint("three", on_gpus("a", 100, gpus=2, fraction=0.5))
    desired = bundle(endpoint("one", on_gpus("a", 100, fraction=0.5)), pair, endpoint("two", entity))
    plan = site.plan(desired)
    assert launches(plan)["three/a"].after == (f"ready:{stray}",)
    assert mishaps(site, plan) == set()
    site.converge(desired)


def test_an_entity_is_vacated_with_all_that_is_left_of_it() -> None:
    """`one/a` needs the GPU of one old instance of `one/b`; the other one stops as early, and what waits for
    its GPU starts as early."""
    site = site_of(3)
    kept = endpoint("kept", on_gpus("a", 100, fraction=0.5))
    site.converge(bundle(kept, endpoint("one", on_gpus("b", 100, fraction=0.5))))
    changed = site.plan(bundle(kept, endpoint("one", on_gpus("b", 100, "B", fraction=0.5))))
    site.apply(changed, stop_at=3)  # as the routes move: both are left
    assert len([a for a in site.state.instances if a.endpoint == "one"]) == 2
    desired = bundle(
        kept,
        endpoint(
            "one", on_gpus("a", 60, gpus=2, fraction=0.4), on_gpus("b", 40, "C", gpus=0, hosts=("local",))
        ),
        endpoint("two", on_gpus("a", 100, gpus=2, fraction=0.6)),
    )
    plan = site.plan(desired)
    assert launches(plan)["one/a"].after == (f"ready:{launches(plan)['two/a'].step.address}",)
    assert mishaps(site, plan) == set()
    site.converge(desired)
