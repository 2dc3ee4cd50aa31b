"""A real Docker Engine for the tests: the machine's, and engines of their own that may be killed.

sudo .ci/dockerd        # starts the machine's, where none runs
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeGuard

import docker
import pytest
from docker.errors import APIError, NotFound
from docker.models.containers import Container

SWITCH: Final = "SERVESTATE_DOCKER_TESTS"
DEFAULT_HOST: Final = "unix:///var/run/docker.sock"
LABEL: Final = "servestate.test"
"""Worn by what a test made by itself, with a value of its own, so that tests side by side never meet."""


def connect() -> docker.DockerClient:
    """The machine's engine, by DOCKER_HOST or at the default socket. To be closed.

    A missing engine fails the test, as it would hide what is broken; only SERVESTATE_DOCKER_TESTS=off skips.
    """
    if os.environ.get(SWITCH) == "off":
        pytest.skip(f"{SWITCH}=off")
    path = machine_socket()
    assert pings(path), (
        f"no Docker Engine answers at {path}\n"
        f"  start one: apt-get install docker.io && dockerd &   (as root)\n"
        f"  or leave these tests out: {SWITCH}=off"
    )
    return docker.DockerClient(base_url=f"unix://{path}", version="auto", timeout=120)


def machine_socket() -> Path:
    """Where the machine's engine listens: a local one, because tests mount files into containers."""
    host = os.environ.get("DOCKER_HOST", DEFAULT_HOST)
    assert host.startswith("unix://"), f"DOCKER_HOST is {host}; these tests need unix://PATH"
    return Path(host.removeprefix("unix://"))


def pings(path: Path) -> bool:
    """Whether an engine at that socket answers within a second.

    Not by the SDK: it leaves a socket open, which is a warning, whenever it cannot connect.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(path))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return connection.recv(64).split()[1:2] == [b"200"]
        except OSError:
            return False


def until(holds: Callable[[], object], what: str, within_s: float = 20) -> None:
    """Wait for the thing itself."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)


@dataclass
class Scratch:
    """Containers, volumes and networks of one test. All wear its mark, and `clear` removes them."""

    client: docker.DockerClient
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def labels(self) -> dict[str, str]:
        return {LABEL: self.mark}

    def create(self, image: str, *command: str, **options: Any) -> Container:
        """A container that is not started; options as the SDK names them."""
        wanted = {**options, "labels": {**self.labels, **options.get("labels", {})}}
        return self.client.containers.create(image, list(command) or None, **wanted)

    def run(self, image: str, *command: str, **options: Any) -> Container:
        """A container in the background."""
        container = self.create(image, *command, **options)
        container.start()
        container.reload()
        return container

    def volume(self, **options: Any) -> str:
        """The name of a new, empty named volume."""
        name = f"servestate-test-{secrets.token_hex(6)}"
        self.client.volumes.create(name, labels=self.labels, **options)
        return name

    def clear(self) -> None:
        """Remove all that wears the mark. What is gone already is fine."""
        worn = {"label": f"{LABEL}={self.mark}"}
        found = self.client.api.containers(all=True, filters=worn)
        with ThreadPoolExecutor(8) as pool:  # one removal takes 0.1 s, most of it waiting
            list(pool.map(self._remove, [container["Id"] for container in found]))
        for volume in self.client.volumes.list(filters=worn):
            volume.remove(force=True)
        for network in self.client.networks.list(filters=worn):
            network.remove()

    def _remove(self, container: str) -> None:
        with suppress(NotFound):
            self.client.api.remove_container(container, force=True, v=True)


def published(container: Container, port: int) -> int:
    """The port on 127.0.0.1 that leads to `port` of a running container."""
    container.reload()
    bindings = container.attrs["NetworkSettings"]["Ports"][f"{port}/tcp"]
    assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"]
    return int(bindings[0]["HostPort"])


