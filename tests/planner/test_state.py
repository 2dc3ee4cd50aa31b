"""The state machine, whole: every phase with every event, and what each event touches."""

from __future__ import annotations

from itertools import product

import pytest

from servestate.planner.address import EndpointAddress, InstanceAddress
from servestate.planner.launch import ExternalSpec, LaunchSpec
from servestate.planner.state import (
    BecameReady,
    DrainBegan,
    EndpointRecord,
    Forgotten,
    IllegalEvent,
    Instance,
    Launched,
    LaunchFailed,
    LaunchIntended,
    Phase,
    Published,
    Registered,
    State,
    StopIntended,
    Stopped,
    StrayStopIntended,
    TableRewriteIntended,
    Target,
    Withdrawn,
    apply_event,
    touched,
)

ADDRESS = InstanceAddress("chat", "current", "3f9a1c27")
OTHER = InstanceAddress("chat", "current", "3f9a1c27", 1)
LAUNCH = LaunchSpec("process", "command", "m", args=("serve", "{port}"))
EXTERNAL = ExternalSpec("openai", "https://one.example/v1", "gpt", "llm/v1/chat")
RECORD = EndpointRecord("chat", "chat", "demo", "{}", 1, (Target("current", 100, (ADDRESS,)),))

EVENTS = (
    LaunchIntended(ADDRESS, LAUNCH, "op-2"),
    Launched(ADDRESS, "new-handle", "http://new.invalid"),
    Registered(ADDRESS, EXTERNAL, "external:one.example", EXTERNAL.url),
    BecameReady(ADDRESS),
    LaunchFailed(ADDRESS, "out of memory"),
    DrainBegan(ADDRESS),
    StopIntended(ADDRESS, "op-3"),
    Stopped(ADDRESS),
)
GONE = "gone"
# The contract, written a second time on purpose. Phase before (None: no such instance), event -> phase after.
LEGAL = {
    (None, LaunchIntended): Phase.LAUNCHING,
    (Phase.LAUNCHING, LaunchIntended): Phase.LAUNCHING,
    (Phase.LAUNCHING, Launched): Phase.STARTING,
    (None, Registered): Phase.READY,
    (Phase.STARTING, BecameReady): Phase.READY,
    (Phase.LAUNCHING, LaunchFailed): Phase.FAILED,
    (Phase.STARTING, LaunchFailed): Phase.FAILED,
    (Phase.READY, DrainBegan): Phase.DRAINING,
    (Phase.STARTING, DrainBegan): Phase.DRAINING,
    (Phase.FAILED, DrainBegan): Phase.DRAINING,
    (Phase.DRAINING, DrainBegan): Phase.DRAINING,
    (Phase.LAUNCHING, StopIntended): Phase.STOPPING,
    (Phase.STARTING, StopIntended): Phase.STOPPING,
    (Phase.READY, StopIntended): Phase.STOPPING,
    (Phase.DRAINING, StopIntended): Phase.STOPPING,
    (Phase.STOPPING, StopIntended): Phase.STOPPING,
    (Phase.FAILED, StopIntended): Phase.STOPPING,
    (Phase.STOPPING, Stopped): GONE,
}
BYSTANDER = Instance(OTHER, LAUNCH, Phase.READY, "other-handle")


def state_in(phase: Phase | None) -> State:
    """A state of three writes in which ADDRESS is in that phase, beside an instance that nothing touches."""
    instances = {OTHER: BYSTANDER}
    if phase is not None:
        instances[ADDRESS] = Instance(ADDRESS, LAUNCH, phase, "handle", "http://a.invalid", op="op-1")
    return State("lineage", 3, 2, {"chat": RECORD}, instances)


@pytest.mark.parametrize(("phase", "event"), list(product([None, *Phase], EVENTS)))
def test_every_phase_with_every_event(phase: Phase | None, event) -> None:
    before = state_in(phase)
    wanted = LEGAL.get((phase, type(event)))
    if wanted is None:
        with pytest.raises(IllegalEvent, match="not possible while it is"):
            apply_event(before, event)
    else:
        after = apply_event(before, event)
        found = after.instances.get(ADDRESS)
        assert (found.phase if found else GONE) == wanted
        assert (after.serial, after.table_serial) == (4, 2)
        assert after.instances[OTHER] is BYSTANDER
        assert after.endpoints == before.endpoints
    assert before == state_in(phase), "an event changed the state it was applied to"


