"""Where an endpoint comes from, and how its configs are counted: by what its users did, never by repairs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from servestate.planner.address import EndpointAddress
from servestate.planner.codec import decode_record, encode_record
from servestate.planner.resolve import Resolved
from servestate.planner.stamp import Stamp
from servestate.planner.state import (
    EndpointRecord,
    Forgotten,
    History,
    Published,
    State,
    Withdrawn,
    apply_event,
)
from servestate.planner.steps import PublishTable
from tests.planner.blocks import bundle, endpoint, external, local
from tests.planner.rig import Site

ANN, BOB, NOBODY = Stamp("ann", 100.0, "apply"), Stamp("bob", 200.0, "api"), Stamp("robot", 300.0, "repair")
RECORD = EndpointRecord("chat", "chat", "demo", '{"name":"chat"}', 1)


def published(state: State, record: EndpointRecord, stamp: Stamp | None) -> State:
    return apply_event(state, Published(record, stamp))


def history(state: State) -> History | None:
    return state.endpoints["chat"].history


MADE = published(State("lineage", 6), RECORD, ANN)


def test_the_first_write_makes_it() -> None:
    assert history(MADE) == History(7, ANN, ANN)


def test_a_change_of_the_block_moves_the_change_and_keeps_the_making() -> None:
    changed = published(MADE, replace(RECORD, block='{"name":"chat","description":"x"}'), BOB)
    assert history(changed) == History(7, ANN, BOB)


@pytest.mark.parametrize("stamp", [NOBODY, BOB, None])
def test_a_repair_is_no_change_whoever_makes_it(stamp: Stamp | None) -> None:
    other_routes = replace(RECORD, config_version=9, key="other")
    assert history(published(MADE, other_routes, stamp)) == History(7, ANN, ANN)


def test_another_owner_is_a_change() -> None:
    assert history(published(MADE, replace(RECORD, owner="api"), BOB)) == History(7, ANN, BOB)


def test_a_block_that_is_put_back_is_a_change_too() -> None:
    there = published(MADE, replace(RECORD, block="{}"), BOB)
    assert history(published(there, RECORD, NOBODY)) == History(7, ANN, NOBODY)


def test_a_withdrawal_keeps_it() -> None:
    assert history(apply_event(MADE, Withdrawn(EndpointAddress("chat")))) == History(7, ANN, ANN)


def test_one_of_the_same_name_made_later_is_another() -> None:
    gone = apply_event(MADE, Forgotten(EndpointAddress("chat")))
    assert history(published(gone, RECORD, BOB)) == History(9, BOB, BOB)


def test_one_of_before_there_were_histories_begins_with_the_next_write_that_tells() -> None:
    old = State("lineage", 6, endpoints={"chat": RECORD})
    assert history(published(old, RECORD, None)) is None
    assert history(published(old, RECORD, BOB)) == History(7, BOB, BOB)


def test_what_a_plan_brings_along_does_not_count() -> None:
    forged = replace(RECORD, block="{}", history=History(1, BOB, BOB))
    assert history(published(MADE, forged, NOBODY)) == History(7, ANN, NOBODY)


def test_no_comparison_looks_at_it() -> None:
    assert MADE.endpoints["chat"] == RECORD


@pytest.mark.parametrize("record", [RECORD, MADE.endpoints["chat"]], ids=["without", "with"])
def test_it_is_kept_in_the_record(record: EndpointRecord) -> None:
    assert decode_record(encode_record(record)).history == record.history


# What plans make of it.


@dataclass
class Lived:
    """A site, and what was seen of its one endpoint."""

    site: Site

    def become(self, *entities: object, **extra: object) -> EndpointRecord:
        self.site.converge(world(*entities, **extra))
        return self.record

    @property
    def record(self) -> EndpointRecord:
        return self.site.state.endpoints["one"]


def world(*entities: object, **extra: object) -> Resolved:
    return bundle(endpoint("one", *entities, **extra))  # type: ignore[arg-type]


@pytest.fixture
def lived() -> Lived:
    found = Lived(Site())
    found.become(local("a", 60), local("b", 40))
    return found


def test_the_first_config_is_version_1(lived: Lived) -> None:
    assert lived.record.config_version == 1


@pytest.mark.parametrize(
    ("entities", "version"),
    [
        ((local("a", 60), local("b", 40)), 1),  # the same
        ((local("b", 40), local("a", 60)), 1),  # in another order
        ((local("a", 40), local("b", 60)), 2),  # another split
        ((local("a", 60, "B"), local("b", 40)), 2),  # another model
        ((local("a", 60, "B", recreate=True), local("b", 40)), 2),  # in two steps, which are one config
        ((local("a", 100),), 2),
        ((local("a", 60), local("x", 40)), 2),
        ((external("a", 60), local("b", 40)), 2),
    ],
)
def test_a_config_is_counted_once_however_it_comes_about(
    lived: Lived, entities: tuple[object, ...], version: int
) -> None:
    made = lived.record.history
    assert lived.become(*entities).config_version == version
    assert lived.record.history is not None
    assert made is not None
    assert lived.record.history.created == made.created


def test_settings_beside_the_config_are_no_config(lived: Lived) -> None:
    found = lived.become(local("a", 60), local("b", 40), description="x", tags={"team": "search"})
    assert found.config_version == 1


def test_there_and_back_are_two_configs(lived: Lived) -> None:
    lived.become(local("a", 60, "B"), local("b", 40))
    assert lived.become(local("a", 60), local("b", 40)).config_version == 3


def test_another_replica_in_the_place_of_a_dead_one_is_no_config(lived: Lived) -> None:
    before = lived.record
    (dead,) = before.targets[0].instances
    lived.site.world.crash(dead)
    after = lived.become(local("a", 60), local("b", 40))
    assert after.targets[0].instances != before.targets[0].instances
    assert (after.config_version, after.history) == (1, before.history)


def test_a_recreate_is_one_version(lived: Lived) -> None:
    """It publishes twice; in between the config is still the one before."""
    plan = lived.site.plan(world(local("a", 60, "B", recreate=True), local("b", 40)))
    versions = [n.step.record.config_version for n in plan.nodes if isinstance(n.step, PublishTable)]
    assert versions == [1, 2]
