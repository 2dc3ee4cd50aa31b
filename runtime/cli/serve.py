"""`servestate serve`: the router, in the foreground, until it is told to stop; beside it the controller."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.spec.site import Site
from servestate.providers.protocol import TransientError
from servestate.runtime.cli.common import options, workspace_of
from servestate.runtime.cli.output import complain
from servestate.runtime.configuration import load_configuration
from servestate.runtime.router_link import router_status
from servestate.runtime.workspace import Workspace


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    workspace = workspace_of(arguments)
    if arguments.no_controller:
        return serve(workspace, announce)
    return serve_supervised(workspace, announce, lambda: configured_site(arguments))


def announce(url: str) -> None:
    """Say where the router is."""
    complain(f"servestate: routing on {url}")


def configured_site(arguments: argparse.Namespace) -> Site:
    """The site block as it is written now. Raises InvalidInput, also where nothing is configured any more."""
    return load_configuration(options(arguments)).site


def serve_supervised(
    workspace: Workspace, on_ready: Callable[[str], None], reread: Callable[[], Site]
) -> int:
    """As `serve`, with the controller beside the router for as long as that runs; `reread` as in `Guard`."""
    from servestate.runtime.guard import Guard

    guard = Guard(workspace, complain, reread)

    def ready(url: str) -> None:
        guard.start()  # not before: a router that cannot start has nothing to supervise
        on_ready(url)

    try:
        return serve(workspace, ready)
    finally:
        guard.stop()


def serve(workspace: Workspace, on_ready: Callable[[str], None]) -> int:
    """Route requests by the applied table; `on_ready` is called with the URL. Raises InvalidInput when the
    router cannot start."""
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
    return run_router(config, on_ready)


def router_url(workspace: Workspace) -> str:
    """Where the running router says that it answers, else where it is configured to: port 0 is any port."""
    try:
        status = asyncio.run(router_status(workspace.control_path)) or {}
    except TransientError:
        status = {}
    return status.get("listen") or f"http://{workspace.site.router.listen}"
