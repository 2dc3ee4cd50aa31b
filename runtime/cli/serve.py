"""`servestate serve`: the router, in the foreground, until it is told to stop."""

from __future__ import annotations

import argparse

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.spec.site import Site
from servestate.runtime.cli.common import workspace_of
from servestate.runtime.cli.output import complain
from servestate.runtime.workspace import Workspace


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    return serve(workspace_of(arguments))


def serve(workspace: Workspace) -> int:
    """Route requests by the applied table. Raises InvalidInput when the router cannot start."""
    if not workspace.table_path.exists():
        what = "there is no routing table yet: nothing has been applied here"
        raise InvalidInput(
            [Diagnostic("SS605", what, "run: servestate apply (or servestate up, which does both)")]
        )
    from servestate.runtime.router.server import RouterConfig
    from servestate.runtime.router.server import run as run_router

    config = RouterConfig(
        table_path=workspace.table_path,
        control_path=workspace.control_path,
        host=workspace.site.router.host,
        port=workspace.site.router.port,
        secrets=workspace.secrets,
    )
    return run_router(config, lambda url: complain(f"servestate: routing on {url}"))


def router_url(site: Site) -> str:
    """Where the router of this site answers."""
    return f"http://{site.router.listen}"
