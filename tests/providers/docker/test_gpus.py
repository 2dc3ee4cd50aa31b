"""GPUs of hosts: as declared, as nvidia-smi prints them, as the driver answers."""

from __future__ import annotations

import asyncio
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from servestate.planner.launch import LOCAL
from servestate.planner.spec.site import DeclaredGpu
from servestate.planner.surroundings import Gpu
from servestate.providers import nvml
from servestate.providers.docker import gpus
from servestate.providers.process import ProcessProvider
from servestate.providers.protocol import PermanentError, Surveyor
from servestate.providers.secrets import EnvSecrets

GIB = 2**30
SMI = "0, GPU-aaaa, 81559, 3, NVIDIA H100 80GB HBM3\n1, GPU-bbbb, 81559, 70000, NVIDIA H100 80GB HBM3\n"


def test_nvidia_smi_is_read():
    reading = gpus._parsed(SMI)
    assert [gpu.id for gpu in reading.gpus] == ["0", "1"]
    assert reading.gpus[1].memory == 81559 * 2**20
    assert reading.gpus[1].used == 70000 * 2**20
    assert reading.gpus[0].name == "NVIDIA H100 80GB HBM3"
    with pytest.raises(PermanentError, match=r"SS512.*No devices"):
        gpus._parsed("No devices were found")


@pytest.mark.parametrize(
    ("request_", "held"),
    [
        ({"DeviceIDs": ["1"], "Capabilities": [["gpu"]]}, ["1"]),
        ({"DeviceIDs": ["GPU-aaaa"], "Capabilities": [["gpu", "utility"]]}, ["0"]),
        ({"DeviceIDs": ["7"], "Capabilities": [["gpu"]]}, []),
        ({"Count": -1, "DeviceIDs": None, "Capabilities": [["gpu"]]}, ["0", "1"]),
        ({"Count": 1, "Capabilities": [["gpu"]]}, ["0"]),
        ({"Count": -1, "Capabilities": [["tpu"]]}, []),
    ],
)
def test_what_a_container_asked_for_it_holds(request_, held):
    raw = {"HostConfig": {"DeviceRequests": [request_]}}
    assert list(gpus._requested(raw, gpus._parsed(SMI))) == held
    assert list(gpus._requested({"HostConfig": {"DeviceRequests": None}}, gpus._parsed(SMI))) == []


class DriverError(Exception):
    pass


def driver(devices):
    """A stand-in for the library `pynvml`, whose driver has these devices; None fails."""
    library = ModuleType("pynvml")

    def handle(index):
        if devices[index] is None:
            raise DriverError("GPU is lost")
        return devices[index]

    vars(library).update(
        NVMLError=DriverError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(devices),
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(total=80 * GIB, used=device["used"]),
        nvmlDeviceGetComputeRunningProcesses=lambda device: [SimpleNamespace(pid=p) for p in device["pids"]],
        nvmlDeviceGetName=lambda device: "H100",
        nvmlDeviceGetUUID=lambda device: device["uuid"],
    )
    return library


def test_the_driver_is_asked_and_strangers_are_named(monkeypatch):
    devices = [{"used": 5, "uuid": "GPU-a", "pids": [os.getpid(), 2**22 + 1]}, None]
    monkeypatch.setitem(sys.modules, "pynvml", driver(devices))
    reading = nvml.read()
    first, lost = reading.gpus
    assert (first.id, first.memory, first.used, first.fault) == ("0", 80 * GIB, 5, "")
    assert [holder.split()[:2] for holder in first.holders] == [["process", str(os.getpid())]]
    assert lost == Gpu("1", 0, fault="the driver cannot use it: GPU is lost")
    assert reading.uuids[0] == ("0", "GPU-a")


def test_a_machine_without_a_driver_says_so(monkeypatch):
    library = driver([])

    def fail():
        raise DriverError("NVML Shared Library Not Found")

    library.nvmlInit = fail
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert nvml.read() == nvml.Reading(trouble="no GPU can be seen: NVML Shared Library Not Found")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py" in nvml.read().trouble


def test_local_processes_have_the_declared_gpus_else_the_drivers(tmp_path, monkeypatch):
    declared = (DeclaredGpu(id="0", memory="24GiB", name="L4"),)
    provider = ProcessProvider(tmp_path / "run", tmp_path, EnvSecrets({}), gpus=declared)
    assert isinstance(provider, Surveyor)
    (host,) = asyncio.run(provider.hosts("l"))
    assert (host.name, host.gpus, host.gpu_trouble) == (LOCAL, (Gpu("0", 24 * GIB, "L4"),), "")
    monkeypatch.setitem(sys.modules, "pynvml", driver([{"used": 5, "uuid": "GPU-a", "pids": []}]))
    (host,) = asyncio.run(ProcessProvider(tmp_path / "run", tmp_path, EnvSecrets({})).hosts("l"))
    assert [gpu.id for gpu in host.gpus] == ["0"]
