"""A plan together with the place where it is carried out: this machine, or a server."""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.match import settle
from servestate.planner.plan import Plan
from servestate.planner.spec.variables import ENVIRONMENT_PREFIX
from servestate.planner.state import State
from servestate.runtime.apply import Finished, Stale, carry_out, routed, wait_for_lock
from servestate.runtime.cli.common import desired_of, options, server_of, situation, workspace_of
from servestate.runtime.cli.output import complain, show_diagnostics
from servestate.runtime.cli.show import read_plan, text_of
from servestate.runtime.configuration import documents_of, has_configuration
from servestate.runtime.reporter import Reporter
from servestate.runtime.wanted import wanted
from servestate.runtime.wire import pack
from servestate.runtime.workspace import Workspace, ci_url, owner_of_this_process

if TYPE_CHECKING:
    from servestate.runtime.remote import Server


@dataclass(frozen=True, slots=True)
class Here:
    """A plan for this machine. `digest` is that of the configuration beside a saved plan, None where there is
    none or the plan was made from it just now; `settled` says that nothing which a crash left unrecorded
    lies under it."""

    workspace: Workspace
    plan: Plan
    digest: str | None = None
    settled: bool = False

    def see_routed(self) -> None:
        """There is nothing to do: return once a running router routes by the table. Raises
        PermanentError."""
        asyncio.run(routed(self.workspace, self.workspace.store.read() or State("")))

    def carry_out(self, verb: str, reporter: Reporter, lock_timeout_s: float) -> Stale | Finished:
        """See `apply.carry_out`."""
        owner = owner_of_this_process(verb)
        return carry_out(self.workspace, self.plan, self.digest, owner, reporter, lock_timeout_s)


@dataclass(frozen=True, slots=True)
class There:
    """A plan for a server. `text` is the plan as the server knows it; `configuration` goes with a saved plan
    where there is one."""

    server: Server
    plan: Plan
    text: str
    configuration: dict[str, Any] | None = None
    settled: bool = False

    def see_routed(self) -> None:
        """See `Here.see_routed`. Raises InvalidInput."""
        self.server.apply({"plan": pack(self.text), "settled": True}, self.plan, Reporter())

    def carry_out(self, verb: str, reporter: Reporter, lock_timeout_s: float) -> Stale | Finished:
        """See `Server.apply`."""
        order = {
            "plan": pack(self.text),
            "configuration": self.configuration,
            "ci_url": ci_url(os.environ),
            "lock_timeout_s": lock_timeout_s,
        }
        return self.server.apply(order, self.plan, reporter)


def planned(arguments: argparse.Namespace, *, destroy: bool, patience_s: float = 0.0) -> Here | There:
    """A plan from the configuration, made once nobody holds the lock or `patience_s` is over. Raises
    InvalidInput, StoreError, LockHeld."""
    server = server_of(arguments)
    if server is not None:
        order = {**_configuration(arguments, destroy=destroy), "destroy": destroy, "pull": arguments.pull}
        made = server.plan(order, patience_s, complain)
        show_diagnostics(made.warnings)
        return There(server, made.plan, made.text, settled=made.settled)
    if patience_s > 0:
        wait_for_lock(workspace_of(arguments).store, patience_s, complain)
    found = situation(arguments, destroy=destroy)
    return Here(found.workspace, found.plan, settled=not any(settle(found.state, found.live)))


def saved(arguments: argparse.Namespace) -> Here | There:
    """A saved plan, to be compared with the configuration beside it, if there is one. Raises InvalidInput."""
    path: Path = arguments.plan
    plan = read_plan(path)
    configured = has_configuration(arguments.file)
    server = server_of(arguments)
    if server is not None:
        beside = _configuration(arguments, destroy=plan.destroy) if configured else None
        return There(server, plan, text_of(path), beside)
    workspace = workspace_of(arguments)
    if not configured:
        return Here(workspace, plan)
    return Here(workspace, plan, wanted(desired_of(arguments), destroy=plan.destroy).digest)


def _configuration(arguments: argparse.Namespace, *, destroy: bool) -> dict[str, Any]:
    """The configuration as a server takes it; the environment's part in it are values of variables. Raises
    InvalidInput where there is none to make anything from."""
    found = options(arguments)
    documents = [{"name": one.name, "text": one.text} for one in documents_of(found.path)]
    if not documents and not destroy:
        what = f"no configuration: {found.path} holds no .yaml or .yml file"
        raise InvalidInput(
            [Diagnostic("SS100", what, "name a file or folder with -f, or write endpoints.yaml")]
        )
    environ = {k: v for k, v in os.environ.items() if k.startswith(ENVIRONMENT_PREFIX)}
    return {
        "documents": documents,
        "target": found.target,
        "variables": dict(found.variables),
        "environ": environ,
    }
