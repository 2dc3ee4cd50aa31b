"""The GPUs of a Docker host: declared, asked of this machine's driver, or of a container on a remote one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from servestate.planner.surroundings import Gpu, Host
from servestate.providers import nvml
from servestate.providers.docker import marks, refusals
from servestate.providers.docker.api import Json, Refused
from servestate.providers.docker.daemon import Daemon
from servestate.providers.protocol import PermanentError, TransientError

QUERY = (
    "nvidia-smi",
    "--query-gpu=index,uuid,memory.total,memory.used,name",
    "--format=csv,noheader,nounits",
)
PROBE_S = 60
_EVERY = -1
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class _Reading:
    """GPUs, the ids by every name that Docker may call them, and why there may be none to give."""

    gpus: tuple[Gpu, ...] = ()
    ids: Mapping[str, str] = field(default_factory=dict)
    trouble: str = ""


async def survey(daemon: Daemon, lineage: str) -> Host:
    """See `Surveyor.hosts`; one host."""
    try:
        info = await daemon.api.info()
        reading = await _read(daemon, info)
        held = await _held(daemon, reading, lineage) if reading.gpus else {}
    except TransientError as error:
        return Host(daemon.name, trouble=str(error))
    gpus = tuple(replace(gpu, holders=(*gpu.holders, *held.get(gpu.id, ()))) for gpu in reading.gpus)
    return Host(daemon.name, gpus, gpu_trouble=reading.trouble)


async def _read(daemon: Daemon, info: Json) -> _Reading:
    settings = daemon.settings
    if settings.gpus is not None:
        declared = tuple(Gpu(gpu.id, gpu.memory, gpu.name) for gpu in settings.gpus)
        return _Reading(declared, {gpu.id: gpu.id for gpu in declared})
    missing = "" if "nvidia" in info.get("Runtimes", {}) else _no_runtime(daemon)
    if daemon.local:
        seen = nvml.read()
        if not seen.trouble:
            names = {gpu.id: gpu.id for gpu in seen.gpus} | {uuid: one for one, uuid in seen.uuids}
            return _Reading(seen.gpus, names, missing)
    if missing or not settings.gpu_probe_image:
        return _Reading(trouble=missing or _undeclared(daemon))
    try:
        return _parsed(await _ask_container(daemon, settings.gpu_probe_image))
    except PermanentError as error:
        return _Reading(trouble=f"{error.what}; {error.fix}")


def _no_runtime(daemon: Daemon) -> str:
    return (
        f'Docker on host "{daemon.name}" has no runtime for GPUs (nvidia): install the NVIDIA Container '
        "Toolkit there, or declare `gpus` of that host"
    )


def _undeclared(daemon: Daemon) -> str:
    return (
        f'the GPUs of host "{daemon.name}" are not known: declare `gpus`, or name a `gpu_probe_image` '
        "that has nvidia-smi"
    )


async def _ask_container(daemon: Daemon, image: str) -> str:
    """What nvidia-smi says in a container that sees every GPU and may do nothing else."""
    try:
        container = await daemon.api.create("", _probe_config(image))
        try:
            await daemon.api.start(container)
            code = await daemon.api.wait(container, PROBE_S)
            said = "\n".join(await daemon.api.logs(container, 100))
        finally:
            with suppress(TransientError):
                await daemon.api.remove(container)
    except Refused as refused:
        meaning = refusals.explained(refused.status, refused.message, daemon.api.where)
        raise meaning or refused from refused
    if code:
        what = f'{image} on host "{daemon.name}" cannot list GPUs: exit code {code}: {said}'
        raise PermanentError("SS512", what, "use an image with nvidia-smi, or declare `gpus` of that host")
    return said


def _probe_config(image: str) -> dict[str, Any]:
    return {
        "Image": image,
        "Entrypoint": list(QUERY[:1]),
        "Cmd": list(QUERY[1:]),
        "User": "65534:65534",
        "Env": ["NVIDIA_DRIVER_CAPABILITIES=utility"],
        "Labels": {f"{marks.PREFIX}probe": "gpus"},
        "HostConfig": {
            "DeviceRequests": [{"Driver": "nvidia", "Count": _EVERY, "Capabilities": [["gpu"]]}],
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": 64,
            "Memory": 512 * _MIB,
        },
    }


def _parsed(said: str) -> _Reading:
    """Lines of `INDEX, UUID, MIB, MIB, NAME`. Raises PermanentError SS512 for anything else."""
    gpus: list[Gpu] = []
    names: dict[str, str] = {}
    for line in said.splitlines():
        try:
            index, uuid, total, used, name = (part.strip() for part in line.split(",", 4))
            gpus.append(Gpu(index, int(total) * _MIB, name, int(used) * _MIB))
        except ValueError:
            raise PermanentError("SS512", f"nvidia-smi says: {line}", "declare `gpus` of that host") from None
        names |= {index: index, uuid: index}
    return _Reading(tuple(gpus), names)


async def _held(daemon: Daemon, reading: _Reading, ours: str) -> dict[str, list[str]]:
    """What strangers' containers hold, by GPU id."""
    running = await daemon.api.containers({}, running=True)
    others = [one["Id"] for one in running if (one.get("Labels") or {}).get(marks.LINEAGE) != ours]
    holders: dict[str, list[str]] = {}
    for raw in await daemon.api.inspect_all(others):
        lineage = (raw["Config"]["Labels"] or {}).get(marks.LINEAGE)
        whose = f" of lineage {lineage}" if lineage else ""
        for gpu in _requested(raw, reading):
            holders.setdefault(gpu, []).append(f"container {raw['Name'].removeprefix('/')}{whose}")
    return holders


def _requested(raw: Json, reading: _Reading) -> Iterable[str]:
    for request in raw["HostConfig"].get("DeviceRequests") or ():
        if not any("gpu" in ability for ability in request.get("Capabilities") or ()):
            continue
        if given := request.get("DeviceIDs"):
            yield from (reading.ids[one] for one in given if one in reading.ids)
        else:
            count = request.get("Count", 0)
            # Docker takes the first ones when it is told a number.
            yield from (gpu.id for gpu in (reading.gpus if count == _EVERY else reading.gpus[:count]))
