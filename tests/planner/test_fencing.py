"""D2: an operator who lost the lock while it stood still writes nothing and starts no effect any more."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.plan import make_plan
from servestate.planner.resolve import Resolved
from servestate.planner.state import State, StrayStopIntended, apply_event
from servestate.providers.protocol import Marks
from servestate.runtime.executor import Outcome
from servestate.runtime.store.protocol import Lock, LostLock, Owner
from tests.planner.blocks import bundle, endpoint, local
from tests.planner.memory_store import MemoryStore
from tests.planner.rig import LINEAGE, Site
from tests.planner.scenarios import SCENARIOS
from tests.planner.virtual_time import run

ONE = bundle(endpoint("chat", local("a", 100)))
ANOTHER = endpoint("another", local("z", 100))
ANA = Owner("apply", "ana", "host", "1-1-boot")


class CarelessStore(MemoryStore):
    """A store without the compare-and-swap: the last one to write wins."""

    def _may_write(self, before: State, lock: Lock) -> bool:
        return True


def overtaken(site: Site, before: Resolved, after: Resolved) -> tuple[Outcome, bool]:
    """Ana checks everything and stands still; Bob breaks her lock and applies; Ana goes on. Her outcome, and
    whether she changed anything: world, table or state."""
    site.converge(before)
    return standing_still(site, after, bundle(*before.endpoints, ANOTHER))


def standing_still(site: Site, hers: Resolved, his: Resolved) -> tuple[Outcome, bool]:
    plan, state, live = site.plan(hers), site.state, site.look()
    lock, _ = site.store.acquire(ANA, 0.0)
    site.store.break_lock(lock.id)
    site.apply(site.plan(his))
    was = facts(site)
    outcome = run(site.execute(plan, state, live, lock))
    return outcome, facts(site) != was


def facts(site: Site) -> object:
    return site.state, site.world.things, site.table.text


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_overtaken_operator_changes_nothing(name: str) -> None:
    outcome, changed = overtaken(Site(), *SCENARIOS[name])
    assert isinstance(outcome.lost, LostLock)
    assert not changed
    assert not outcome.done


def test_an_overtaken_operator_stops_no_stray_that_was_adopted() -> None:
    """Ana wants nothing and sees a stray to remove; Bob wants just that one and routes to it."""
    site = Site()
    site.store.create(LINEAGE)
    address = next(n.step.address for n in site.plan(ONE).nodes if n.id.startswith("launch:"))
    site.world.plant("process", Marks(LINEAGE, address, 1, "op-lost"))
    outcome, changed = standing_still(site, bundle(), ONE)
    assert isinstance(outcome.lost, LostLock)
    assert not changed
    site.check(ONE)


def test_an_overtaken_operator_puts_no_old_table_over_a_new_one() -> None:
    site = Site()
    site.converge(ONE)
    site.table.text = None
    outcome, changed = standing_still(site, ONE, bundle(*ONE.endpoints, ANOTHER))
    assert isinstance(outcome.lost, LostLock)
    assert not changed


@pytest.mark.parametrize("name", SCENARIOS)
def test_frozen_at_every_provider_call_while_another_one_applies(name: str) -> None:
    """P3 and convergence, when the other one goes back to the old configuration meanwhile."""
    before, after = SCENARIOS[name]
    for nth in count(1):
        site = Site()
        site.converge(before)
        site.frozen = freezer = Freezer(site, nth, before)
        outcome = site.apply(site.plan(after))
        assert isinstance(outcome, Outcome)
        if not freezer.thawed:
            break
        assert isinstance(outcome.lost, LostLock)
        site.check()
        site.converge(before)


class Freezer:
    """Stands still once, for as long as another operator's whole apply takes."""

    def __init__(self, site: Site, nth: int, his: Resolved) -> None:
        self._site, self._left, self._his = site, nth, his
        self.thawed = False

    async def __call__(self, name: str) -> None:
        self._left -= 1
        if self._left:
            return
        held = self._site.store.held()
        assert held is not None
        self._site.store.break_lock(held.id)
        plan = make_plan(self._his, self._site.state, await self._site.looking())
        found = await self._site.applying(plan, person="bob")
        assert isinstance(found, Outcome)
        assert found.complete, found
        self.thawed = True


def test_without_the_compare_and_swap_all_this_is_noticed() -> None:
    """The control: on a store that lets the last writer win, the tests above fail."""
    noticed = [name for name in SCENARIOS if overtaken(Site(CarelessStore()), *SCENARIOS[name])[1]]
    assert noticed == list(SCENARIOS)


def test_a_serial_ahead_or_behind_is_refused_alike() -> None:
    store = MemoryStore()
    state = store.create(LINEAGE)
    lock, _ = store.acquire(ANA, 0.0)
    event = StrayStopIntended(InstanceAddress("chat", "a", "ab"), "x")
    after = store.commit(state, [event], lock, 0.0)
    for wrong in (state, replace(after, serial=after.serial + 1), replace(after, lineage="other")):
        with pytest.raises(LostLock):
            store.commit(wrong, [event], lock, 0.0)
    assert store.read() == after == apply_event(state, event)
