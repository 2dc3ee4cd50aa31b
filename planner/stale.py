"""Whether the world is still the one that a plan was made against, and if not, what moved."""

from __future__ import annotations

from collections.abc import Iterator

from servestate.planner.address import parse_instance
from servestate.planner.live import Live
from servestate.planner.plan import HOST, Plan, observed_facts
from servestate.planner.state import State
from servestate.planner.surroundings import ALONE, Surroundings, host_facts


def moved(
    plan: Plan,
    state: State,
    live: Live,
    desired_digest: str | None,
    surroundings: Surroundings = ALONE,
) -> list[str]:
    """Everything that moved, a line each; empty when the plan may be applied. `desired_digest` is that of
    the configuration at hand, None where there is none (the plan then stands alone). `surroundings` need
    hold no more than hosts, and those only where `relies_on_hosts`."""
    return list(_moved(plan, state, live, desired_digest, surroundings))


def relies_on_hosts(plan: Plan) -> bool:
    """Whether the plan counts on the GPUs of any host."""
    return any(text.startswith(HOST) for text, _ in plan.observed)


def _moved(
    plan: Plan, state: State, live: Live, desired_digest: str | None, surroundings: Surroundings
) -> Iterator[str]:
    if plan.lineage != state.lineage:
        yield f"the plan belongs to lineage {plan.lineage}, the state here to {state.lineage}"
        return
    if plan.serial != state.serial:
        yield f"the plan was made at serial {plan.serial}; the state is now at serial {state.serial}"
    if desired_digest is not None and desired_digest != plan.desired_digest:
        yield "the configuration has changed since the plan was made"
    for text, facts in plan.observed:
        if text.startswith(HOST):
            provider, _, name = text.removeprefix(HOST).partition(":")
            found = host_facts(surroundings, provider, name)
        else:
            found = observed_facts(live, parse_instance(text))
        was, now = dict(facts), dict(found)
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                yield f"{text}: {name} = {_value(was.get(name))} -> {_value(now.get(name))}"


def _value(value: str | None) -> str:
    return "null" if value is None else f'"{value}"'
