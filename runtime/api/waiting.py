"""What an update waits for without holding the lock: images, readiness, requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from servestate.planner.stages import Wait
from servestate.planner.state import State
from servestate.planner.steps import AwaitReady, Drain, Pull
from servestate.providers.protocol import ImageKeeper, PermanentError, Provider, TransientError
from servestate.providers.readiness import await_ready
from servestate.runtime.api.hands import Interrupt, Interrupted
from servestate.runtime.look import state_of
from servestate.runtime.router_link import ControlSocket
from servestate.runtime.workspace import Workspace

FINISH_S = 30.0
"""How long what has just proved ready may take to prove it once more, under the lock."""


def wait_for(waits: Mapping[str, Wait], workspace: Workspace, interrupt: Interrupt) -> dict[str, str]:
    """Wait for all of it at once; why each has failed, by the id of its step, "" for what has come about.
    Raises Interrupted, and StoreError."""
    state = state_of(workspace)
    providers = workspace.providers(state)
    return asyncio.run(_all(waits, state, providers, workspace, interrupt))


async def _all(
    waits: Mapping[str, Wait],
    state: State,
    providers: Mapping[str, Provider],
    workspace: Workspace,
    interrupt: Interrupt,
) -> dict[str, str]:
    loop = asyncio.get_running_loop()
    router = ControlSocket(workspace.control_path)
    work = asyncio.gather(*(_one(step, state, providers, router) for step in waits.values()))
    interrupt.watch(lambda: loop.call_soon_threadsafe(work.cancel))
    try:
        return dict(zip(waits, await work, strict=True))
    except asyncio.CancelledError:
        raise Interrupted from None
    finally:
        interrupt.watch(None)


async def _one(step: Wait, state: State, providers: Mapping[str, Provider], router: ControlSocket) -> str:
    try:
        match step:
            case AwaitReady(address, timeout_s):
                one = state.instances.get(address)
                if one is None:
                    return "somebody has taken it away meanwhile"
                await await_ready(providers[one.spec.provider], one.handle, one.spec, timeout_s, _silently)
            case Drain(address, timeout_s):
                await router.drained(address, timeout_s, _silently)
            case Pull(name, host, image, digest):
                provider = providers[name]
                assert isinstance(provider, ImageKeeper), "a plan pulls for what runs images only"
                await provider.pull(host, image, digest, _silently)
    except PermanentError as error:
        return error.what
    except TransientError as error:
        return str(error)
    return ""


def _silently(progress: str) -> None:
    """Nobody watches."""
