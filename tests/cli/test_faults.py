"""What goes wrong in the world: a clear cause, the documented exit code, no traceback, nothing lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from servestate.planner.state import Phase
from tests.cli.harness import ONE, SPLIT, Result, Site, echo, local, remote, unprivileged, until
from tests.cli.sweep import check_converged

pytestmark = pytest.mark.slow  # each waits for an engine, a lock or a clock

TWO = {"good": {"a": local("1")}, "bad": {"a": local("2")}}


def broken(site: Site, *flags: str, **settings: object) -> Result:
    """Apply two endpoints, one with an engine that fails so; the other one must be there afterwards."""
    site.configure(TWO, versions={"1": echo("1"), "2": echo("2", *flags, ready_timeout_s=1, **settings)})
    result = site.run("apply", "--auto-approve")
    assert result.code == 4, (result.out, result.err)
    assert "Traceback" not in result.out + result.err
    assert [a.partition("@")[0] for a in site.alive()] == ["good/a"]
    assert list(site.state().endpoints) == ["good"]
    assert "To go on, run again: servestate apply" in result.err
    return result


def repaired(site: Site) -> None:
    """With the cause put right in the YAML, one apply converges and the good one was never touched."""
    good = site.engines()["good/a"]
    site.configure(TWO)
    site.apply()
    check_converged(site, TWO)
    assert site.engines()["good/a"] == good


class TestEngine:
    def test_never_ready(self, site: Site) -> None:
        result = broken(site, "--deaf")
        assert re.search(r"SS508 not ready after 1 s", result.err)
        assert "| engine 2 starts" in result.err
        plan = site.run("plan")
        assert "# bad/a is tainted, so must be replaced" in plan.out
        repaired(site)

    @pytest.mark.slow
    def test_dies_at_start(self, site: Site) -> None:
        result = broken(site, "--die")
        assert "SS506 exit code 7" in result.err
        assert "| the weights are broken" in result.err
        repaired(site)

    @pytest.mark.slow
    def test_answers_garbage(self, site: Site) -> None:
        assert "SS508 not ready after 1 s" in broken(site, "--garbage").err
        repaired(site)

    @pytest.mark.slow
    def test_is_not_installed(self, site: Site) -> None:
        result = broken(site, argv=["no-such-program", "{port}"])
        assert "SS505 cannot execute no-such-program" in result.err
        assert "fix: install it, or write its full path" in result.err
        repaired(site)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "content", [None, b"", b"not a model at all"], ids=["missing", "empty", "garbage"]
    )
    def test_model_file_is_missing_or_garbage(self, site: Site, content: bytes | None) -> None:
        site.configure(TWO, versions={"1": echo("1"), "2": {"engine": "llamacpp", "source": "m.gguf"}})
        if content is not None:
            (site.folder / "m.gguf").write_bytes(content)
        result = site.run("apply", "--auto-approve")
        assert result.code == 4, (result.out, result.err)
        assert re.search(r"SS5\d\d .*m\.gguf", result.err), result.err
        assert "fix: " in result.err
        repaired(site)

    def test_dies_later(self, site: Site) -> None:
        site.configure(SPLIT)
        site.apply()
        before = site.engines()
        os.kill(before["multi-model/challenger"], signal.SIGKILL)
        until(lambda: len(site.alive()) == 1, "its shim has ended too")
        plan = site.run("plan", "--detailed-exitcode")
        assert plan.code == 2
        assert re.search(r"# multi-model/challenger@\w+#0 has changed", plan.out)
        assert "signal 9 (SIGKILL)" in plan.out
        site.apply()
        after = site.engines()
        check_converged(site, SPLIT)
        assert after["multi-model/current"] == before["multi-model/current"]
        assert after["multi-model/challenger"] != before["multi-model/challenger"]

    @pytest.mark.slow
    def test_is_paused(self, site: Site) -> None:
        site.configure(ONE)
        site.apply()
        os.kill(site.engines()["solo/only"], signal.SIGSTOP)
        plan = site.run("plan", "--detailed-exitcode")
        assert plan.code == 2
        assert re.search(r"ready as \S+ -> paused", plan.out)
        (site.folder / "doubles.log").touch()  # the paused one is replaced before it ends
        site.apply()
        assert site.run("plan", "--detailed-exitcode").code == 0
        assert len(site.alive()) == 1


class TestUpdate:
    def test_old_revision_keeps_its_traffic_when_the_new_one_fails(self, site: Site) -> None:
        versions = {"1": echo("1"), "2": echo("2", "--die")}
        site.configure(SPLIT, versions=versions)
        site.apply()
        before, engines, table = site.state(), site.engines(), site.table.read_bytes()
        updated = {"multi-model": {"current": local("2", 90), "challenger": local("1", 10)}}
        site.configure(updated, versions=versions)
        assert site.run("apply", "--auto-approve").code == 4
        assert site.engines() == engines
        assert site.table.read_bytes() == table
        assert site.state().endpoints == before.endpoints
        site.configure(SPLIT, versions=versions)
        site.apply()
        assert site.engines() == engines
        check_converged(site, SPLIT)


class TestPorts:
    @pytest.mark.slow
    def test_strangers_are_avoided(self, site: Site) -> None:
        site.configure(ONE)
        site.apply()
        port = int(site.state().instances.popitem()[1].url.rpartition(":")[2])  # type: ignore[attr-defined]
        site.run("destroy", "--auto-approve").ok()
        with socket.create_server(("127.0.0.1", port)):
            site.apply()
            (instance,) = site.state().instances.values()
            assert instance.phase is Phase.READY
            assert not instance.url.endswith(f":{port}")


class TestSecrets:
    def test_missing_at_apply(self, site: Site) -> None:
        site.configure({"elsewhere": {"theirs": remote(secret="openai/key")}})
        site.run("plan").ok()
        result = site.run("apply", "--auto-approve")
        assert result.code == 4
        assert "SS501" in result.err
        assert "SERVESTATE_SECRET_OPENAI__KEY" in result.err
        site.env["SERVESTATE_SECRET_OPENAI__KEY"] = "k"
        site.apply()


class TestConfiguration:
    def test_unreadable(self, site: Site) -> None:
        site.configure(ONE)
        (site.folder / "endpoints.yaml").chmod(0)
        result = site.run("plan", prefix=unprivileged())
        assert (result.code, result.out) == (1, "")
        assert re.match(r"SS100 cannot read endpoints.yaml: .*Permission denied", result.err)

    def test_unreadable_folder(self, site: Site) -> None:
        site.configure(ONE)
        closed = site.folder / "closed"
        closed.mkdir()
        closed.chmod(0)
        result = site.run("plan", "-f", "closed", prefix=unprivileged())
        assert result.code == 1
        assert re.match(r"SS100 cannot read closed", result.err)
        assert "Traceback" not in result.err


class TestStore:
    @pytest.mark.parametrize("verb", [("plan",), ("apply", "--auto-approve"), ("status",), ("lock", "list")])
    def test_not_a_database(self, site: Site, verb: tuple[str, ...]) -> None:
        site.configure(ONE)
        site.database.parent.mkdir()
        site.database.write_bytes(b"this is no database" * 100)
        before = site.database.read_bytes()
        result = site.run(*verb)
        assert result.code == 1
        assert re.match(r"SS404 cannot \w+ the state \S+: file is not a database\n  fix: restore", result.err)
        assert site.database.read_bytes() == before

    @pytest.mark.slow
    def test_corrupt(self, site: Site) -> None:
        site.configure(ONE)
        site.apply()
        content = bytearray(site.database.read_bytes())
        for page in range(1, len(content) // 4096):
            content[page * 4096 : page * 4096 + 512] = b"\xff" * 512
        site.database.write_bytes(content)
        for verb in (("plan",), ("apply", "--auto-approve")):
            result = site.run(*verb)
            assert result.code == 1
            assert re.match(r"SS404 cannot read the state .*malformed", result.err), result.err
        assert len(site.alive()) == 1

    @pytest.mark.slow
    def test_newer_format(self, site: Site) -> None:
        site.configure(ONE)
        site.apply()
        connection = sqlite3.connect(site.database)
        connection.execute("UPDATE meta SET format_version = 99")
        connection.commit()
        connection.close()
        for verb in (("plan",), ("apply", "--auto-approve"), ("destroy", "--auto-approve"), ("status",)):
            result = site.run(*verb)
            assert result.code == 1
            assert re.match(r"SS404 .* format version 99, this servestate reads 1\n  fix: use", result.err)

    def test_a_folder_in_its_place(self, site: Site) -> None:
        site.configure(ONE)
        site.database.mkdir(parents=True)
        result = site.run("apply", "--auto-approve")
        assert result.code == 1
        assert re.match(r"SS40\d cannot \w+ the state", result.err)

    def test_of_another_program(self, site: Site) -> None:
        site.configure(ONE)
        site.database.parent.mkdir()
        connection = sqlite3.connect(site.database)
        connection.execute("CREATE TABLE lock (something TEXT)")
        connection.close()
        result = site.run("apply", "--auto-approve")
        assert result.code == 1
        assert re.match(r"SS40\d cannot \w+ the state", result.err)


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """A file system of that size at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Take all space but `leave` bytes; the file that holds it."""
    ballast = folder / "ballast"
    status = os.statvfs(folder)
    ballast.write_bytes(b"x" * max(0, status.f_bavail * status.f_bsize - leave))
    return ballast


class TestDiskFull:
    @pytest.mark.parametrize(
        "leave",
        [16384, *(pytest.param(bytes, marks=pytest.mark.slow) for bytes in (0, 4096, 32768, 40960, 65536))],
    )
    def test_from_the_first_byte_on(self, site: Site, leave: int) -> None:
        with small_disk(site.folder / ".servestate", 512):
            ballast = fill(site.folder / ".servestate", leave)
            site.configure(SPLIT)
            result = site.run("apply", "--auto-approve")
            said = result.out + result.err
            assert "Traceback" not in said
            assert result.code in (1, 4), said
            assert re.search(r"SS402 |SS410 |SS504 ", result.err), result.err
            assert re.search("No space left|full|disk I/O error", result.err)
            ballast.unlink()
            site.apply()
            check_converged(site, SPLIT)
            site.clean_up()

    def test_while_something_runs(self, site: Site) -> None:
        with small_disk(site.folder / ".servestate", 512):
            site.configure(SPLIT)
            site.apply()
            engines = site.engines()
            ballast = fill(site.folder / ".servestate", 0)
            changed = {"multi-model": {"current": local("1", 50), "challenger": local("1", 50)}}
            site.configure(changed)
            site.run("plan").ok()
            result = site.run("apply", "--auto-approve")
            assert result.code in (1, 4), result.out
            assert "Traceback" not in result.err
            assert site.engines() == engines
            ballast.unlink()
            site.apply()
            assert site.engines() == engines
            check_converged(site, changed)
            site.clean_up()
