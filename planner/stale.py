"""Whether the world is still the one that a plan was made against, and if not, what moved."""

from __future__ import annotations

from collections.abc import Iterator

from servestate.planner.address import parse_instance
from servestate.planner.live import Live
from servestate.planner.plan import Plan, observed_facts
from servestate.planner.state import State


def moved(plan: Plan, state: State, live: Live, desired_digest: str | None) -> list[str]:
    """Everything that moved, a line each; empty when the plan may be applied. `desired_digest` is that of
    the configuration at hand, None where there is none (the plan then stands alone)."""
    return list(_moved(plan, state, live, desired_digest))


def _moved(plan: Plan, state: State, live: Live, desired_digest: str | None) -> Iterator[str]:
    if plan.lineage != state.lineage:
        yield f"the plan belongs to lineage {plan.lineage}, the state here to {state.lineage}"
        return
    if plan.serial != state.serial:
        yield f"the plan was made at serial {plan.serial}; the state is now at serial {state.serial}"
    if desired_digest is not None and desired_digest != plan.desired_digest:
        yield "the configuration has changed since the plan was made"
    for text, facts in plan.observed:
        was, now = dict(facts), dict(observed_facts(live, parse_instance(text)))
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                yield f"{text}: {name} = {_value(was.get(name))} -> {_value(now.get(name))}"


def _value(value: str | None) -> str:
    return "null" if value is None else f'"{value}"'
