"""What verbs share: from the command line to a configuration, a workspace and a plan."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servestate.planner.live import Live
from servestate.planner.plan import Plan, make_plan
from servestate.planner.resolve import Resolved
from servestate.planner.spec.bundle import Desired
from servestate.planner.spec.site import Site
from servestate.planner.state import State
from servestate.runtime.cli.output import Usage, show_diagnostics
from servestate.runtime.configuration import Options, has_configuration, load_configuration, root_of
from servestate.runtime.look import look_around, pull_policy, state_of
from servestate.runtime.wanted import nothing_of, sole_owner, wanted
from servestate.runtime.workspace import Workspace, open_workspace

if TYPE_CHECKING:
    from servestate.runtime.remote import Server


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything a plan is made from, and the plan."""

    workspace: Workspace
    desired: Resolved
    state: State
    live: Live
    plan: Plan


def options(arguments: argparse.Namespace) -> Options:
    """The configuration options of a command line. Raises Usage."""
    pairs = [text.partition("=") for text in arguments.var]
    for name, separator, _ in pairs:
        if not separator or not name:
            raise Usage(f"--var takes KEY=VALUE, not {name!r}")
    return Options(arguments.file, arguments.env, {name: value for name, _, value in pairs})


def desired_of(arguments: argparse.Namespace) -> Desired:
    """The checked configuration; its warnings are printed. Raises InvalidInput."""
    desired = load_configuration(options(arguments))
    show_diagnostics(desired.warnings)
    return desired


def workspace_of(arguments: argparse.Namespace) -> Workspace:
    """The workspace, without looking closer at the endpoints; defaults where nothing is configured."""
    if not has_configuration(arguments.file):
        return open_workspace(root_of(arguments.file), Site())
    return open_workspace(root_of(arguments.file), load_configuration(options(arguments)).site)


def situation(arguments: argparse.Namespace, *, destroy: bool) -> Situation:
    """Load, look, plan. Raises InvalidInput and StoreError."""
    # What is made here lives until the verb ends and has no cycles; collecting it over and over costs a
    # fifth of the time of a large plan.
    gc.disable()
    try:
        return _situation(arguments, destroy)
    finally:
        gc.enable()


def _situation(arguments: argparse.Namespace, destroy: bool) -> Situation:
    if destroy and not has_configuration(arguments.file):
        workspace = open_workspace(root_of(arguments.file), Site())
        resolved = nothing_of(sole_owner(workspace.store.read()))
    else:
        desired = desired_of(arguments)
        workspace = open_workspace(root_of(arguments.file), desired.site)
        resolved = wanted(desired, destroy=destroy)
    state = state_of(workspace)
    pull = pull_policy(workspace, arguments.pull)
    live, surroundings = asyncio.run(look_around(workspace, resolved, state, pull))
    plan = make_plan(resolved, state, live, surroundings, destroy=destroy)
    return Situation(workspace, resolved, state, live, plan)


def server_of(arguments: argparse.Namespace) -> Server | None:
    """The server that --server names, with the token that the environment holds; None for this machine.
    Raises InvalidInput."""
    if arguments.server is None:
        return None
    from servestate.runtime.remote import server_at

    return server_at(arguments.server, token(), insecure=arguments.insecure)


def token() -> str:
    """The bearer token of the environment, "" for none. That of Databricks' clients is as good: a server
    takes the place of a workspace."""
    return os.environ.get("SERVESTATE_TOKEN") or os.environ.get("DATABRICKS_TOKEN") or ""
