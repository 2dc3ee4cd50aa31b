"""T20 and T21 from the YAML on: nothing to do means nothing done, and the way there does not matter."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servestate.planner.codec import encode_plan
from servestate.planner.resolve import Resolved, resolve
from servestate.planner.spec.bundle import Document, load
from servestate.runtime.executor import Outcome
from tests.planner.blocks import NOTHING, bundle
from tests.planner.bundles import Block, bundles, other_spelling, text_of
from tests.planner.memory_store import MemoryStore
from tests.planner.rig import Site

SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def resolved(text: str) -> Resolved:
    return resolve(load([Document("endpoints.yaml", text)]), frozenset({"process"}))


def idempotence(block: Block, rng: random.Random) -> None:
    desired = resolved(text_of(block))
    site = Site()
    first = encode_plan(site.plan(desired))
    assert encode_plan(site.plan(resolved(text_of(block)))) == first
    site.converge(desired)
    assert isinstance(site.store, MemoryStore)
    was = (site.state, site.store.commits, list(site.world.effects), len(site.tables))
    for text in (text_of(block), other_spelling(block, rng)):
        plan = site.plan(resolved(text))
        assert plan.is_empty, text
        outcome = site.apply(plan)
        assert isinstance(outcome, Outcome)
        assert outcome.complete
        assert (site.state, site.store.commits, site.world.effects, len(site.tables)) == was


@settings(max_examples=300, suppress_health_check=SLOW)
@given(bundles(), st.randoms(use_true_random=False))
def test_the_second_apply_does_nothing_however_it_is_spelled(block: Block, rng: random.Random) -> None:
    """T20. Key order, layout, comments, order of tags, routes and entities, and 2 for "2" are no change."""
    idempotence(block, rng)


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=SLOW)
@given(bundles(), st.randoms(use_true_random=False))
def test_the_second_apply_does_nothing_at_length(block: Block, rng: random.Random) -> None:
    idempotence(block, rng)


def paths(one: Block, two: Block, three: Block) -> None:
    desired = [resolved(text_of(block)) for block in (one, two, three)]
    direct, long = Site(), Site()
    direct.converge(desired[2])
    for step in desired:
        long.converge(step)
    assert long.meaning() == direct.meaning()
    back = Site()
    back.converge(desired[0])
    beginning = back.meaning()
    back.converge(desired[1])
    back.converge(desired[0])
    assert back.meaning() == beginning
    back.converge(bundle(name="shop"))
    assert (back.running(), back.routes(), dict(back.state.instances)) == ([], {}, {})


@settings(max_examples=80, suppress_health_check=SLOW)
@given(bundles(), bundles(), bundles())
def test_the_way_does_not_matter(one: Block, two: Block, three: Block) -> None:
    """T21: A to B to C ends where C alone does, A to B to A where A does, and nothing leaves nothing."""
    paths(one, two, three)


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=SLOW)
@given(bundles(), bundles(), bundles())
def test_the_way_does_not_matter_at_length(one: Block, two: Block, three: Block) -> None:
    paths(one, two, three)


def test_an_empty_bundle_on_an_empty_site_is_no_change() -> None:
    assert Site().plan(NOTHING).is_empty
