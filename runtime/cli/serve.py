"""`servestate serve`: the router, in the foreground, until it is told to stop; beside it the controller and
the management API, each in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.spec.site import Site
from servestate.planner.table_build import build_table
from servestate.providers.protocol import TransientError
from servestate.runtime.cli.common import options, workspace_of
from servestate.runtime.cli.output import complain
from servestate.runtime.configuration import Options, has_configuration, load_configuration
from servestate.runtime.keyring import keyring_of, write_keyring
from servestate.runtime.router_link import router_status
from servestate.runtime.table_file import write_table
from servestate.runtime.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Beside:
    """What runs beside the router. `reread` gives the site as it is written now, or raises InvalidInput;
    `configuration` is where that is, None where there is nothing."""

    controller: bool
    api: bool
    reread: Callable[[], Site]
    configuration: Options | None


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    return serve(workspace_of(arguments), beside(arguments), announce)


def beside(arguments: argparse.Namespace) -> Beside:
    """What the command line wants beside the router."""
    configuration = options(arguments) if has_configuration(arguments.file) else None
    return Beside(
        not arguments.no_controller,
        not arguments.no_api,
        lambda: load_configuration(options(arguments)).site,
        configuration,
    )


def announce(url: str) -> None:
    """Say where the router is."""
    complain(f"servestate: routing on {url}")


def serve(workspace: Workspace, beside: Beside, on_ready: Callable[[str], None]) -> int:
    """Route requests by the applied table, with what is wanted beside the router for as long as that runs;
    `on_ready` is called with the URL. Raises InvalidInput when the router cannot start, StoreError, and
    PermanentError where a declared token cannot be had."""
    _prepare(workspace, beside.api)
    keyring = keyring_of(workspace.site.access, workspace.secrets)
    write_keyring(workspace.keyring_path, keyring)
    from servestate.runtime.guard import API, CONTROLLER, Guard
    from servestate.runtime.router.server import RouterConfig
    from servestate.runtime.router.server import run as run_router

    children = [child for child, on in ((CONTROLLER, beside.controller), (API, beside.api)) if on]
    guards = [Guard(c, workspace, complain, beside.reread, beside.configuration) for c in children]

    def ready(url: str) -> None:
        for guard in guards:  # not before: a router that cannot start has nothing to go beside
            guard.start()
        if keyring.open:
            complain("servestate: no access tokens are declared: this machine only, and everybody on it")
        on_ready(url)

    site = workspace.site
    config = RouterConfig(
        table_path=workspace.table_path,
        control_path=workspace.control_path,
        host=site.router.host,
        port=site.router.port,
        secrets=workspace.secrets,
        management=(site.management.host, site.management.port) if beside.api else None,
        api_path=workspace.api_path if beside.api else None,
        keyring_path=workspace.keyring_path,
        plaintext=frozenset(n for n in ("router", "management") if getattr(site, n).plaintext),
    )
    with ExitStack() as ending:
        for guard in guards:
            ending.callback(guard.stop)
        return run_router(config, ready, lambda url: complain(f"servestate: managing on {url}"))


def _prepare(workspace: Workspace, api: bool) -> None:
    """See that there is a table to route by. Where nothing was applied yet, the API begins with an empty one:
    what it is asked for comes into that."""
    if workspace.table_path.exists():
        return
    if not api or workspace.store.read() is not None:
        what = "there is no routing table yet: nothing has been applied here"
        raise InvalidInput(
            [Diagnostic("SS605", what, "run: servestate apply (or servestate up, which does both)")]
        )
    try:
        state = workspace.store.create(str(uuid.uuid4()))
        write_table(workspace.table_path, build_table(state))
    finally:
        workspace.store.close()


def router_url(workspace: Workspace) -> str:
    """Where the running router says that it answers, else where it is configured to: port 0 is any port."""
    try:
        status = asyncio.run(router_status(workspace.control_path)) or {}
    except TransientError:
        status = {}
    return status.get("listen") or f"http://{workspace.site.router.listen}"
