"""P1, P3, P4, P5, P7 and P9 over random small sites with GPUs, whatever order and whatever failures."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from servestate.planner.codec import decode_plan, encode_plan
from servestate.planner.diagnostics import InvalidInput
from servestate.planner.plan import Plan
from servestate.planner.resolve import Resolved
from servestate.planner.surroundings import Surroundings
from servestate.providers.fake import Fault
from servestate.providers.protocol import PermanentError
from servestate.runtime.executor import Outcome
from tests.planner.gpu_worlds import Walk, sites, wishes
from tests.planner.rig import Site

QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


def planned(site: Site, desired: Resolved) -> Plan | None:
    """The plan, None where it does not fit."""
    try:
        return site.plan(desired)
    except InvalidInput as refused:
        note(f"refused: {refused}")
        return None


def walked(site: Site, plan: Plan, rng: random.Random) -> list[str]:
    """What goes wrong on some of the ways through a plan."""
    state, live = site.state, site.look()
    return [w for failing in (0.0, 0.1, 0.4) for w in Walk(plan, state, live, rng, failing).run()]


@st.composite
def histories(draw: st.DrawFn) -> tuple[Surroundings, list[Resolved]]:
    site = draw(sites())
    return site, draw(st.lists(wishes(site), min_size=1, max_size=4))


def upset(site: Site, plan: Plan, rng: random.Random) -> None:
    """Some calls of this apply fail, some of them after they acted."""
    for node in plan.nodes:
        address = getattr(node.step, "address", None)
        if address is not None and rng.random() < 0.2:
            method = rng.choice(["launch", "stop", "probe"])
            error = PermanentError("SS500", "no memory")
            done = site.world.calls[method, str(address)]
            site.world.fail(method, address, done + 1, Fault(error, late=rng.random() < 0.5))


SEEDS = st.integers(0, 2**32)


@settings(max_examples=80, suppress_health_check=QUIET)
@given(histories(), SEEDS)
def test_whatever_order_and_failures_no_gpu_is_taken_twice(
    history: tuple[Surroundings, list[Resolved]], seed: int
) -> None:
    lived(*history, seed)


@pytest.mark.slow
@settings(max_examples=4000, suppress_health_check=QUIET)
@given(histories(), SEEDS)
def test_whatever_order_and_failures_of_many_sites(
    history: tuple[Surroundings, list[Resolved]], seed: int
) -> None:
    lived(*history, seed)


def lived(facts: Surroundings, steps: list[Resolved], seed: int) -> None:
    """P3, P4, P7, P9 at every moment of every apply; P1 and P5 at the end."""
    site, rng = Site(surroundings=facts, pause=lambda: rng.choice([0.0, 0.1])), random.Random(seed)
    for desired in steps:
        plan = planned(site, desired)
        if plan is None:
            continue
        assert encode_plan(plan) == encode_plan(site.plan(desired))
        assert decode_plan(encode_plan(plan)) == plan
        assert walked(site, plan, rng) == []
        upset(site, plan, rng)
        assert isinstance(site.apply(plan), Outcome)
        assert not site.violations, site.violations
        site.world.heal()
        if rng.random() < 0.5:  # the next wish comes while things are half done
            continue
        healed = planned(site, desired)
        if healed is not None:
            assert walked(site, healed, rng) == []
            site.converge(desired)
