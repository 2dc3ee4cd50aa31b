"""From nothing to a started container: adopt, clear, create, fill, start. Every call of it may get no answer.

Docker lets one container have a name, and the name is that of the address: this is what keeps two commands
from starting one address twice, on whatever machines they run.
"""

from __future__ import annotations

import asyncio
import secrets as random
from collections.abc import Mapping
from dataclasses import dataclass

from servestate.planner.launch import Container
from servestate.providers.docker import create, entry, images, marks, refusals
from servestate.providers.docker.api import Directory, Refused, Unreachable
from servestate.providers.docker.daemon import Daemon
from servestate.providers.docker.facts import Found
from servestate.providers.engines.engine import CACHE_ROOT, ContainerCommand
from servestate.providers.labels import Worn
from servestate.providers.protocol import Marks, PermanentError, TransientError

PATIENCE_S = 3.0
"""How long a container that was created but not started may belong to a launch that still goes on."""

NAME_FREE_S = 15.0
"""How long to try while something of ours that is about to go holds the name."""

_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Order:
    """What to launch. `env` holds variables without a secret, `handover` those with one."""

    marks: Marks
    container: Container
    command: ContainerCommand
    env: Mapping[str, str]
    handover: entry.Handover
    cache: str


class _NameTaken(Exception):
    """Another container has the name."""


async def launch(daemon: Daemon, order: Order) -> Found:
    """The started container of the order's address: the one that lives already, else a new one. Raises
    PermanentError SS512, SS530 to SS534, and TransientError where the next try may succeed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + NAME_FREE_S
    while True:
        if (living := await _standing(daemon, order.marks)) is not None:
            return living
        try:
            return await _new(daemon, order)
        except _NameTaken:
            name = marks.container_name(order.marks.lineage, order.marks.address)
            await _refuse_stranger(daemon, name, order.marks)
            if loop.time() > deadline:
                raise TransientError(f"{daemon.api.where}: the name {name} does not get free") from None
        await asyncio.sleep(_PAUSE_S)


async def _standing(daemon: Daemon, wanted: Marks) -> Found | None:
    """What lives at the address; where nothing does, the remains of dead launches are removed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while True:
        found = await daemon.of_address(wanted)
        if (living := next((one for one in found if one.alive), None)) is not None:
            return living
        if loop.time() > deadline or not any(one.unstarted for one in found):
            break
        await asyncio.sleep(_PAUSE_S)
    for remains in found:
        await daemon.api.remove(remains.id)
    return None


async def _refuse_stranger(daemon: Daemon, name: str, wanted: Marks) -> None:
    """Return where the name is held by something of the address, or no longer."""
    raw = await daemon.api.inspect(name)
    if raw is None:
        return
    labels = raw["Config"]["Labels"] or {}
    if (labels.get(marks.LINEAGE), labels.get(marks.ADDRESS)) == (wanted.lineage, str(wanted.address)):
        return
    raise PermanentError(
        "SS531",
        f"{daemon.api.where}: the name {name} is held by container {raw['Id'][:12]}, which is not of "
        f"{wanted.address} of this state",
        f"rename or remove it: docker rename {name} OTHER_NAME",
    )


async def _new(daemon: Daemon, order: Order) -> Found:
    image = await images.resolve(daemon, order.container)
    worn = Worn(order.marks, random.token_hex(16), order.command.port)
    ground = create.Ground(image, await daemon.memory(), daemon.settings.address, order.cache, daemon.sockets)
    config = create.config(order.container, worn, order.command, order.env, order.handover, ground)
    container = await _create(daemon, worn, config)
    try:
        await _fill(daemon, container, order, create.user(order.container, order.command, image))
        await _start(daemon, container, order.handover)
    except Refused as refused:
        await daemon.api.remove(container)
        raise _meaning(daemon, refused) from refused
    except PermanentError:
        await daemon.api.remove(container)
        raise
    return await _looked(daemon, container)


async def _create(daemon: Daemon, worn: Worn, config: dict[str, object]) -> str:
    """The id of the new container; also where it was made and only the answer says otherwise."""
    name = marks.container_name(worn.marks.lineage, worn.marks.address)
    try:
        return await daemon.api.create(name, config)
    except Refused as refused:
        if refused.status == 409:
            raise _NameTaken from refused
        failure: TransientError | PermanentError = _meaning(daemon, refused)
    except Unreachable as unreachable:
        failure = unreachable
    made = await daemon.of_launch(worn.nonce)
    if made is None:
        raise failure
    return made.id


async def _fill(daemon: Daemon, container: str, order: Order, user: str) -> None:
    """What has to be there before the engine starts: a shell where it is needed, and the caches' folders."""
    if order.handover and not await daemon.api.holds(container, entry.SHELL):
        await _looked(daemon, container)  # a container that is gone holds nothing either
        raise PermanentError(
            "SS532",
            f"image {order.container.image} has no {entry.SHELL}, which takes in what is secret",
            "use an image with a shell, or an engine and environment_vars without secrets",
        )
    # What is there already belongs to whoever made it, and holds what was downloaded.
    missing = [path for path in order.command.caches if not await daemon.api.holds(container, path)]
    if missing:
        owner = create.owner(user)
        await daemon.api.make(container, CACHE_ROOT, [Directory(path, owner) for path in missing])


async def _start(daemon: Daemon, container: str, handover: entry.Handover) -> None:
    """Start it, or find that it was started although no answer came."""
    stdin = entry.frames(handover) if handover else None
    try:
        await daemon.api.start(container, stdin)
    except Refused as refused:
        if refused.status != 404 or "no such container" not in refused.message.lower():
            raise
        raise _gone(daemon) from refused
    except Unreachable:
        found = await _looked(daemon, container)
        if not found.started:
            await daemon.api.remove(container)
            raise


async def _looked(daemon: Daemon, container: str) -> Found:
    found = await daemon.look(container)
    if found is None:
        raise _gone(daemon)
    return found


def _gone(daemon: Daemon) -> TransientError:
    return TransientError(f"{daemon.api.where}: the container that was just created is gone again")


def _meaning(daemon: Daemon, refused: Refused) -> TransientError | PermanentError:
    return refusals.explained(refused.status, refused.message, daemon.api.where) or refused
