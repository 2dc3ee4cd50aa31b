"""The provider `process`: engines as local processes that outlive the command that launched them.

Each engine runs below a shim of its own (`shim.py`). The handle is the shim's identity, the truth about what
runs is the kernel's (`census.py`), and files only add what the kernel does not know (`rundir.py`).
"""

from __future__ import annotations

import hashlib
import os
import secrets as random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from servestate.planner.engine_keys import key_reference
from servestate.planner.launch import LOCAL, LaunchSpec, Spec
from servestate.planner.live import LiveStatus, Observation
from servestate.planner.spec.site import DeclaredGpu
from servestate.planner.surroundings import Gpu, Host
from servestate.providers import (
    cause,
    census,
    ending,
    health,
    identity,
    labels,
    needs,
    nvml,
    phases,
    proc,
    spawn,
)
from servestate.providers.census import Tree
from servestate.providers.engines import engine_for
from servestate.providers.engines.engine import Command
from servestate.providers.identity import Identity
from servestate.providers.labels import Worn
from servestate.providers.oserrors import translated
from servestate.providers.ports import Ports
from servestate.providers.protocol import (
    Failed,
    Launched,
    Marks,
    PermanentError,
    Readiness,
    Ready,
    Starting,
)
from servestate.providers.rundir import Folder, Run, RunDir
from servestate.providers.secrets import Mask, Recorded, Secrets, fill, references

LOG_LINES_IN_FAILURE = 20
LOG_LINES_SEARCHED = 400
"""Log lines among which the cause of a failed start is looked for."""
LOG_LINES_IN_OBSERVATION = 3
PROGRESS_WIDTH = 120
_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


