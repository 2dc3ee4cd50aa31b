"""Negative controls: with a safeguard taken out, the simulation must notice. What cannot fail is no test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from servestate.planner import match, plan, rollout
from servestate.planner import state as events
from servestate.planner.state import State
from servestate.planner.steps import Launch, Node, Stop
from servestate.planner.table import RoutingTable
from servestate.providers.protocol import Marks
from servestate.runtime import executor
from servestate.runtime.executor import Executor
from servestate.runtime.store.protocol import Lock
from tests.planner.blocks import bundle, endpoint, local
from tests.planner.memory_store import MemoryStore
from tests.planner.rig import Site, killed_at
from tests.simulation.simulation import Simulation, Unsound

SEEDS = range(1, 21)
Patch = pytest.MonkeyPatch


def noticed(store: Callable[[], MemoryStore] = MemoryStore) -> str:
    """What the histories that go wrong say, a line each."""
    found = []
    for seed in SEEDS:
        try:
            Simulation(seed, store()).run()
        except Unsound as unsound:
            found.append(str(unsound).splitlines()[0])
    return "\n".join(found)


def test_with_everything_in_place_nothing_is_noticed() -> None:
    assert noticed() == ""


def test_the_intent_is_committed_after_the_effect(monkeypatch: Patch) -> None:
    async def launch(self: Executor, step: Launch) -> None:
        op = self._world.new_id()
        marks = Marks(self.state.lineage, step.address, self.state.serial, op)
        launched = await self._provider(step.spec).launch(step.spec, marks)
        await self._record(events.LaunchIntended(step.address, step.spec, op))
        await self._record(events.Launched(step.address, launched.handle, launched.url))

    monkeypatch.setattr(Executor, "_launch", launch)
    assert "D1: launch of" in noticed()


def test_a_stop_without_an_intent(monkeypatch: Patch) -> None:
    async def stop(self: Executor, step: Stop) -> None:
        await self._world.providers[step.provider].stop(step.handle, step.grace_s)
        await self._record(events.StopIntended(step.address, "op"))
        await self._record(events.Stopped(step.address))

    monkeypatch.setattr(Executor, "_stop", stop)
    assert "D1: stop of" in noticed()


def test_what_wears_our_marks_is_not_looked_for(monkeypatch: Patch) -> None:
    for module in (match, plan):
        monkeypatch.setattr(module, "strays", lambda state, live: [])
    assert "drift is left" in noticed()


@pytest.mark.parametrize(("settles", "launches"), [(True, 1), (False, 2)])
def test_an_interrupted_launch_is_taken_up_only_because_intents_are_settled(
    monkeypatch: Patch, settles: bool, launches: int
) -> None:
    """Without it everything still ends well, since what was launched is then a stray; but it starts twice."""
    if not settles:
        for module in (match, plan, executor):
            monkeypatch.setattr(module, "settle", lambda state, live: iter(()))
    site, desired = Site(), bundle(endpoint("chat", local("a", 100)))
    with killed_at(site, 4) as reaper:
        site.apply(site.plan(desired))
    assert reaper.names == ["commit:before", "commit:after", "launch:before", "launch:after"]
    site.converge(desired)
    assert [what for what, _ in site.world.effects].count("launch") == launches


def test_stops_do_not_wait_for_the_routes_to_move(monkeypatch: Patch) -> None:
    real = rollout._retire

    def retire(instance: object, needs: object, timings: object) -> Iterator[Node]:
        yield from (replace(node, needs=()) for node in real(instance, (), timings))  # type: ignore[arg-type]

    monkeypatch.setattr(rollout, "_retire", retire)
    monkeypatch.setattr(Executor, "_check_unrouted", lambda self, address: None)
    assert "P3:" in noticed()


def test_the_executor_alone_refuses_such_a_plan(monkeypatch: Patch) -> None:
    """The second line of defence: the same plans, with its check on, never stop what is routed to."""
    real = rollout._retire

    def retire(instance: object, needs: object, timings: object) -> Iterator[Node]:
        yield from (replace(node, needs=()) for node in real(instance, (), timings))  # type: ignore[arg-type]

    monkeypatch.setattr(rollout, "_retire", retire)
    found = noticed()
    assert found
    assert "P3:" not in found


def test_routes_move_before_the_new_one_is_ready(monkeypatch: Patch) -> None:
    async def await_ready(self: Executor, node: Node, step: object) -> None:
        await self._record(events.BecameReady(step.address))  # type: ignore[attr-defined]

    monkeypatch.setattr(Executor, "_await_ready", await_ready)
    assert "which never proved ready" in noticed()


def test_a_lost_table_is_not_written_again(monkeypatch: Patch) -> None:
    monkeypatch.setattr(plan, "_plan_table", lambda state, live, drafts: None)
    assert noticed()


def test_weights_do_not_add_up(monkeypatch: Patch) -> None:
    real = executor.build_table

    def build(state: State) -> RoutingTable:
        table = real(state)
        endpoints = tuple(
            replace(e, entities=tuple(replace(x, weight=x.weight // 2) for x in e.entities))
            for e in table.endpoints
        )
        return replace(table, endpoints=endpoints)

    monkeypatch.setattr(executor, "build_table", build)
    assert "weights add up to" in noticed()


class LastWriterWins(MemoryStore):
    """No compare-and-swap."""

    def _may_write(self, before: State, lock: Lock) -> bool:
        return True


def test_the_store_does_not_compare_and_swap() -> None:
    assert noticed(LastWriterWins)


class Forgetful(MemoryStore):
    """Acknowledges and does not keep: every tenth commit is lost."""

    def commit(self, before, events, lock, now):  # type: ignore[no-untyped-def]
        after = super().commit(before, events, lock, now)
        if self.commits % 10 == 0:
            self.state = before
        return after


def test_the_store_forgets_what_it_acknowledged() -> None:
    assert noticed(Forgetful)


def test_a_plan_is_applied_without_asking_what_moved(monkeypatch: Patch) -> None:
    import tests.planner.rig as rig

    monkeypatch.setattr(rig, "moved", lambda *args: [])
    assert "another serial was applied" in noticed()
