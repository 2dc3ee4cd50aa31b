"""Plan and apply over all pairs of small worlds, and over every way that an apply can be disturbed.

The properties P3 (nothing routed is stopped), P4 (tables name only what is ready, weights make 100), P7 (no
step before its needs) and D1 (intent before effect) are watched by the site itself during every apply here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from servestate.planner.codec import encode_plan
from servestate.planner.diagnostics import Diagnostic
from servestate.planner.live import Live
from servestate.planner.plan import make_plan
from servestate.planner.resolve import Resolved
from servestate.planner.state import State
from servestate.providers.fake import Behaviour, Fault
from servestate.providers.protocol import PermanentError, TransientError
from servestate.runtime.executor import Outcome
from servestate.runtime.store.protocol import StoreError
from tests.planner.memory_store import MemoryStore
from tests.planner.rig import Site, killed_at
from tests.planner.scenarios import PAIRS, SCENARIOS, WORLDS

ALONE: dict[str, object] = {}


def site_at(before: Resolved) -> Site:
    """A site at which `before` was applied without any trouble."""
    site = Site()
    site.converge(before)
    return site


def undisturbed(before: Resolved, after: Resolved) -> object:
    site = site_at(before)
    site.converge(after)
    return site.meaning()


@pytest.mark.parametrize("first", WORLDS)
def test_every_pair_of_worlds(first: str) -> None:
    """P1, I2, I4 and P5 in one go, since they need the same applies."""
    for second in WORLDS:
        site = site_at(WORLDS[first])
        beginning = site.meaning()
        to_second = encode_plan(site.plan(WORLDS[second]))
        assert encode_plan(site.plan(WORLDS[second])) == to_second, "P5: not the same bytes"
        site.converge(WORLDS[second])  # P1: its check plans again and finds nothing
        nothing_more(site, WORLDS[second])
        assert site.meaning() == alone(second), "I4: the way matters"
        site.converge(WORLDS[first])
        assert site.meaning() == beginning, "I4: there and back is not where it began"


def nothing_more(site: Site, desired: Resolved) -> None:
    """I2: applying again does nothing at all."""
    assert isinstance(site.store, MemoryStore)
    before = (site.state, site.store.commits, list(site.world.effects), len(site.tables))
    outcome = site.apply(site.plan(desired))
    assert isinstance(outcome, Outcome)
    assert outcome.complete
    assert (site.state, site.store.commits, site.world.effects, len(site.tables)) == before


def alone(world: str) -> object:
    if world not in ALONE:
        site = site_at(WORLDS[world])
        ALONE[world] = site.meaning()
    return ALONE[world]


def test_there_are_enough_pairs() -> None:
    assert len(PAIRS) >= 900


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_plan_does_not_depend_on_the_order_of_what_it_is_made_from(name: str) -> None:
    before, after = SCENARIOS[name]
    site = site_at(before)
    state, live = site.state, site.look()
    flipped = replace(
        state,
        endpoints=dict(reversed(state.endpoints.items())),
        instances=dict(reversed(state.instances.items())),
    )
    other_way = Live(dict(reversed(live.instances.items())), live.duplicates, live.table_version)
    assert encode_plan(make_plan(after, state, live)) == encode_plan(make_plan(after, flipped, other_way))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_plan_writes_and_does_nothing(name: str) -> None:
    before, after = SCENARIOS[name]
    site = site_at(before)
    was = (site.state, list(site.world.things.items()), site.table.text)
    site.plan(after)
    assert (site.state, list(site.world.things.items()), site.table.text) == was


@pytest.mark.parametrize("name", SCENARIOS)
def test_interrupted_at_every_step(name: str) -> None:
    """P2: Ctrl-C as each step starts."""
    before, after = SCENARIOS[name]
    wanted = undisturbed(before, after)
    nth = 0
    while True:
        nth += 1
        site = site_at(before)
        site.started.clear()
        outcome = site.apply(site.plan(after), stop_at=nth)
        assert isinstance(outcome, Outcome)
        if len(site.started) < nth:
            break
        assert outcome.interrupted
        site.converge(after)
        assert site.meaning() == wanted
    assert nth > 1


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_boundary(name: str) -> None:
    """P2, I3, T23: kill -9 before and after every effect, commit and table write."""
    before, after = SCENARIOS[name]
    wanted = undisturbed(before, after)
    nth = 0
    while True:
        nth += 1
        site = site_at(before)
        with killed_at(site, nth) as reaper:
            site.apply(site.plan(after))
        if not reaper.dead:
            break
        site.converge(after)
        assert site.meaning() == wanted, reaper.names[-1]
    assert nth >= 5


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_boundary_and_then_turned_back(name: str) -> None:
    """The person gives up after the crash and applies the old configuration again."""
    before, after = SCENARIOS[name]
    wanted = site_at(before).meaning()
    nth = 0
    while True:
        nth += 1
        site = site_at(before)
        with killed_at(site, nth) as reaper:
            site.apply(site.plan(after))
        if not reaper.dead:
            break
        site.converge(before)
        assert site.meaning() == wanted, reaper.names[-1]


@pytest.mark.slow
@pytest.mark.parametrize("first", WORLDS)
def test_killed_twice_on_the_way_between_all_worlds(first: str) -> None:
    """Every pair of worlds, killed at every boundary, and the recovering apply killed as well."""
    for second in WORLDS:
        nth = 0
        while True:
            nth += 1
            site = site_at(WORLDS[first])
            with killed_at(site, nth) as reaper:
                site.apply(site.plan(WORLDS[second]))
            if not reaper.dead:
                break
            with killed_at(site, 1 + nth % 3):
                site.apply(site.plan(WORLDS[second]))
            site.converge(WORLDS[second])
            assert site.meaning() == alone(second)


TRANSIENT, PERMANENT = TransientError("busy"), PermanentError("SS500", "no memory", "buy some")
FAULTS: dict[str, Callable[[Site, str, str], None]] = {
    "transient once": lambda site, method, at: site.world.fail(method, at, 1, Fault(TRANSIENT)),
    "answer lost once": lambda site, method, at: site.world.fail(method, at, 1, Fault(TRANSIENT, late=True)),
    "permanent": lambda site, method, at: site.world.fail(method, at, 1, Fault(PERMANENT)),
    "permanent after the effect": lambda site, method, at: site.world.fail(
        method, at, 1, Fault(PERMANENT, late=True)
    ),
    "transient for ever": lambda site, method, at: fail_always(site, method, at, Fault(TRANSIENT)),
    "answers lost for ever": lambda site, method, at: fail_always(
        site, method, at, Fault(TRANSIENT, late=True)
    ),
}


def fail_always(site: Site, method: str, at: str, fault: Fault) -> None:
    for nth in range(1, 5):
        site.world.fail(method, at, nth, fault)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_provider_call_fails_once(name: str, fault: str) -> None:
    """P2: whatever a provider raises, wherever; once it is well again, one apply is enough."""
    before, after = SCENARIOS[name]
    wanted = undisturbed(before, after)
    for method, address in calls_of(before, after):
        site = site_at(before)
        site.world.calls.clear()
        FAULTS[fault](site, method, address)
        outcome = site.apply(site.plan(after))
        assert isinstance(outcome, Outcome)
        site.check()
        site.world.heal()
        site.converge(after)
        assert site.meaning() == wanted, (method, address)


def calls_of(before: Resolved, after: Resolved) -> list[tuple[str, str]]:
    """The provider calls of an undisturbed apply, by method and address."""
    site = site_at(before)
    site.world.calls.clear()
    site.converge(after)
    return [(method, address) for method, address in site.world.calls if method != "observe"]


ACTS = {
    "never ready": Behaviour(ready_after=None),
    "ready late": Behaviour(ready_after=3),
    "dies at start": Behaviour(dies_after=0),
    "dies while starting": Behaviour(ready_after=None, dies_after=2),
}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("act", ACTS)
def test_everything_launched_behaves_badly(name: str, act: str) -> None:
    """P2, and the old instances keep their traffic where the new one fails."""
    before, after = SCENARIOS[name]
    wanted = undisturbed(before, after)
    for method, text in calls_of(before, after):
        if method != "launch":
            continue
        site = site_at(before)
        plan = site.plan(after)
        address = next(n.step.address for n in plan.nodes if n.id == f"launch:{text}")
        site.world.behave(address, ACTS[act])
        outcome = site.apply(plan)
        assert isinstance(outcome, Outcome)
        assert outcome.complete == (act == "ready late")
        site.check()
        site.world.behave(address, Behaviour())
        site.converge(after)
        assert site.meaning() == wanted


def test_a_surge_that_fails_leaves_the_old_one_serving() -> None:
    before, after = SCENARIOS["surge"]
    site = site_at(before)
    routes = site.routes()
    plan = site.plan(after)
    for node in plan.nodes:
        if node.id.startswith("launch:"):
            site.world.behave(node.step.address, Behaviour(ready_after=None))
    outcome = site.apply(plan)
    assert isinstance(outcome, Outcome)
    assert sorted(outcome.failed) == sorted(n.id for n in plan.nodes if n.id.startswith("ready:"))
    assert site.routes() == routes
    assert {node.id.split(":")[0] for node in plan.nodes if node.id in outcome.skipped} == {
        "publish",
        "drain",
        "stop",
    }


class FullDisk(MemoryStore):
    """A store that fails at one commit and every later one until it is emptied."""

    def __init__(self) -> None:
        super().__init__()
        self.fails_after: int | None = None

    def commit(self, before: State, events, lock, now):  # type: ignore[no-untyped-def]
        if self.fails_after is not None and self.commits >= self.fails_after:
            raise StoreError(Diagnostic("SS402", "no space left on device", "free some"))
        return super().commit(before, events, lock, now)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_store_fails_at_every_commit(name: str) -> None:
    """D4: once the store is lost, no further effect starts; later one apply is enough."""
    before, after = SCENARIOS[name]
    wanted = undisturbed(before, after)
    for nth in range(100):
        store = FullDisk()
        site = Site(store)
        site.converge(before)
        store.fails_after = store.commits + nth
        outcome = site.apply(site.plan(after))
        assert isinstance(outcome, Outcome)
        if outcome.complete:
            break
        assert isinstance(outcome.lost, StoreError)
        store.fails_after = None
        site.converge(after)
        assert site.meaning() == wanted
    else:
        raise AssertionError("it never got through")


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_table_file_cannot_be_written_at_every_write(name: str) -> None:
    before, after = SCENARIOS[name]
    wanted = undisturbed(before, after)
    nth = 0
    while True:
        nth += 1
        site = site_at(before)
        writes = 0

        def boundary(point: str, full: int = nth) -> None:
            nonlocal writes
            writes += point == "table:before"
            if point == "table:before" and writes >= full:
                raise OSError(28, "No space left on device")

        site.boundary = boundary
        outcome = site.apply(site.plan(after))
        assert isinstance(outcome, Outcome)
        site.boundary = lambda point: None
        if outcome.complete:
            break
        site.check()
        site.converge(after)
        assert site.meaning() == wanted