class ProcessProvider:
    """Local processes. `root` is the run directory, `base_dir` the bundle's folder (relative sources and the
    engines' working directory), `environ` what engines may inherit from. `gpus` are this machine's, where
    its driver is not to be asked."""

    name = "process"

    def __init__(
        self,
        root: Path,
        base_dir: Path,
        secrets: Secrets,
        ports: Ports | None = None,
        environ: Mapping[str, str] | None = None,
        gpus: Sequence[DeclaredGpu] | None = None,
    ) -> None:
        self._runs = RunDir(root.absolute())
        self._base_dir = base_dir.absolute()
        self._secrets = secrets
        self._ports = ports or Ports()
        self._environ = os.environ if environ is None else environ
        self._gpus = gpus
        self._mask = Mask()
        self._recorded: Recorded = dict

    def consult(self, recorded: Recorded) -> None:
        """See `Redactor.consult`."""
        self._recorded = recorded

    async def observe(self, lineage: str) -> list[Observation]:
        """See `Provider.observe`. Everything of ours is found by its marks, records or not."""
        with translated(self._runs.root):
            trees = {tree.worn.nonce: tree for tree in census.trees() if tree.worn.marks.lineage == lineage}
            runs = {run.worn.nonce: run for run in self._runs.runs() if run.worn.marks.lineage == lineage}
            looks = (self._look(runs.get(nonce), trees.get(nonce)) for nonce in {**trees, **runs})
            return [observation for observation in looks if observation is not None]

    def _look(self, run: Run | None, tree: Tree | None) -> Observation | None:
        """One launch by its record, its processes or both; None when it was never given the word to start."""
        if run is not None and tree is None and identity.alive(run.shim):
            tree = census.tree_of(run.worn.nonce)  # launched after the processes were listed
        if run is None:
            if tree is None:
                return None
            run = Run(tree.head, tree.worn)
        end = self._folder(run.worn).exit(run.worn.nonce)
        if tree is not None and tree.shim is not None and end is None:
            status = LiveStatus.PAUSED if tree.paused else LiveStatus.RUNNING
            return _observation(run, status) if tree.started else None
        if end is not None and not end.started:
            return None
        why = ending.why(run, end, [], LOG_LINES_IN_OBSERVATION)
        return _observation(run, LiveStatus.EXITED, self._mask.hide(why.text))

    async def launch(self, spec: Spec, marks: Marks) -> Launched:
        """See `Provider.launch`. Two launches of one address at the same time wait for each other."""
        if not isinstance(spec, LaunchSpec):
            raise PermanentError("SS503", f"provider process cannot start an external {spec.kind} entity")
        with translated(self._runs.root):
            folder = self._runs.folder(marks.lineage, marks.address)
            async with folder.locked():
                run = self._living(marks)
                if run is None:
                    await self._clear(folder, marks)
                    run = await self._start(folder, spec, marks)
                    self._runs.prune()
                return Launched(run.handle, run.url)

    def _living(self, marks: Marks) -> Run | None:
        for tree in _trees_at(marks):
            if tree.started and self._folder(tree.worn).exit(tree.worn.nonce) is None:
                return Run(tree.head, tree.worn)
        return None

    async def _clear(self, folder: Folder, marks: Marks) -> None:
        """Kill what is left of dead launches of this address and forget their records."""
        for tree in _trees_at(marks):
            await ending.kill(tree.worn.nonce)
        folder.clear()
        folder.rotate_log()

    async def _start(self, folder: Folder, spec: LaunchSpec, marks: Marks) -> Run:
        key = self._key(spec, marks)
        mask = (*self._secret_values(spec), *key)
        port, reservation = self._ports.reserve(_seed(marks))
        started: list[Run] = []
        try:
            command = self._command(spec, port, _key_file(folder, spec, key))
            worn = Worn(marks, random.token_hex(16), port)

            def record(shim: Identity) -> None:
                started.append(Run(shim, worn))
                folder.write_run(started[0])

            await spawn.start(
                folder.path,
                worn.nonce,
                self._shim_env(worn),
                reservation,
                record,
                self._errand(spec, command, worn, mask),
            )
        except BaseException:
            folder.clear()
            raise
        finally:
            os.close(reservation)
        return started[0]

    def _key(self, spec: LaunchSpec, marks: Marks) -> tuple[str, ...]:
        """The key that the engine is to ask for, none for an engine that cannot; remembered to be masked."""
        reference = key_reference(marks.address, spec)
        key = (fill(reference, self._secrets).reveal(),) if reference else ()
        self._mask.add(key)
        return key

    def _command(self, spec: LaunchSpec, port: int, key_file: Path | None) -> Command:
        if any(references(arg) for arg in spec.args):
            raise PermanentError(
                "SS503",
                f'the arguments of model "{spec.model}" hold a secret reference',
                "arguments are visible to every user of the machine; pass the secret in environment_vars",
            )
        command = engine_for(spec.engine).command(spec, port, self._base_dir, key_file)
        for need in command.needs:
            needs.check(need)
        return command

    def _secret_values(self, spec: LaunchSpec) -> tuple[str, ...]:
        """The values of the secrets in the spec's environment, remembered to be masked in all we say."""
        found = {
            self._secrets.get(scope, key).reveal()
            for _, value in spec.env
            for scope, key in references(value)
        }
        self._mask.add(found)
        return tuple(sorted(found))

    def _shim_env(self, worn: Worn) -> dict[str, str]:
        base = spawn.base_environment(self._environ)
        return {**base, **labels.to_env(worn), labels.ROLE: labels.SHIM_ROLE}

    def _errand(self, spec: LaunchSpec, command: Command, worn: Worn, mask: tuple[str, ...]) -> spawn.Errand:
        given = {name: fill(value, self._secrets).reveal() for name, value in spec.env}
        env = {**spawn.base_environment(self._environ), **dict(command.env), **given, **labels.to_env(worn)}
        if spec.gpus:
            # CUDA counts by speed unless it is told to count as NVML does, by bus.
            env |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
            env |= {_VISIBLE_GPUS: ",".join(worn.marks.placement.gpus)}
        else:
            env = {_VISIBLE_GPUS: "", **env}  # what holds no GPU must not fill those of others
        return spawn.Errand(command.argv, env, self._base_dir, mask)

    async def probe(self, handle: str, spec: Spec) -> Readiness:
        """See `Provider.probe`. Ready takes three things: the shim lives and recorded no end, every socket
        that listens on the port belongs to a process below it, before the question and after the answer, and
        the answer is 200."""
        if not isinstance(spec, LaunchSpec):
            return Failed("SS503", f"provider process did not start this {spec.kind} entity")
        self._remember_secrets(spec)
        with translated(self._runs.root):
            run = self._find(handle)
            if run is None:
                return Failed(cause.ENDED, "its process is gone and there is no record of it")
            if failure := self._failure(run):
                return failure
            if _paused(run.shim):
                return Starting("paused by a signal")
            return await self._answer(run, spec)

    async def _answer(self, run: Run, spec: LaunchSpec) -> Readiness:
        port = run.worn.port
        listening = proc.listeners(port)
        if not listening:
            return Starting(self._progress(run, spec))
        # Twice, because a process may have been started between the listing and the look at its sockets.
        if health.strangers(port, run.shim.pid) and health.strangers(port, run.shim.pid):
            return self._failure(run) or Failed(
                "SS507",
                f"port {port} of {run.worn.marks.address} is held by a process that is not its engine",
            )
        trouble = await health.ask(f"{run.url}{spec.health_path}")
        if not trouble and (first := engine_for(spec.engine).first_request(spec)) is not None:
            key = fill(key_reference(run.worn.marks.address, spec), self._secrets).reveal()
            trouble = await health.ask_first(run.url, first, key)
        if failure := self._failure(run):
            return failure
        if trouble or proc.listeners(port) != listening:
            return Starting(trouble or "the port changes hands")
        return Ready()

    def _failure(self, run: Run) -> Failed | None:
        """Why the launch is over, None while it is not."""
        alive = identity.alive(run.shim)  # before the record: the shim writes it and ends after that
        folder = self._folder(run.worn)
        end = folder.exit(run.worn.nonce)
        if alive and end is None:
            return None
        log = self._log(folder, run, LOG_LINES_SEARCHED)
        if folder.ended() == run:
            stopped = cause.with_log("it was stopped", log, LOG_LINES_IN_FAILURE)
            return Failed(cause.ENDED, self._mask.hide(stopped))
        why = ending.why(run, end, log, LOG_LINES_IN_FAILURE)
        return Failed(why.code, self._mask.hide(why.text))

    async def stop(self, handle: str, grace_s: float) -> None:
        """See `Provider.stop`. Ends every process that wears the marks of this launch, orphans included."""
        with translated(self._runs.root):
            run = self._find(handle)
            if run is None:
                return
            if identity.send(run.shim, signal.SIGTERM, signal.SIGCONT):
                await identity.ended(run.shim, grace_s)
            await ending.kill(run.worn.nonce)
            await identity.ended(run.shim, ending.KILL_TIMEOUT_S)  # collects it when it was our child
            folder = self._folder(run.worn)
            async with folder.locked():
                if folder.run() in (run, None):
                    folder.mark_ended()

    async def logs(self, handle: str, tail: int) -> str:
        """See `Provider.logs`. Values of the secrets that the engine was given are masked, whoever launched
        it; where one cannot be had any more, nothing is shown."""
        run = self._find(handle)
        if run is None:
            return ""
        spec = self._recorded().get(run.worn.marks.address)
        try:
            if isinstance(spec, LaunchSpec):
                self._secret_values(spec)
                self._key(spec, run.worn.marks)
        except PermanentError as error:
            return f"its log is not shown: {error.what} here, so it cannot be masked"
        return self._mask.hide("\n".join(self._log(self._folder(run.worn), run, tail)))

    async def hosts(self, lineage: str) -> list[Host]:
        """See `Surveyor.hosts`. This machine, which can always start processes."""
        if self._gpus is not None:
            seen = nvml.Reading(tuple(Gpu(gpu.id, gpu.memory, gpu.name) for gpu in self._gpus))
        else:
            seen = nvml.read()
        with translated(self._runs.root):
            held = _held_by_others(lineage)
        gpus = tuple(replace(gpu, holders=(*gpu.holders, *held.get(gpu.id, ()))) for gpu in seen.gpus)
        return [Host(LOCAL, gpus, gpu_trouble=seen.trouble)]

    def _find(self, handle: str) -> Run | None:
        """The launch with this handle: by its record, else by the marks its process wears."""
        shim = identity.parse(handle)
        if shim is None:
            return None
        recorded = self._runs.find(handle)
        if recorded is not None:
            return recorded[1]
        worn = labels.from_env(proc.environ(shim.pid, having=labels.NONCE))
        return Run(shim, worn) if worn is not None and identity.alive(shim) else None

    def _folder(self, worn: Worn) -> Folder:
        return self._runs.folder(worn.marks.lineage, worn.marks.address)

    def _log(self, folder: Folder, run: Run, lines: int) -> list[str]:
        current = folder.run()
        superseded = current is not None and current.worn.nonce != run.worn.nonce
        return folder.tail(lines, before=superseded)

    def _progress(self, run: Run, spec: LaunchSpec) -> str:
        lines = [line.strip() for line in self._log(self._folder(run.worn), run, LOG_LINES_IN_FAILURE)]
        newest = phases.newest(engine_for(spec.engine), lines)
        return self._mask.hide(newest)[:PROGRESS_WIDTH]  # in this order: a secret cut short is not found

    def _remember_secrets(self, spec: LaunchSpec) -> None:
        # A secret may have been removed since the launch; then its old value is not known here.
        try:
            self._secret_values(spec)
        except PermanentError:
            return


