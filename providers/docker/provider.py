"""The provider `docker`: engines in containers that outlive the command that launched them.

Containers are found by their labels (`marks.py`), on every host of the site at once. The identity of one is
its id together with when it was started; nothing is ever found by its name.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from servestate.planner.engine_keys import key_reference
from servestate.planner.launch import Container, LaunchSpec, Mount, Spec
from servestate.planner.live import LiveStatus, Observation
from servestate.planner.spec.site import DockerProvider as Settings
from servestate.planner.surroundings import Host, ImageFacts
from servestate.providers import cause, health, phases
from servestate.providers.docker import binds, create, entry, gpus, images, launching
from servestate.providers.docker.daemon import Daemon
from servestate.providers.docker.discretion import Discretion
from servestate.providers.docker.facts import Found, parse_handle
from servestate.providers.docker.launching import Order
from servestate.providers.docker.watch import Watch
from servestate.providers.engines import engine_for
from servestate.providers.engines.engine import KEY_FILE
from servestate.providers.protocol import (
    Failed,
    Launched,
    Marks,
    PermanentError,
    Readiness,
    Ready,
    Starting,
    TransientError,
)
from servestate.providers.secrets import Recorded, Secrets, fill, references

LOG_LINES_IN_FAILURE = 20
LOG_LINES_SEARCHED = 400
"""Log lines among which the cause of a failed start is looked for."""
LOG_LINES_IN_OBSERVATION = 3
PROGRESS_WIDTH = 120
_KILLED = 128 + 9  # the code of a process that SIGKILL ended, which is how the kernel gets memory back
_OOM_SAID_S = 0.5

PULLS_AT_ONCE = 2
"""Pulls to one host at a time: each of them loads several layers at once already."""

GONE_S = 30.0
"""How long a container may take to go once Docker was told to remove it."""


class DockerProvider:
    """Containers. `base_dir` is the bundle's folder, where relative sources, mounts and TLS files start."""

    name = "docker"

    def __init__(self, settings: Settings, base_dir: Path, secrets: Secrets) -> None:
        self._base_dir = base_dir.absolute()
        self._daemons = {name: Daemon(name, host, self._base_dir) for name, host in settings.by_name.items()}
        self._cache = settings.cache
        self._secrets = secrets
        self._discretion = Discretion(secrets)
        self._watch = Watch()
        self._launches: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._pulls: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(PULLS_AT_ONCE)
        )

    async def observe(self, lineage: str) -> list[Observation]:
        """See `Provider.observe`. A container whose labels cannot be read is none that we made: labels stay
        as they were given, so somebody copied ours. One host that does not answer fails it all: what runs
        there must not look gone. Raises PermanentError SS188 where two hosts are one Docker Engine: each
        container of it would be there twice, and one of the two be stopped."""
        await self._tell_apart()
        daemons = list(self._daemons.values())
        looks = await asyncio.gather(*(one.of_lineage(lineage) for one in daemons))
        # An engine that does not say which one it is may still be there twice: no two containers have one id.
        by_id = {
            found.id: (daemon, found) for daemon, look in zip(daemons, looks, strict=True) for found in look
        }
        return [await self._observation(daemon, found) for daemon, found in by_id.values()]

    async def _tell_apart(self) -> None:
        if len(self._daemons) < 2:
            return
        engines = await asyncio.gather(*(one.engine() for one in self._daemons.values()))
        first: dict[str, str] = {}
        for name, engine in zip(self._daemons, engines, strict=True):
            if engine and first.setdefault(engine, name) != name:
                raise PermanentError(
                    "SS188",
                    f"the hosts {first[engine]} and {name} are one Docker Engine",
                    "keep one of them in servestate.providers.docker.hosts: each would count its GPUs",
                )

    async def _observation(self, daemon: Daemon, found: Found) -> Observation:
        if found.alive:
            return found.observation(self.name)
        log = await daemon.api.logs(found.id, LOG_LINES_IN_OBSERVATION) if found.started else ()
        why = self._discretion.why(found, log, LOG_LINES_IN_OBSERVATION)
        return found.observation(self.name, why.text)

    def consult(self, recorded: Recorded) -> None:
        """See `Redactor.consult`."""
        self._discretion.consult(recorded)

    async def launch(self, spec: Spec, marks: Marks) -> Launched:
        """See `Provider.launch`. Launches of one address wait for each other; those of other commands are
        kept apart by the container's name."""
        if not isinstance(spec, LaunchSpec) or spec.container is None:
            raise PermanentError("SS503", "provider docker cannot start an entity without a container")
        daemon = self._daemon(marks.placement.host)
        self._discretion.learn(marks.address, spec)
        order = self._order(spec, spec.container, marks, daemon)
        async with self._launches[f"{marks.lineage} {marks.address}"]:
            found = await launching.launch(daemon, order)
        return Launched(found.handle, found.url, found.fields)

    def _daemon(self, host: str) -> Daemon:
        daemon = self._daemons.get(host)
        if daemon is None:
            known = ", ".join(self._daemons)
            raise PermanentError(
                "SS535",
                f'there is no Docker host "{host}" in this site, only {known}',
                "put it back into servestate.providers.docker.hosts until nothing runs there",
            )
        return daemon

    def _order(self, spec: LaunchSpec, container: Container, marks: Marks, daemon: Daemon) -> Order:
        if any(references(arg) for arg in spec.args):
            raise PermanentError(
                "SS503",
                f'the arguments of model "{spec.model}" hold a secret reference',
                "arguments are visible to whoever reaches Docker; pass the secret in environment_vars",
            )
        handover = self._handover(spec, marks)
        keyed = any(name == KEY_FILE for name, _ in handover.files)
        key_file = f"{entry.FOLDER}/{KEY_FILE}" if keyed else None
        command = engine_for(spec.engine).container(spec, self._base_dir, key_file)
        command = replace(command, mounts=self._bound(command.mounts, daemon))
        container = replace(container, mounts=self._bound(container.mounts, daemon))
        env = {name: value for name, value in spec.env if not references(value)}
        return Order(marks, container, command, env, handover, self._cache)

    def _bound(self, mounts: Sequence[Mount], daemon: Daemon) -> tuple[Mount, ...]:
        """The mounts by absolute sources; only on this machine can it be seen where those lead."""
        if not daemon.local:
            return tuple(replace(one, source=str(self._base_dir / one.source)) for one in mounts)
        allowed = daemon.settings.allowed_paths
        return tuple(binds.resolved(one, self._base_dir, allowed) for one in mounts)

    def _handover(self, spec: LaunchSpec, marks: Marks) -> entry.Handover:
        """What is secret of this launch. Raises PermanentError SS501."""
        files: list[tuple[str, str]] = []
        env: list[tuple[str, str]] = []
        if reference := key_reference(marks.address, spec):
            key = fill(reference, self._secrets).reveal()
            files.append((KEY_FILE, engine_for(spec.engine).key_text(key)))
        for name, value in spec.env:
            if references(value):
                # Hugging Face's libraries take the token's file, so it need not be in the environment.
                into, called = (files, create.HF_TOKEN_FILE) if name == create.HF_TOKEN else (env, name)
                into.append((called, fill(value, self._secrets).reveal()))
        return entry.Handover(tuple(files), tuple(env))

    async def probe(self, handle: str, spec: Spec) -> Readiness:
        """See `Provider.probe`. Docker itself holds the published port for as long as the container runs, so
        that it is the same one after the answer proves who answered."""
        if not isinstance(spec, LaunchSpec):
            return Failed("SS503", f"provider docker did not start this {spec.kind} entity")
        if (where := await self._where(handle)) is None:
            return Failed(cause.ENDED, "it is no container")
        daemon, container, started = where
        found = await daemon.look(container)
        if found is not None:
            self._discretion.learn(found.worn.marks.address, spec)
        if found is None or found.started != started or not found.alive:
            return await self._failure(daemon, found, started)
        if found.status is LiveStatus.PAUSED:
            return Starting("paused")
        trouble = await self._ask(found, spec)
        again = await daemon.look(container)
        if again is None or again.started != started or not again.alive:
            return await self._failure(daemon, again, started)
        if trouble or again.status is LiveStatus.PAUSED or again.url != found.url:
            return Starting(await self._progress(daemon, found, spec) or trouble)
        return Ready()

    async def _ask(self, found: Found, spec: LaunchSpec) -> str:
        """What the engine does instead of answering, "" where it answers."""
        trouble = await health.ask(f"{found.url}{spec.health_path}")
        first = engine_for(spec.engine).first_request(spec)
        if trouble or first is None:
            return trouble
        key = fill(key_reference(found.worn.marks.address, spec), self._secrets).reveal()
        return await health.ask_first(found.url, first, key)

    async def _failure(self, daemon: Daemon, found: Found | None, started: str) -> Failed:
        """Why the launch is over."""
        if found is not None and found.code == _KILLED and not found.out_of_memory:
            # A Docker Engine hears of memory that ran out by another way than of the end, and at times later.
            await asyncio.sleep(_OOM_SAID_S)
            found = await daemon.look(found.id)
        if found is None:
            return Failed(cause.ENDED, "its container is gone")
        log = await daemon.api.logs(found.id, LOG_LINES_SEARCHED)
        if found.started != started:
            shown = self._discretion.show(found.worn.marks.address, log)
            what = "\n".join(
                filter(None, ("its container was started again by somebody else", shown.withheld))
            )
            return Failed(cause.ENDED, cause.with_log(what, shown.lines, LOG_LINES_IN_FAILURE))
        why = self._discretion.why(found, log, LOG_LINES_IN_FAILURE)
        return Failed(why.code, why.text)

    async def _progress(self, daemon: Daemon, found: Found, spec: LaunchSpec) -> str:
        log = await daemon.api.logs(found.id, LOG_LINES_IN_FAILURE)
        shown = [line.strip() for line in self._discretion.show(found.worn.marks.address, log).lines]
        return phases.newest(engine_for(spec.engine), shown)[:PROGRESS_WIDTH]

    async def stop(self, handle: str, grace_s: float) -> None:
        """See `Provider.stop`. A container that was started again since has another identity."""
        if (where := await self._where(handle)) is None:
            return
        daemon, container, started = where
        found = await daemon.look(container)
        if found is None or found.started != started:
            return
        if found.status is LiveStatus.PAUSED:
            await daemon.api.unpause(container)  # what is paused cannot hear that it shall end
        if found.alive:
            await daemon.api.stop(container, grace_s)
        await daemon.api.remove(container)
        await _gone(daemon, container)

    async def logs(self, handle: str, tail: int) -> str:
        """See `Provider.logs`. Where its secrets cannot be masked, it says so instead."""
        if tail <= 0 or (where := await self._where(handle)) is None:
            return ""
        daemon, container, _ = where
        found = await daemon.look(container)
        if found is None:
            return ""
        shown = self._discretion.show(found.worn.marks.address, await daemon.api.logs(container, tail))
        return shown.withheld or "\n".join(shown.lines)

    async def hosts(self, lineage: str) -> list[Host]:
        """See `Surveyor.hosts`."""
        return list(await asyncio.gather(*(gpus.survey(one, lineage) for one in self._daemons.values())))

    async def image(self, host: str, image: str, pull: str) -> ImageFacts:
        """See `ImageKeeper.image`."""
        return await images.survey(self._daemon(host), image, pull)

    async def pull(self, host: str, image: str, digest: str, report: Callable[[str], None]) -> None:
        """See `ImageKeeper.pull`."""
        daemon = self._daemon(host)
        async with self._pulls[host]:
            await images.fetch(daemon, image, digest, report)

    async def await_change(self, lineage: str) -> None:
        """See `Watcher.await_change`."""
        await self._watch.change(list(self._daemons.values()), lineage)

    async def _where(self, handle: str) -> tuple[Daemon, str, str] | None:
        """The host, container id and start time that a handle names; None for a handle of another provider.
        A host may have been given another name since: then its container is looked for on all of them, as
        no two containers have one id. Raises PermanentError SS535 where it is not found on exactly one."""
        parsed = parse_handle(handle)
        if parsed is None:
            return None
        host, container, started = parsed
        if host in self._daemons:
            return self._daemons[host], container, started
        daemons = list(self._daemons.values())
        looks = await asyncio.gather(*(one.look(container) for one in daemons))
        having = [one for one, found in zip(daemons, looks, strict=True) if found is not None]
        return (having[0] if len(having) == 1 else self._daemon(host)), container, started


async def _gone(daemon: Daemon, container: str) -> None:
    """Wait until Docker no longer knows it: only then its name, port and GPUs are free."""
    deadline = asyncio.get_running_loop().time() + GONE_S
    while await daemon.api.inspect(container) is not None:
        if asyncio.get_running_loop().time() > deadline:
            raise TransientError(f"{daemon.api.where}: container {container[:12]} does not go")
        await asyncio.sleep(0.1)
