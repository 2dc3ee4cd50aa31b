"""A plan in stages, so that nobody holds the lock while an image is pulled, a model loads or requests drain.

What has to be waited for is waited for between two plans: the one before does all that can be done at once,
the one after finds, by what is recorded, how far things are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from servestate.planner.address import EndpointAddress
from servestate.planner.plan import Plan
from servestate.planner.state import State
from servestate.planner.steps import (
    AwaitReady,
    Drain,
    Forget,
    Node,
    PublishTable,
    Pull,
    RewriteTable,
    Stop,
    Withdraw,
)

Wait = AwaitReady | Drain | Pull


def at_once(plan: Plan, waited: Collection[str] = ()) -> Plan:
    """The steps of the plan that wait for nothing, neither by themselves nor for one that does. Of what is in
    `waited`, ids of steps, somebody has seen the end already."""
    cut = {n.id for n in plan.nodes if isinstance(n.step, Wait) and n.id not in waited}
    while more := {n.id for n in plan.nodes if n.id not in cut and cut.intersection((*n.needs, *n.after))}:
        cut |= more
    return replace(plan, nodes=tuple(node for node in plan.nodes if node.id not in cut))


def waits(plan: Plan, done: Collection[str] = ()) -> dict[str, Wait]:
    """What can be waited for now, by the id of its step: the waits that need no step but those in `done`."""
    return {
        n.id: n.step for n in plan.nodes if isinstance(n.step, Wait) and {*n.needs, *n.after} <= set(done)
    }


def shortened(plan: Plan, ready_timeout_s: Mapping[str, float]) -> Plan:
    """The plan after the waiting: for readiness it waits so long, by the id of each step, and for no request
    any more."""
    return replace(plan, nodes=tuple(_shorter(node, ready_timeout_s) for node in plan.nodes))


def _shorter(node: Node, ready_timeout_s: Mapping[str, float]) -> Node:
    match node.step:
        case AwaitReady(timeout_s=timeout_s):
            return replace(node, step=replace(node.step, timeout_s=ready_timeout_s.get(node.id, timeout_s)))
        case Drain():
            return replace(node, step=replace(node.step, timeout_s=0.0))
        case _:
            return node


def forgotten_first(plan: Plan) -> Plan:
    """The part of a deletion that frees the name: out of the routes and out of the state. What served is then
    nobody's, and the next plan of that name ends it."""
    nodes = [n for n in plan.nodes if isinstance(n.step, Withdraw) or _forgets_endpoint(n)]
    ids = {node.id for node in nodes if isinstance(node.step, Withdraw)}
    kept = (replace(n, needs=tuple(id for id in n.needs if id in ids)) for n in nodes)
    return replace(plan, nodes=tuple(kept))


def _forgets_endpoint(node: Node) -> bool:
    return isinstance(node.step, Forget) and isinstance(node.step.address, EndpointAddress)


def routes_only(plan: Plan, state: State) -> Plan:
    """What the plan records of endpoints, with the routes that they have: nothing is started or stopped."""
    nodes = []
    for node in plan.nodes:
        if isinstance(node.step, PublishTable):
            before = state.endpoints.get(node.step.record.name)
            record = node.step.record
            if before is not None:
                record = replace(record, targets=before.targets, config_version=before.config_version)
            nodes.append(Node(node.id, PublishTable(record)))
        elif isinstance(node.step, RewriteTable):
            nodes.append(node)
    return replace(plan, nodes=tuple(nodes))


def publishes(plan: Plan) -> bool:
    """Whether the plan moves routes or records anything of an endpoint."""
    return any(isinstance(node.step, PublishTable) for node in plan.nodes)


def retiring(plan: Plan, state: State) -> Plan:
    """What the plan does to what serves nothing: it is ended and dropped. Nothing is launched, and routes
    move only as they are recorded."""
    routed = {a for record in state.endpoints.values() for t in record.targets for a in t.instances}
    kept: dict[str, Node] = {}
    for node in plan.nodes:
        # The table file may be behind what is recorded; nothing is drained before the router routes by it.
        ends = isinstance(node.step, RewriteTable) or (
            isinstance(node.step, Drain | Stop | Forget) and node.step.address not in routed
        )
        if ends and kept.keys() >= set(node.needs):
            kept[node.id] = node
    return replace(plan, nodes=tuple(kept.values()))