def _key_file(folder: Folder, spec: LaunchSpec, key: tuple[str, ...]) -> Path | None:
    """The file that tells the engine its key, None for one that takes none."""
    return folder.write_key(engine_for(spec.engine).key_text(key[0])) if key else None


def _observation(run: Run, status: LiveStatus, why: str = "") -> Observation:
    marks = run.worn.marks
    return Observation(
        marks.address,
        ProcessProvider.name,
        run.handle,
        run.url,
        status,
        why,
        placement=marks.placement,
    )


def _trees_at(marks: Marks) -> list[Tree]:
    return [
        tree
        for tree in census.trees()
        if tree.worn.marks.lineage == marks.lineage and tree.worn.marks.address == marks.address
    ]


def _seed(marks: Marks) -> int:
    return int(hashlib.sha256(str(marks.address).encode()).hexdigest()[:8], 16)


def _paused(shim: Identity) -> bool:
    return any(one.paused for one in proc.processes() if shim.pid in (one.pid, one.ppid))


def _held_by_others(lineage: str) -> dict[str, list[str]]:
    """What engines of other lineages on this machine hold, by GPU id."""
    held: dict[str, list[str]] = {}
    for tree in census.trees():
        marks = tree.worn.marks
        if marks.lineage != lineage:
            for gpu in marks.placement.gpus:
                held.setdefault(gpu, []).append(f"{marks.address} of lineage {marks.lineage}")
    return held
