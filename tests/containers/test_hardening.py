"""T95: every container that an apply makes, of each image here, by the kernel's word and by Docker's."""

from __future__ import annotations

from pathlib import Path

import pytest
from docker.models.containers import Container

from tests.cli.harness import Endpoints, local
from tests.containers.harness import ContainerSite, check_converged, image_of, processes_of
from tests.docker import images

pytestmark = pytest.mark.slow

EVERY: Endpoints = {
    "plain": {"only": local("plain")},
    "secret": {"only": local("secret")},
    "model": {"only": local("model")},
}
NO_CAPABILITY = "0" * 16


def test_every_container_is_confined(
    site: ContainerSite, tiny: str, engine_double: str, llamacpp: str
) -> None:
    weights = images.weights()
    site.env["SERVESTATE_SECRET_TESTS__TOKEN"] = "of-the-tests"
    model = {
        "engine": "llamacpp",
        "image": llamacpp,
        "source": f"file://{weights}",
        "llamacpp": {"ctx_size": 512, "threads": 1},
    }
    versions = {
        "plain": image_of(tiny),
        "secret": image_of(engine_double, env={"TOKEN": "{{secrets/tests/token}}"}),
        "model": model,  # as little as can be written: the defaults have to be safe
    }
    site.contain(EVERY, versions, docker={"allowed_paths": [str(weights.parent)]})
    site.apply()
    check_converged(site, EVERY)
    for one in site.containers():
        _check_kernel(one)
        _check_docker(one)
        _check_port(one)


def _check_kernel(container: Container) -> None:
    """What each process of it may do."""
    processes = list(processes_of(container))
    assert len(processes) >= 2, "docker-init and the engine"
    for process in processes:
        lines = (line.partition(":") for line in (process / "status").read_text().splitlines())
        status = {name: value.split() for name, _, value in lines}
        assert "0" not in (*status["Uid"], *status["Gid"])
        sets = {status[name][0] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")}
        assert sets == {NO_CAPABILITY}
        assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
        mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
        assert [m[5].split(",")[0] for m in mounts if m[4] == "/"] == ["ro"]
        assert not [m for m in mounts if m[3].endswith(".sock") or m[4].endswith(".sock")]


def _check_docker(container: Container) -> None:
    """Docker's account of the same, and what only Docker knows."""
    container.reload()
    config, host = container.attrs["Config"], container.attrs["HostConfig"]
    assert "sha256:" in config["Image"]
    assert config["User"].partition(":")[0] not in ("", "0", "root")
    assert (host["Privileged"], host["ReadonlyRootfs"], host["Init"]) == (False, True, True)
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], None)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["PidMode"], host["IpcMode"], host["UTSMode"]) == ("", "private", "")
    assert host["NetworkMode"] == "bridge"
    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["PidsLimit"] > 0
    assert host["RestartPolicy"]["Name"] == "no"
    given = ("Devices", "DeviceRequests", "Binds", "VolumesFrom")
    assert [name for name in given if host[name]] == []
    for mount in container.attrs["Mounts"]:
        assert not mount["RW"]
        assert not mount["Source"].endswith(".sock")
    assert not any("of-the-tests" in text for text in [*config["Env"], *(config["Cmd"] or [])])


def _check_port(container: Container) -> None:
    """Published on loopback only, as Docker says and as the kernel does."""
    ports = container.attrs["NetworkSettings"]["Ports"]
    (bindings,) = [bound for bound in ports.values() if bound]
    assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"]
    port = int(bindings[0]["HostPort"])
    listening = [line.split() for line in _sockets() if line.split()[3] == "0A"]
    addresses = {local[1].rpartition(":")[0] for local in listening if local[1].endswith(f":{port:04X}")}
    assert addresses == {"0100007F"}


def _sockets() -> list[str]:
    """The kernel's TCP sockets of the host, one a line."""
    tables = (Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    return [line for table in tables for line in table.splitlines()[1:]]
