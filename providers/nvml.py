"""The GPUs of this machine, as NVIDIA's driver knows them. The library is imported when it is asked.

Its package is optional: a machine without it, or without the driver, simply has no GPUs to offer.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servestate.planner.surroundings import Gpu
from servestate.providers import labels, proc

_CONTAINER_GROUPS = ("docker", "containerd", "libpod", "kubepods")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the driver said. `uuids` is by GPU id; `trouble` says why it could not be asked, else empty."""

    gpus: tuple[Gpu, ...] = ()
    uuids: tuple[tuple[str, str], ...] = ()
    trouble: str = ""


def read() -> Reading:
    """The GPUs now. Their ids are indices, which the driver counts by bus address: CUDA does so only where
    CUDA_DEVICE_ORDER says it."""
    try:
        import pynvml
    except ImportError:
        return Reading(trouble="the Python package nvidia-ml-py is not installed, so no GPU can be seen")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Reading(trouble=f"no GPU can be seen: {error}")
    try:
        found = [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return Reading(trouble=f"the GPUs cannot be listed: {error}")
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return Reading(tuple(gpu for gpu, _ in found), tuple((gpu.id, uuid) for gpu, uuid in found))


def _gpu(nvml: Any, index: int) -> tuple[Gpu, str]:
    """One GPU and its UUID. What a GPU that fell off the bus answers is its fault."""
    try:
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(device)
        pids = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(device)]
        name, uuid = nvml.nvmlDeviceGetName(device), nvml.nvmlDeviceGetUUID(device)
    except nvml.NVMLError as error:
        return Gpu(str(index), 0, fault=f"the driver cannot use it: {error}"), ""
    return Gpu(str(index), int(memory.total), name, int(memory.used), tuple(_strangers(pids))), uuid


def _strangers(pids: Iterable[int]) -> Iterable[str]:
    """The processes that are nobody's we know: engines wear marks, and containers are told by Docker."""
    for pid in sorted(pids):
        one = proc.stat(pid)
        if one is None or proc.environ(pid, having=labels.LINEAGE) or _contained(pid):
            continue
        yield f"process {pid} ({one.comm})"


def _contained(pid: int) -> bool:
    try:
        groups = (Path("/proc") / str(pid) / "cgroup").read_text()
    except OSError:
        return False
    return any(name in groups for name in _CONTAINER_GROUPS)
