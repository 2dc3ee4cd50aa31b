"""P8: rendering never raises, and keeps the lines that tools match, whatever the plan holds."""

from __future__ import annotations

import re

from hypothesis import given

from servestate.planner.plan import Plan
from servestate.planner.render import COLOURS, render_plan, summary
from tests.planner.strategies import plans

ANSI = re.compile(r"\x1b\[\d+m")


@given(plans())
def test_any_plan_renders(plan: Plan) -> None:
    text = render_plan(plan)
    assert text.endswith("\n")
    assert summary(plan) in text or plan.is_empty
    assert re.fullmatch(r"Plan: \d+ to add, \d+ to change, \d+ to destroy\.", summary(plan))


@given(plans())
def test_colour_only_adds_colour(plan: Plan) -> None:
    assert ANSI.sub("", render_plan(plan, COLOURS)) == ANSI.sub("", render_plan(plan))
