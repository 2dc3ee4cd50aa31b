"""The run directory may be missing, torn, full or read by others: nothing runs unseen, no secret is in it."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.live import LiveStatus
from servestate.providers import proc, rundir, spawn
from servestate.providers.protocol import Failed, PermanentError, Ready, TransientError

SECRET = "s3cr3t-value-of-a-test"


def record(site):
    return next(site.root.glob("*/run.json"))


TORN = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "no object": lambda path: path.write_text("[1]"),
    "wrong types": lambda path: path.write_text('{"handle": 1, "address": null, "port": "x"}'),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "folder removed": lambda path: shutil.rmtree(path.parent),
}


@pytest.mark.parametrize("how", TORN)
def test_a_torn_record_hides_no_running_instance(site, kit, how):
    async def go():
        _, launched, spec = await kit.ready(site)
        TORN[how](record(site))
        provider = site.provider()
        (one,) = await provider.observe(site.lineage)
        assert (one.handle, one.url, one.status) == (launched.handle, launched.url, LiveStatus.RUNNING)
        assert await provider.probe(launched.handle, spec) == Ready()
        assert await provider.launch(spec, site.marks()) == launched
        await provider.stop(launched.handle, 1)
        assert site.pids() == set()

    asyncio.run(go())


@pytest.mark.parametrize("how", sorted(set(TORN) - {"missing", "a folder"}))
def test_a_torn_exit_record_hides_no_end(site, kit, how):
    async def go():
        provider, spec = site.provider(), kit.tiny("--die-at", "start")
        launched = await provider.launch(spec, site.marks())
        assert isinstance(await kit.settled(provider, launched.handle, spec), Failed)
        await kit.until(lambda: not site.pids())
        if how == "folder removed":
            next(site.root.glob("*/exit.*.json")).unlink()
        else:
            TORN[how](next(site.root.glob("*/exit.*.json")))
        assert isinstance(await provider.probe(launched.handle, spec), Failed)
        (one,) = await provider.observe(site.lineage)
        assert one.status is LiveStatus.EXITED

    asyncio.run(go())


def test_strange_things_in_the_run_directory_are_passed_over(site, kit):
    async def go():
        site.root.mkdir()
        (site.root / "a file").write_text("x")
        (site.root / "loop").symlink_to("loop")
        (site.root / "empty").mkdir()
        _, launched, _ = await kit.ready(site)
        (one,) = await site.provider().observe(site.lineage)
        assert one.handle == launched.handle

    asyncio.run(go())


def test_a_run_directory_that_is_a_file_is_a_clear_error(site, kit):
    async def go():
        site.root.write_text("")
        with pytest.raises(PermanentError, match=f"SS504 cannot use {site.root}"):
            await site.provider().launch(kit.tiny(), site.marks())
        assert await site.provider().observe(site.lineage) == []

    asyncio.run(go())


@pytest.mark.parametrize("place", [(rundir.Folder, "make"), (rundir, "write_atomically"), (spawn, "_spawn")])
@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, PermanentError), (errno.EACCES, PermanentError), (errno.EMFILE, TransientError)],
)
def test_a_launch_that_cannot_be_recorded_leaves_nothing_running(
    site, kit, monkeypatch, place, number, error
):
    async def go():
        def refuse(*args, **options):
            raise OSError(number, os.strerror(number), "somewhere")

        provider = site.provider()
        with monkeypatch.context() as patch:
            patch.setattr(*place, refuse)
            with pytest.raises(error, match=os.strerror(number)):
                await provider.launch(kit.tiny(), site.marks())
        await kit.until(lambda: not site.pids())
        assert await provider.observe(site.lineage) == []
        assert await provider.launch(kit.tiny(), site.marks())

    asyncio.run(go())


def test_too_many_open_files_make_nothing_look_gone(site, kit, monkeypatch):
    async def go():
        provider, launched, spec = await kit.ready(site)

        def refuse(*args, **options):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        for name in ("processes", "environ", "stat"):
            with monkeypatch.context() as patch:
                patch.setattr(proc, name, refuse)
                with pytest.raises(TransientError):
                    await provider.observe(site.lineage)
                with pytest.raises(TransientError):
                    await provider.launch(spec, site.marks())
        assert await provider.probe(launched.handle, spec) == Ready()

    asyncio.run(go())


def test_a_full_disk_leaves_nothing_running(site, kit):
    async def go():
        if os.system(f"mount -t tmpfs -o size=4k tmpfs {site.folder} 2>/dev/null"):
            pytest.skip("a file system cannot be mounted here")
        try:
            (site.folder / "fill").write_bytes(b"x" * 4096)
            with pytest.raises(PermanentError, match="SS504"):
                await site.provider(replace(site.ports, registry=Path("/dev/shm") / site.lineage)).launch(
                    kit.tiny(), site.marks()
                )
            await kit.until(lambda: not site.pids())
        finally:
            os.system(f"umount {site.folder}")
            shutil.rmtree(Path("/dev/shm") / site.lineage, ignore_errors=True)

    asyncio.run(go())


def secret_spec(site, kit, *flags):
    site.secrets["SERVESTATE_SECRET_MY_SCOPE__TOKEN"] = SECRET
    env = (("TOKEN", "Bearer {{secrets/my_scope/token}}"),)
    return kit.tiny("--print-env", "TOKEN", *flags, env=env)


def test_the_engine_gets_the_secret_and_nothing_else_does(site, kit):
    async def go():
        provider, spec = site.provider(), secret_spec(site, kit)
        launched = await provider.launch(spec, site.marks())
        assert await kit.settled(provider, launched.handle, spec) == Ready()
        (log,) = site.root.glob("*/log")
        assert f"Bearer {SECRET}" in log.read_text()
        shim = launched.handle.split(".")[0]
        for pid in site.pids():
            assert SECRET not in Path(f"/proc/{pid}/cmdline").read_text()
        assert SECRET not in Path(f"/proc/{shim}/environ").read_text()
        assert SECRET not in repr(await provider.observe(site.lineage))
        assert await provider.logs(launched.handle, 5) == "tiny engine starts\nBearer ***"
        await provider.stop(launched.handle, 1)
        others = [path for path in site.folder.rglob("*") if path.is_file() and path != log]
        assert not [path for path in others if SECRET in path.read_text()]

    asyncio.run(go())


def test_a_secret_the_engine_printed_is_masked_in_every_error(site, kit):
    async def go():
        spec = secret_spec(site, kit, "--die-at", "load")
        launched = await site.provider().launch(spec, site.marks())
        provider = site.provider()  # another command, which has filled in nothing yet
        seen = await kit.settled(provider, launched.handle, spec)
        assert "| Bearer ***" in seen.why
        (one,) = await site.provider().observe(site.lineage)
        assert "| Bearer ***" in one.why
        assert SECRET not in next(site.root.glob("*/exit.*.json")).read_text()

    asyncio.run(go())


def test_a_missing_secret_fails_the_launch_before_anything_starts(site, kit):
    async def go():
        spec = kit.tiny(env=(("TOKEN", "{{secrets/my_scope/token}}"),))
        with pytest.raises(PermanentError, match="SS501"):
            await site.provider().launch(spec, site.marks())
        assert site.pids() == set()

    asyncio.run(go())


def test_a_secret_in_the_arguments_is_refused(site, kit):
    async def go():
        site.secrets["SERVESTATE_SECRET_A__B"] = SECRET
        with pytest.raises(PermanentError, match="hold a secret reference"):
            await site.provider().launch(kit.tiny("--say", "{{secrets/a/b}}"), site.marks())

    asyncio.run(go())


def test_engines_inherit_only_what_they_may_need():
    environ = {"PATH": "/bin", "HF_HOME": "/w", "CUDA_VISIBLE_DEVICES": "1", "AWS_SECRET_ACCESS_KEY": "x"}
    environ |= {"SERVESTATE_SECRET_A__B": "y", "PYTHONPATH": "/elsewhere", "OPENAI_API_KEY": "z"}
    kept = spawn.base_environment(environ)
    assert set(kept) == {"PATH", "HF_HOME", "CUDA_VISIBLE_DEVICES", "PYTHONUNBUFFERED"}


def test_the_log_of_the_launch_before_is_kept_apart(site, kit):
    async def go():
        provider = site.provider()
        first = await provider.launch(kit.tiny("--say", "first"), site.marks())
        await provider.stop(first.handle, 0)
        spec = kit.tiny("--say", "second")
        second = await provider.launch(spec, site.marks())
        await kit.settled(provider, second.handle, spec)
        assert "second" not in await provider.logs(first.handle, 9)
        assert await provider.logs(second.handle, 9) == "second"

    asyncio.run(go())


def test_records_and_logs_are_for_this_user_only(site, kit):
    async def go():
        await kit.ready(site)
        for path in (record(site), record(site).with_name("log"), record(site).parent):
            assert path.stat().st_mode & 0o077 == 0

    asyncio.run(go())


def test_old_folders_of_stopped_instances_are_pruned(site, kit, monkeypatch):
    async def go():
        monkeypatch.setattr(rundir, "KEPT_FOLDERS", 2)
        provider = site.provider()
        for replica in range(5):
            address = replace(kit.address, replica=replica)
            launched = await provider.launch(kit.tiny("--never-bind"), site.marks(address))
            await provider.stop(launched.handle, 0)
        running = await provider.launch(kit.tiny("--never-bind"), site.marks())
        assert len(list(site.root.iterdir())) == 3
        (one,) = await provider.observe(site.lineage)
        assert one.handle == running.handle

    asyncio.run(go())


def test_a_log_that_grows_too_long_is_cut(site, kit, monkeypatch, tmp_path):
    from servestate.providers import shim

    path = tmp_path / "log"
    path.write_text("old lines\n")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shim, "LOG_BOUND", 5)
    monkeypatch.setattr(shim, "LOG_FD", fd)
    shim._bound_log()
    os.write(fd, b"new\n")
    os.close(fd)
    assert (path.read_text(), path.with_name("log.1").read_text()) == ("new\n", "old lines\n")


def test_an_engine_paused_with_its_supervisor_is_stopped(site, kit):
    async def go():
        provider, launched, _ = await kit.ready(site)
        pid = int(launched.handle.split(".")[0])
        os.kill(pid, signal.SIGSTOP)
        await kit.until(lambda: proc.stat(pid).paused)
        (one,) = await provider.observe(site.lineage)
        assert one.status is LiveStatus.PAUSED
        await provider.stop(launched.handle, 1)
        assert site.pids() == set()

    asyncio.run(go())
