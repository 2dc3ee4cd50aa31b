"""The site under load: real processes of the real command line, and what is seen of them from outside."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import yaml

from servestate.providers import identity
from servestate.runtime.supervision import read_supervision, supervision_path
from servestate.runtime.workspace import Workspace, open_workspace
from tests.cli.harness import CLI, PYTHON, Site, clean_environment, hears_interrupts, until
from tests.load.book import Book, Line
from tests.ports import free_port

HERE = Path(__file__).parent
ENTITIES = ("a", "b", "c", "d")
TOKEN, SPARE = "token-of-everybody", "token-that-comes-and-goes"

_REQUESTS = re.compile(rb"^servestate_requests_total\{.*\} (\d+)$", re.MULTILINE)
_DROPPED = re.compile(rb'^servestate_log_dropped_total\{log="access_log"\} (\d+)$', re.MULTILINE)
_REPLACED_S = 60.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """What the metrics said at `at`: how many requests there were, and how many lines had no room in the
    access log."""

    at: float
    requests: int
    dropped: int


@dataclass(slots=True)
class Wanted:
    """What the bundle says at the moment."""

    weights: tuple[int, ...] = (25, 25, 25, 25)
    stall_s: int = 20
    tokens: tuple[str, ...] = (TOKEN, SPARE)


@dataclass
class Place:
    """A site that is applied and served."""

    site: Site
    port: int
    workers: int
    wanted: Wanted = field(default_factory=Wanted)
    scrapes: list[Scrape] = field(default_factory=list)
    _router: subprocess.Popen[str] | None = None

    @property
    def records(self) -> Path:
        """Where upstreams write down what they execute."""
        return self.site.folder / "records"

    @property
    def logs(self) -> Path:
        """The folder of the access log."""
        return self.site.folder / "logs"

    @property
    def workspace(self) -> Workspace:
        """The site's own files."""
        from servestate.planner.spec.site import Site as SiteBlock

        return open_workspace(self.site.folder, SiteBlock())

    # The configuration.

    def write(self) -> None:
        """The bundle as it is wanted."""
        draft = self.site.folder / ".draft"
        draft.write_text(yaml.safe_dump(self._bundle(), sort_keys=False))
        draft.replace(self.site.folder / "endpoints.yaml")

    def _bundle(self) -> dict[str, Any]:
        wanted = self.wanted
        argv = [*PYTHON, str(HERE / "upstream.py"), "{port}", str(self.records)]
        version = {"engine": "command", "argv": argv, "health_path": "/health"}
        served = [{"name": n, "entity_name": "load.model", "entity_version": "1"} for n in ENTITIES]
        weights = zip(ENTITIES, wanted.weights, strict=True)
        routes = [{"served_model_name": name, "traffic_percentage": weight} for name, weight in weights]
        endpoint = {
            "name": "ledger",
            "ai_gateway": {"fallback_config": {"enabled": True}},
            "config": {"served_entities": served, "traffic_config": {"routes": routes}},
        }
        site = {
            "router": {
                "listen": f"127.0.0.1:{self.port}",
                "workers": self.workers,
                "access_log": {"path": "logs/access.log", "max_bytes": "64MiB", "keep": 1000},
                "health": {"interval_s": 1, "timeout_s": 1},
            },
            "management": {"listen": "127.0.0.1:0"},
            "models": {"load.model": {"task": "llm/v1/chat", "versions": {"1": version}}},
            "overrides": {"ledger": {"stop_grace_s": 1}},
            "access": {"tokens": [_token(token) for token in wanted.tokens]},
            "traffic": {"ledger": {"stall_s": wanted.stall_s, "deadline_s": 30}},
        }
        return {"servestate": site, "resources": {"model_serving_endpoints": {"ledger": endpoint}}}

    def apply(self) -> None:
        """Apply what is wanted."""
        self.write()
        self.site.apply()

    # The router.

    def serve(self, *flags: str) -> None:
        """Start the router, with `--replace` in the place of the one that runs; returns once it alone
        answers."""
        before = self._router
        log = (self.site.folder / "serve.log").open("a")
        with log:
            self._router = subprocess.Popen(
                (*CLI, "serve", *flags),
                cwd=self.site.folder,
                env={**clean_environment(), **self.site.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                preexec_fn=hears_interrupts,
            )
        self.site.started.append(self._router)
        router = self._router
        until(lambda: self._answers(router), "the router answers", _REPLACED_S)
        if before is not None:
            before.wait(_REPLACED_S)

    def _answers(self, router: subprocess.Popen[str]) -> bool:
        assert router.poll() is None, (self.site.folder / "serve.log").read_text()
        found = self.status()
        ready = all(worker["state"] == "ready" for worker in found.get("workers", ()))
        return found.get("pid") == router.pid and ready and "replacing" not in found

    def stop(self) -> None:
        """End the router in order, with all that it has written."""
        assert self._router is not None
        self._router.send_signal(signal.SIGTERM)
        assert self._router.wait(_REPLACED_S) == 0

    def status(self) -> dict[str, Any]:
        """What the router says, nothing where it says nothing."""
        with suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(_told(self.workspace.control_path, "/status"))
            return found
        return {}

    def scrape(self) -> None:
        """Read the metrics, unless the router has none to tell at the moment."""
        with suppress(OSError, ValueError):
            told = _told(self.workspace.control_path, "/metrics")
            requests = sum(map(int, _REQUESTS.findall(told)))
            dropped = sum(map(int, _DROPPED.findall(told)))
            self.scrapes.append(Scrape(time.monotonic(), requests, dropped))

    def processes(self) -> dict[str, list[int]]:
        """The pids of the router's processes: `router` is the parent, or all there is."""
        assert self._router is not None
        found = [worker["pid"] for worker in self.status().get("workers", ())]
        return {"router": [self._router.pid], "workers": [p for p in found if p != self._router.pid]}

    # The rest.

    def controller(self) -> int | None:
        """The pid of the controller that lives."""
        found = read_supervision(supervision_path(self.workspace))
        process = identity.parse(found.process) if found is not None and found.alive else None
        return process.pid if process is not None else None

    def upstreams(self) -> list[int]:
        """The pids of the upstreams that live."""
        pids = (int(path.name.partition(".")[2]) for path in self.records.iterdir())
        return [pid for pid in pids if _runs(pid, "upstream.py")]

    def executed(self) -> Iterator[int]:
        """The numbers of the requests that upstreams have executed, as often as they have."""
        for path in self.records.iterdir():
            with path.open() as lines:
                yield from map(int, lines)


def _told(path: Path, what: str) -> bytes:
    """What is answered on the control socket. Raises OSError, and ValueError for what is no answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(os.fspath(path))
        sock.sendall(f"GET {what} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ValueError(body.decode())
    return body


def _token(token: str) -> dict[str, Any]:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return {"user_name": token.rpartition("-")[2], "rights": ["query"], "sha256": digest}


def _runs(pid: int, program: str) -> bool:
    try:
        return program in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended
        return False


@dataclass
class Tail:
    """What is new in the access log since one last looked."""

    folder: Path
    _read: dict[int, int] = field(default_factory=dict)

    def into(self, book: Book) -> None:
        """Enter the new lines. A file is known by its inode, whatever its name has become."""
        for path in self.folder.iterdir():
            if path.is_symlink():
                continue
            with suppress(FileNotFoundError), path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                file.seek(self._read.get(inode, 0))
                new = file.read()
                whole = new.rfind(b"\n") + 1
                self._read[inode] = self._read.get(inode, 0) + whole
                for line in new[:whole].splitlines():
                    entry = orjson.loads(line)
                    told = Line(entry["status"], entry.get("gone", False), bool(entry.get("cut")))
                    book.logged(entry["request_id"].encode(), told)


@dataclass(frozen=True, slots=True)
class Clock:
    """The wall clock of the site's processes."""

    shared: mmap.mmap

    def step(self, seconds: float) -> None:
        """Have it so much ahead of the real one."""
        struct.pack_into("d", self.shared, 0, seconds)


@contextmanager
def clock(site: Site) -> Iterator[Clock]:
    """A clock that can be stepped, for what is started on the site from now on."""
    path = site.folder / "clock"
    path.write_bytes(struct.pack("d", 0.0))
    site.env["SERVESTATE_TEST_CLOCK"] = str(path)
    site.env["PYTHONPATH"] = os.pathsep.join(
        [str(HERE / "clock"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
        yield Clock(shared)


@contextmanager
def served(folder: Path, workers: int = 2) -> Iterator[tuple[Place, Clock]]:
    """The site, applied and served; nothing of it is left afterwards."""
    site = Site(folder)
    for name in ("", "records", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    place = Place(site, free_port(), workers)
    try:
        with clock(site) as steps:
            place.apply()
            place.serve()
            until(lambda: place.controller() is not None, "the controller has looked")
            yield place, steps
    finally:
        site.clean_up()
