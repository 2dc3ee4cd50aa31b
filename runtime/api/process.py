"""The API's process: a socket for the router, the desk behind it, and the tokens kept up to date.

python -P -m servestate.runtime.api.process ROOT      with an `Order` on standard input
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn

from servestate.planner.spec.site import Access
from servestate.providers.protocol import PermanentError
from servestate.runtime.api.app import application
from servestate.runtime.api.audit import AuditLog
from servestate.runtime.api.desk import Desk
from servestate.runtime.api.hands import Hands
from servestate.runtime.api.ledger import Ledger
from servestate.runtime.api.site import SiteSource
from servestate.runtime.api.view import View
from servestate.runtime.keyring import keyring_of, write_keyring
from servestate.runtime.order import decode_order, dies_with
from servestate.runtime.store.protocol import StoreError
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.workspace import Workspace, open_workspace

TOKENS_S = 0.5
"""How often the configuration is looked at for tokens: one that is taken away is refused within 2 s, with
what the router takes to notice."""

_BACKLOG = 512
_LAST_ANSWERS_S = 15
"""How long requests may take to be answered once the process was told to stop."""


def tell(subject: str, text: str) -> None:
    """One line on standard error, which is that of serve."""
    with suppress(OSError):  # nobody reads any more
        print(f"servestate: api: {subject}: {text.partition(chr(10))[0]}", file=sys.stderr, flush=True)


def main(root: str) -> int:
    """Serve the API of the site in that folder until told to stop, or until the parent has gone."""
    order = decode_order(sys.stdin.buffer.read())
    if not dies_with(order.parent):
        return 0
    workspace = open_workspace(Path(root), order.site)
    if isinstance(workspace.store, SqliteStore):
        workspace.store.remember()
    source = SiteSource(Path(root), order.site, order.configuration, lambda text: tell("configuration", text))
    try:
        ledger = Ledger(workspace.ledger_path)
    except StoreError as error:
        tell("ledger", f"{error.diagnostic.what}; fix: {error.diagnostic.fix}")
        return 1
    keyring = keyring_of(order.site.access, workspace.secrets)
    desk = Desk(source, View(workspace), ledger, Hands(source.workspace), keyring, tell)
    desk.forget_secrets()
    asyncio.run(_serve(desk, workspace))
    return 0


class _Server(uvicorn.Server):
    """Leaves signals to us: it would end the process with the one it got, before what is in flight has."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See `uvicorn.Server`."""
        yield


async def _serve(desk: Desk, workspace: Workspace) -> None:
    app = application(desk, AuditLog(workspace.audit_path))
    listening = _listen(workspace.api_path)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    desk.resume()
    tokens = asyncio.create_task(_watch_tokens(desk, workspace))
    try:
        await server.serve(sockets=[listening])
    finally:
        tokens.cancel()
        await asyncio.to_thread(desk.stop)
        workspace.api_path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    """The socket, for this user only. A file left by a process that died is replaced: the guard starts one
    only when the one before has ended."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listening.bind(os.fspath(path))
        listening.listen(_BACKLOG)
    finally:
        os.umask(mask)
    return listening


async def _watch_tokens(desk: Desk, workspace: Workspace) -> None:
    """Keep the keyring, and its file for the router, as the configuration says."""
    known: Access = desk.source.site().access
    complaint = ""
    while True:
        await asyncio.sleep(TOKENS_S)
        site = await asyncio.to_thread(desk.source.site)
        if site.access == known:
            continue
        try:
            keyring = keyring_of(site.access, workspace.secrets)
            if keyring.open and not desk.keyring.open:
                raise PermanentError("SS618", "all tokens are gone", "restart servestate serve to do without")
            write_keyring(workspace.keyring_path, keyring)
        except (PermanentError, OSError) as error:  # tried again until it can be done
            if complaint != (complaint := str(error)):
                tell("tokens", f"the ones before still count: {error}")
            continue
        known, complaint = site.access, ""
        desk.keyring = keyring
        tell("tokens", f"{len(keyring.entries)} are known now")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
