"""Looking around before a plan is made: state, live and surroundings, everything asked at once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import replace

from servestate.planner.live import Live
from servestate.planner.owners import API_VERB
from servestate.planner.resolve import Resolved
from servestate.planner.state import State
from servestate.planner.surroundings import Surroundings
from servestate.providers.protocol import Provider
from servestate.runtime.refresh import refresh
from servestate.runtime.router_link import router_trouble
from servestate.runtime.survey import survey
from servestate.runtime.table_file import read_version
from servestate.runtime.workspace import Workspace


def state_of(workspace: Workspace) -> State:
    """The state now. Where there is none yet, an empty one of a fresh lineage. Raises StoreError."""
    return workspace.store.read() or State(str(uuid.uuid4()))


async def see(workspace: Workspace, providers: Mapping[str, Provider], state: State) -> Live:
    """Live, of these providers, and whether a running router routes as it should."""
    table_version = read_version(workspace.table_path, state.lineage)
    live, trouble = await asyncio.gather(
        refresh(providers, state.lineage, state, table_version),
        router_trouble(workspace.control_path, workspace.table_path, state.table_serial),
    )
    return replace(live, router_trouble=trouble, removed=workspace.store.removed(API_VERB))


async def look_around(
    workspace: Workspace, desired: Resolved, state: State, pull: str
) -> tuple[Live, Surroundings]:
    """Live and surroundings of a plan for `desired` in `state`; `pull` is the policy for images. Raises
    TransientError and PermanentError where a provider cannot say what there is."""
    providers = workspace.providers(state)
    return await asyncio.gather(
        see(workspace, providers, state),
        survey(desired, state.lineage, providers, workspace.secrets, workspace.root, pull),
    )


def pull_policy(workspace: Workspace, given: str | None = None) -> str:
    """When images are fetched: what was asked for, else what the site says."""
    docker = workspace.site.providers.docker
    return given or (docker.pull if docker is not None else "missing")
