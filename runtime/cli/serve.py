"""`servestate serve`: the router, in the foreground, until it is told to stop; beside it the controller and
the management API, each in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.spec.listeners import Listener
from servestate.planner.spec.site import Site
from servestate.planner.table_build import build_table
from servestate.providers.protocol import TransientError
from servestate.runtime.cli.common import options, workspace_of
from servestate.runtime.cli.output import complain
from servestate.runtime.configuration import Options, has_configuration, load_configuration
from servestate.runtime.keyring import Keyring, keyring_of, write_keyring
from servestate.runtime.router_link import router_status
from servestate.runtime.table_file import write_table
from servestate.runtime.workspace import Workspace

if TYPE_CHECKING:
    from servestate.runtime.router.process.server import RouterConfig
    from servestate.runtime.router.process.tls import TlsFiles
    from servestate.runtime.router.records.keeping import BooksConfig


@dataclass(frozen=True, slots=True)
class Beside:
    """What runs beside the router. `reread` gives the site as it is written now, or raises InvalidInput;
    `configuration` is where that is, None where there is nothing. With `replace` it is taken over from the
    router that runs, if one does."""

    controller: bool
    api: bool
    reread: Callable[[], Site]
    configuration: Options | None
    replace: bool = False


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
        arguments.replace,
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
    draft = workspace.keyring_path.with_suffix(f".{os.getpid()}")
    with _drafted(keyring, draft):
        from servestate.runtime.guard import API, CONTROLLER, Guard
        from servestate.runtime.router.process.service import run as run_router

        children = [child for child, on in ((CONTROLLER, beside.controller), (API, beside.api)) if on]
        guards = [Guard(c, workspace, complain, beside.reread, beside.configuration) for c in children]

        def ready(url: str) -> None:
            draft.replace(workspace.keyring_path)
            if keyring.open:
                complain("servestate: no access tokens are declared: this machine only, and everybody on it")
            on_ready(url)

        def alone() -> None:
            for guard in guards:  # not before: those of a router that is being replaced hold the locks
                guard.start()

        with ExitStack() as ending:
            for guard in guards:
                ending.callback(guard.stop)
            return run_router(
                replace(router_config(workspace, api=beside.api), keyring_draft=draft),
                ready,
                lambda url: complain(f"servestate: managing on {url}"),
                replace=beside.replace,
                on_alone=alone,
                tell=complain,
            )


def router_config(workspace: Workspace, *, api: bool) -> RouterConfig:
    """What the router of a site is told. `api` says whether the management API runs beside it."""
    from servestate.runtime.router.balance.policy import HealthPolicy
    from servestate.runtime.router.guards.egress import Egress
    from servestate.runtime.router.limits import Limits
    from servestate.runtime.router.process.server import RouterConfig

    site = workspace.site
    return RouterConfig(
        table_path=workspace.table_path,
        control_path=workspace.control_path,
        host=site.router.host,
        port=site.router.port,
        secrets=workspace.secrets,
        limits=Limits(
            drain_s=site.router.drain_s,
            egress=Egress.of(site.router.egress.allow),
            health=HealthPolicy(**site.router.health.model_dump()),
        ),
        management=(site.management.host, site.management.port) if api else None,
        api_path=workspace.api_path if api else None,
        keyring_path=workspace.keyring_path,
        plaintext=frozenset(n for n in ("router", "management") if getattr(site, n).plaintext),
        tls=_tls(site.router, workspace.root),
        management_tls=_tls(site.management, workspace.root),
        workers=site.router.workers,
        inflight=site.router.max_inflight or None,
        books=_books(workspace),
    )


def _books(workspace: Workspace) -> BooksConfig:
    from servestate.runtime.router.records.keeping import AccessLogConfig, BooksConfig

    log, traces = workspace.site.router.access_log, workspace.site.router.traces
    return BooksConfig(
        AccessLogConfig(workspace.root / log.path, log.max_bytes, log.keep) if log is not None else None,
        workspace.folder / workspace.prefix.removesuffix("."),
        traces.otlp if traces is not None else "",
    )


def _tls(listener: Listener, root: Path) -> TlsFiles | None:
    from servestate.runtime.router.process.tls import TlsFiles

    tls = listener.tls
    return None if tls is None else TlsFiles(root / tls.cert, root / tls.key)


@contextmanager
def _drafted(keyring: Keyring, draft: Path) -> Iterator[None]:
    """Have the keyring written, but not yet where a router that runs already would go by it."""
    write_keyring(draft, keyring)
    try:
        yield
    finally:
        draft.unlink(missing_ok=True)


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
    router = workspace.site.router
    return status.get("listen") or f"{'http' if router.tls is None else 'https'}://{router.listen}"