@dataclass
class OwnEngine:
    """A containerd and a dockerd of one test: own data, sockets and bridge; the machine's stay untouched.

    The bridge is made here, because two engines cannot share docker0. Packet filter rules are switched off,
    because the second engine to start would flush the chains of the first. Ports published on 127.0.0.1 work
    all the same: docker-proxy carries them, as long as dockerd lives (it does so too on engines with default
    options; the containers' own addresses stay reachable). Containers of the bridge reach the host only.
    """

    folder: Path
    live_restore: bool = False
    options: tuple[str, ...] = ()
    """More flags of dockerd."""
    name: str = field(default_factory=lambda: f"ss{secrets.token_hex(4)}")
    """Of the bridge and of the control group."""
    containerd: subprocess.Popen[bytes] | None = None
    dockerd: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "docker.sock"

    @property
    def host(self) -> str:
        """As DOCKER_HOST has it."""
        return f"unix://{self.socket}"

    @property
    def log(self) -> str:
        """What both programs printed so far."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def client(self, timeout_s: int = 60) -> docker.DockerClient:
        """To be closed by the caller. Fails unless the engine answers."""
        return docker.DockerClient(base_url=self.host, version="auto", timeout=timeout_s)

    def __enter__(self) -> OwnEngine:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._bridge()
            self.start()
        except BaseException:
            self.tear_down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.tear_down()

    def start(self, within_s: float = 30) -> float:
        """Start what does not run and wait until the API answers; the seconds it took."""
        began = time.monotonic()
        if not _runs(self.containerd):
            self.containerd = self._spawn("containerd", *self._containerd_flags())
        if not _runs(self.dockerd):
            self.dockerd = self._spawn("dockerd", *self._dockerd_flags())
        until(self._answers_or_ended, f"dockerd answers\n{self.log}", within_s)
        assert _runs(self.dockerd), self.log
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL to dockerd. containerd and the containers stay."""
        self._dockerd().kill()
        self._dockerd().wait(10)

    def stop(self, within_s: float = 30) -> None:
        """SIGTERM to dockerd, and wait for its end. Without live-restore the containers end too."""
        self._dockerd().terminate()
        self._dockerd().wait(within_s)

    def pause(self) -> None:
        """SIGSTOP to dockerd: the socket accepts, and nobody answers."""
        self._dockerd().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._dockerd().send_signal(signal.SIGCONT)

    def answers(self) -> bool:
        """Whether the API answers a ping within a second."""
        return pings(self.socket)

    def tear_down(self) -> None:
        """End the containers, the daemons, their shims and mounts. Also after a kill or a pause."""
        if _runs(self.dockerd):
            self.resume()
            if self.answers():
                self._remove_containers()
            with suppress(subprocess.TimeoutExpired):
                self.stop(10)
        for daemon in (self.dockerd, self.containerd):
            if _runs(daemon):
                daemon.kill()
                daemon.wait(10)
        for pid in self._shims():
            _kill_tree(pid)
        for address in self.folder.glob("state/io.containerd.runtime.v2.task/*/*/address"):
            Path(address.read_text().removeprefix("unix://")).unlink(missing_ok=True)
        for point in reversed(mounts(self.folder)):
            subprocess.run(["umount", "--lazy", point], check=True)
        subprocess.run(["ip", "link", "delete", self.name], check=False, capture_output=True)
        for group in sorted(Path("/sys/fs/cgroup").glob(f"**/{self.name}/**/"), reverse=True):
            with suppress(FileNotFoundError):
                group.rmdir()

    def leftovers(self) -> list[str]:
        """What `tear_down` should have ended: processes, mounts, the bridge."""
        left = [f"pid {pid}" for pid in self._shims()] + mounts(self.folder)
        return left + [self.name] * Path(f"/sys/class/net/{self.name}").exists()

    def _dockerd(self) -> subprocess.Popen[bytes]:
        assert self.dockerd is not None, "not started"
        return self.dockerd

    def _bridge(self) -> None:
        for command in (
            ("link", "add", "name", self.name, "type", "bridge"),
            ("addr", "add", str(free_network()), "dev", self.name),
            ("link", "set", self.name, "up"),
        ):
            subprocess.run(["ip", *command], check=True, capture_output=True)

    def _containerd_flags(self) -> tuple[str, ...]:
        config = self.folder / "containerd.toml"
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        folders = ("--root", str(self.folder / "root"), "--state", str(self.folder / "state"))
        return ("--config", str(config), "--address", self._containerd_socket, *folders)

    @property
    def _containerd_socket(self) -> str:
        return str(self.folder / "containerd.sock")

    def _dockerd_flags(self) -> tuple[str, ...]:
        config = self.folder / "daemon.json"
        config.write_text("{}")  # or the machine's own would be read
        self.folder.joinpath("docker.pid").unlink(
            missing_ok=True
        )  # of one killed; its PID may be another's now
        return (
            *("--config-file", str(config), "--host", self.host, "--containerd", self._containerd_socket),
            *("--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec")),
            *("--pidfile", str(self.folder / "docker.pid"), "--bridge", self.name),
            *("--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false"),
            *("--cgroup-parent", f"/{self.name}", "--shutdown-timeout", "3"),
            *(("--live-restore",) if self.live_restore else ()),
            *self.options,
        )

    def _spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{argv[0]}.log").open("ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)

    def _answers_or_ended(self) -> bool:
        return not _runs(self.dockerd) or self.answers()

    def _remove_containers(self) -> None:
        client = self.client()
        try:
            for container in client.containers.list(all=True, ignore_removed=True):
                with suppress(APIError):  # the shims of what stays are killed
                    container.remove(force=True)
        finally:
            client.close()

    def _shims(self) -> list[int]:
        return [
            pid for pid, argv in processes() if argv and "shim" in argv[0] and self._containerd_socket in argv
        ]


def _runs(daemon: subprocess.Popen[bytes] | None) -> TypeGuard[subprocess.Popen[bytes]]:
    return daemon is not None and daemon.poll() is None


def processes() -> Iterator[tuple[int, list[str]]]:
    """Every process that has arguments."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield int(path.parent.name), path.read_text(errors="replace").split("\0")[:-1]


def _kill_tree(pid: int) -> None:
    tree = [pid, *_descendants(pid)]
    for member in tree:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    until(lambda: all(map(_ended, tree)), f"end of shim {pid} and its containers")


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _descendants(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *_descendants(child)]
    return found


def mounts(folder: Path) -> list[str]:
    """Mount points below a folder, in the order they were made."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return [point for point in points if Path(point).is_relative_to(folder.resolve())]


def free_network() -> ipaddress.IPv4Interface:
    """The first address of a private /24 that this machine has no route to."""
    lines = Path("/proc/net/fib_trie").read_text()
    for number in secrets.SystemRandom().sample(range(1, 255), 50):
        if f"10.213.{number}." not in lines:
            return ipaddress.IPv4Interface(f"10.213.{number}.1/24")
    raise AssertionError("no free network below 10.213.0.0/16")
