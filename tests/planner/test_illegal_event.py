"""A step that the state does not allow fails by itself."""

from __future__ import annotations

from dataclasses import replace

from servestate.planner.address import InstanceAddress
from servestate.planner.steps import Forget, Node
from servestate.runtime.executor import Outcome
from tests.planner.blocks import bundle, endpoint, local
from tests.planner.rig import Site

WRONG = Node("forget:nobody", Forget(InstanceAddress("nobody", "nothing", "ab")))


def test_it_does_not_take_along_what_was_to_be_written_at_the_same_time() -> None:
    site = Site()
    plan = site.plan(bundle(endpoint("chat", local("a", 60), local("b", 40))))
    outcome = site.apply(replace(plan, nodes=(*plan.nodes, WRONG)))
    assert isinstance(outcome, Outcome)
    assert list(outcome.failed) == [WRONG.id]
    assert outcome.failed[WRONG.id].startswith(
        "SS413 the state does not allow this step: nobody/nothing@ab#0"
    )
    assert sorted(outcome.done) == sorted(node.id for node in plan.nodes)
    assert outcome.lost is None