def test_events_carry_their_facts_into_the_instance() -> None:
    intended = apply_event(state_in(None), EVENTS[0])
    assert intended.instances[ADDRESS] == Instance(ADDRESS, LAUNCH, Phase.LAUNCHING, op="op-2")
    launched = apply_event(intended, EVENTS[1])
    now = launched.instances[ADDRESS]
    assert (now.handle, now.url, now.op) == ("new-handle", "http://new.invalid", "op-2")
    assert apply_event(launched, EVENTS[4]).instances[ADDRESS].why == "out of memory"
    stopping = apply_event(apply_event(launched, EVENTS[3]), EVENTS[6])
    assert (stopping.instances[ADDRESS].op, stopping.instances[ADDRESS].handle) == ("op-3", "new-handle")


def test_a_repeated_intent_forgets_what_the_first_one_might_have_given() -> None:
    again = apply_event(state_in(Phase.LAUNCHING), EVENTS[0])
    assert again.instances[ADDRESS] == Instance(ADDRESS, LAUNCH, Phase.LAUNCHING, op="op-2")


def test_routes_move_the_table_serial_and_nothing_else_does() -> None:
    before = state_in(Phase.READY)
    published = apply_event(before, Published(RECORD))
    assert (published.serial, published.table_serial) == (4, 4)
    withdrawn = apply_event(published, Withdrawn(EndpointAddress("chat")))
    assert (withdrawn.serial, withdrawn.table_serial) == (5, 5)
    assert withdrawn.endpoints["chat"].targets == ()
    for event in (
        StrayStopIntended(OTHER, "x"),
        TableRewriteIntended(),
        Forgotten(OTHER),
        Forgotten(EndpointAddress("chat")),
    ):
        after = apply_event(withdrawn, event)
        assert (after.serial, after.table_serial) == (6, 5)


@pytest.mark.parametrize(
    "event",
    [
        Withdrawn(EndpointAddress("nowhere")),
        Forgotten(EndpointAddress("nowhere")),
        Forgotten(InstanceAddress("nowhere", "x", "ab")),
    ],
)
def test_what_is_not_there_cannot_be_withdrawn_or_forgotten(event) -> None:
    before = state_in(Phase.READY)
    with pytest.raises(IllegalEvent, match="not in state"):
        apply_event(before, event)
    assert before == state_in(Phase.READY)


def test_forgetting_leaves_the_rest() -> None:
    before = state_in(Phase.READY)
    assert set(apply_event(before, Forgotten(ADDRESS)).instances) == {OTHER}
    without = apply_event(before, Forgotten(EndpointAddress("chat")))
    assert (without.endpoints, set(without.instances)) == ({}, {ADDRESS, OTHER})


def test_touched_names_exactly_the_record_that_changes() -> None:
    """The store writes this one record per event; anything else an event changed would be lost."""
    cases = [(event, state_in(_legal_phase(event))) for event in EVENTS]
    everywhere = state_in(Phase.READY)
    cases += [
        (event, everywhere)
        for event in (
            StrayStopIntended(ADDRESS, "x"),
            TableRewriteIntended(),
            Published(RECORD),
            Published(EndpointRecord("new", "new", "demo", "{}", 1)),
            Withdrawn(EndpointAddress("chat")),
            Forgotten(EndpointAddress("chat")),
            Forgotten(ADDRESS),
        )
    ]
    for event, before in cases:
        after = apply_event(before, event)
        changed = {EndpointAddress(n) for n in _changed(before.endpoints, after.endpoints)}
        changed |= set(_changed(before.instances, after.instances))
        assert changed <= {touched(event)}, event


def _legal_phase(event) -> Phase | None:
    return next(phase for phase, kind in LEGAL if kind is type(event))


def _changed(before, after):
    return [k for k in {*before, *after} if before.get(k) != after.get(k)]
