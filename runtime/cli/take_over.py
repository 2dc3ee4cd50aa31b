"""`servestate import ENDPOINT...`: endpoints of the API, or of another bundle, become this bundle's own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from servestate.planner.address import EndpointAddress
from servestate.planner.change import Action, Category, Change, Reason
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.diff import field_diffs
from servestate.planner.owners import API_OWNER
from servestate.planner.plan import Plan
from servestate.planner.render import render_plan
from servestate.planner.spec.bundle import Desired, DesiredEndpoint
from servestate.planner.state import EndpointRecord, State
from servestate.planner.steps import Node, PublishTable
from servestate.runtime import exit_codes
from servestate.runtime.apply import Stale
from servestate.runtime.cli.apply import ask, check_approvable, not_complete, refuse_stale
from servestate.runtime.cli.common import desired_of
from servestate.runtime.cli.output import palette, say
from servestate.runtime.cli.places import Here
from servestate.runtime.configuration import root_of
from servestate.runtime.reporter import Reporter
from servestate.runtime.workspace import open_workspace


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    check_approvable(arguments)
    desired = desired_of(arguments)
    workspace = open_workspace(root_of(arguments.file), desired.site)
    state = workspace.store.read() or State("")
    plan = _plan(arguments.endpoints, desired, state, arguments.source or API_OWNER)
    sys.stdout.write(render_plan(plan, palette(arguments, sys.stdout)))
    sys.stdout.flush()
    if not arguments.auto_approve:
        ask(plan, "Import")
    # Each step is done in an instant, so that the end is all there is to tell.
    result = Here(workspace, plan).carry_out(arguments.verb, Reporter(), arguments.lock_timeout)
    if isinstance(result, Stale):
        return refuse_stale(result, arguments)
    if not result.outcome.complete:
        return not_complete(result, plan, arguments)
    say(f"\nImport complete! Resources: {len(plan.nodes)} imported.")
    return exit_codes.OK


def _plan(names: Sequence[str], desired: Desired, state: State, source: str) -> Plan:
    """Owner and key of these endpoints change, and nothing else. Raises InvalidInput."""
    wanted = {endpoint.spec.name: endpoint for endpoint in desired.endpoints}
    found = [(wanted.get(name), state.endpoints.get(name), name) for name in dict.fromkeys(names)]
    problems = [p for e, r, name in found if (p := _problem(name, e, r, desired.bundle, source))]
    if problems:
        raise InvalidInput(problems)
    pairs = [
        (endpoint, record) for endpoint, record, _ in found if endpoint is not None and record is not None
    ]
    return Plan(
        lineage=state.lineage,
        serial=state.serial,
        bundle=desired.bundle,
        desired_digest="import",
        observed=(),
        drift=(),
        changes=tuple(_change(endpoint, record, desired.bundle) for endpoint, record in pairs),
        nodes=tuple(_node(endpoint, record, desired.bundle) for endpoint, record in pairs),
        unchanged=0,
    )


def _problem(
    name: str, endpoint: DesiredEndpoint | None, record: EndpointRecord | None, bundle: str, source: str
) -> Diagnostic | None:
    if record is None:
        return Diagnostic(
            "SS621", f'no endpoint "{name}" is applied here', "see which are: servestate status"
        )
    if endpoint is None:
        fix = f"write it there first: servestate export {name}"
        return Diagnostic("SS622", f'no endpoint block of this configuration is called "{name}"', fix)
    if record.owner == bundle:
        return Diagnostic(
            "SS623", f'"{name}" belongs to bundle "{bundle}" already', "apply as always", endpoint.where
        )
    if record.owner != source:
        what = f'"{name}" belongs to "{record.owner}", not to "{source}"'
        fix = "leave out --from" if record.owner == API_OWNER else f"if that is meant: --from {record.owner}"
        return Diagnostic("SS624", what, fix, endpoint.where)
    return None


def _change(endpoint: DesiredEndpoint, record: EndpointRecord, bundle: str) -> Change:
    before = {"name": record.name, "key": record.key, "owner": record.owner}
    after = {**before, "key": endpoint.key, "owner": bundle}
    address, fields = EndpointAddress(record.name), field_diffs(before, after)
    note = "nothing restarts; servestate plan then shows what else differs"
    return Change(address, Action.UPDATE, Reason.NONE, Category.ROUTE_ONLY, before, after, fields, note)


def _node(endpoint: DesiredEndpoint, record: EndpointRecord, bundle: str) -> Node:
    return Node(f"publish:{record.name}", PublishTable(replace(record, owner=bundle, key=endpoint.key)))
