"""T95: what the kernel says of a launched engine, beside what Docker says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.launch import Mount
from servestate.providers.engines import command
from servestate.providers.protocol import PermanentError, Ready

pytestmark = pytest.mark.slow


def status(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processes(container):
    """Host pids of all processes in the container."""
    return [int(row[1]) for row in container.top()["Processes"]]


@pytest.mark.parametrize("secret", [False, True], ids=["plain", "with secrets"])
def test_an_engine_may_do_as_little_as_possible(place, double, settle, secret):
    place.secrets = {"SERVESTATE_SECRET_A__B": "x"}
    spec = place.spec(double, env={"KEY": "{{secrets/a/b}}"} if secret else {})

    async def go():
        provider = place.provider()
        launched = await provider.launch(spec, place.marks())
        assert await settle(provider, launched.handle, spec) == Ready()

    asyncio.run(go())
    one = place.only()
    pids = processes(one)
    assert pids
    for pid in pids:
        seen = status(pid)
        assert set(seen["Uid"].split()) == {"65534"}
        assert set(seen["Gid"].split()) == {"65534"}
        assert {seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
        mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        options = {fields[4]: fields[5].split(",") for fields in mounts}
        assert "ro" in options["/"]
        assert {"nosuid", "nodev", "noexec"} <= set(options["/run"])
        assert "noexec" not in options["/tmp"]
        assert not [point for point in options if "docker.sock" in point]
    host = one.attrs["HostConfig"]
    assert (host["Privileged"], host["PidMode"], host["UsernsMode"], host["Binds"]) == (False, "", "", None)
    assert host["IpcMode"] == "private"
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["Memory"] == host["MemorySwap"] > 0
    assert one.attrs["Config"]["Image"].startswith("sha256:")
    bindings = [binding for ports in one.ports.values() for binding in ports or ()]
    assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"]


def test_no_container_gets_the_socket(place, tiny):
    spec = place.spec(tiny, mounts=(Mount("/var/run", "/x"),))
    with pytest.raises(PermanentError, match=r"SS532.*part of the host"):
        asyncio.run(place.provider().launch(spec, place.marks()))
    assert place.all() == []


def test_a_mount_is_read_only_and_starts_at_the_bundles_folder(place, tiny, settle):
    (place.folder / "data").mkdir()
    (place.folder / "data" / "x").write_text("hello")
    spec = place.spec(tiny, mounts=(Mount("data", "/data"),))

    async def go():
        provider = place.provider()
        launched = await provider.launch(spec, place.marks())
        assert await settle(provider, launched.handle, spec) == Ready()

    asyncio.run(go())
    assert place.only().exec_run(["cat", "/data/x"]).output == b"hello"
    assert b"Read-only" in place.only().exec_run(["sh", "-c", "echo x > /data/y"]).output


def test_the_caches_are_the_users_and_outlive_the_container(place, tiny, monkeypatch):
    """Of an engine with caches: made before it starts, kept by the next one."""
    plain = command.CommandEngine.container

    def caching(self, spec, base_dir, key_file):
        return replace(plain(self, spec, base_dir, key_file), caches=("/cache/hf", "/cache/deep/down"))

    monkeypatch.setattr(command.CommandEngine, "container", caching)
    spec = place.spec(tiny)

    async def go():
        provider = place.provider()
        launched = await provider.launch(spec, place.marks())
        one = place.only()
        assert one.exec_run(["sh", "-c", "echo kept > /cache/hf/x; echo > /cache/deep/down/x"]).exit_code == 0
        assert one.exec_run(["touch", "/cache/elsewhere"]).exit_code != 0
        await provider.stop(launched.handle, 0)
        await provider.launch(spec, place.marks())
        assert place.only().exec_run(["cat", "/cache/hf/x"]).output == b"kept\n"

    asyncio.run(go())


def test_without_caches_there_is_no_volume(place, tiny):
    asyncio.run(place.provider().launch(place.spec(tiny), place.marks()))
    assert place.only().attrs["Mounts"] == []
