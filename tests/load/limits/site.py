"""The site whose limits are put to the test, and the wall clock of its router."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from tests.cli.harness import PYTHON, Site, until
from tests.load import place
from tests.load.limits.callers import Party, Setup, setup
from tests.ports import free_port

_INTERPRETER = Path(__file__).parent / "interpreter"
_LIBRARY = "*/faketime/libfaketimeMT.so.1"
_BACK_S = 60.0


def libfaketime() -> Path | None:
    """The library of the Debian package `faketime`, where it is installed."""
    return next(iter(sorted(Path("/usr/lib").glob(_LIBRARY))), None)


def token(party: Party) -> str:
    """What the party's clients send."""
    return f"token-of-{party.name}"


@dataclass
class Place(place.Place):
    """A site with the limits of `setup`; `wall` is its router's clock, None where none can be had."""

    setup: Setup = field(default_factory=setup)
    wall: Wall | None = None

    def _bundle(self) -> dict[str, Any]:
        argv = [*PYTHON, str(place.HERE / "upstream.py"), "{port}", str(self.records)]
        version = {"engine": "command", "argv": argv, "health_path": "/health"}
        served = [{"name": "a", "entity_name": "load.model", "entity_version": "1"}]
        endpoints = {
            name: {"name": name, "ai_gateway": {"rate_limits": limits}, "config": {"served_entities": served}}
            for name, limits in self.setup.limits.items()
        }
        known = [
            {p.kind: p.name, "rights": ["query"], "sha256": sha256(token(p).encode()).hexdigest()}
            for p in self.setup.parties
        ]
        site = {
            "router": {
                "listen": f"127.0.0.1:{self.port}",
                "workers": self.workers,
                "access_log": {"path": "logs/access.log", "max_bytes": "64MiB", "keep": 1000},
            },
            "management": {"listen": "127.0.0.1:0"},
            "models": {"load.model": {"task": "llm/v1/chat", "versions": {"1": version}}},
            "access": {"tokens": known},
        }
        return {"servestate": site, "resources": {"model_serving_endpoints": endpoints}}

    def ready(self) -> None:
        """Return once all workers are."""
        until(lambda: all(w["state"] == "ready" for w in self._workers()), "all workers are ready", _BACK_S)

    def _workers(self) -> list[dict[str, Any]]:
        return list(self.status().get("workers", [{"state": "ready" if self.workers == 1 else ""}]))

    def kill_worker(self) -> None:
        """Kill one; where there is one only, which is the router, start it again."""
        if self.workers > 1:
            os.kill(self.processes()["workers"][0], signal.SIGKILL)
            return
        assert self._router is not None
        self._router.kill()
        self._router.wait()
        self.serve()

    def logged_at(self) -> list[float]:
        """The wall clock's time of every line of the access log."""
        lines = (line for path in self.logs.iterdir() for line in path.read_bytes().splitlines())
        return [datetime.fromisoformat(orjson.loads(line)["time"]).timestamp() for line in lines]


@dataclass(frozen=True, slots=True)
class Wall:
    """The wall clock of processes that are started with `env`. The monotonic one is left alone."""

    path: Path
    library: Path

    def step(self, seconds: int) -> None:
        """Have it so much ahead of the real one."""
        draft = self.path.with_suffix(".draft")
        draft.write_text(f"{seconds:+d}")
        draft.replace(self.path)  # a reader must not find half of it

    @property
    def env(self) -> dict[str, str]:
        """For processes whose clock it is."""
        return {
            "LD_PRELOAD": str(self.library),
            "FAKETIME_TIMESTAMP_FILE": str(self.path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }


@contextmanager
def served(folder: Path, workers: int, given: Setup, control: str = "") -> Iterator[Place]:
    """The site, applied and served; nothing of it is left afterwards. `control` has the limits fail, see
    `interpreter/sitecustomize.py`."""
    site = Site(folder)
    for name in ("", "records", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    library = libfaketime()
    wall = Wall(folder / "wall", library) if library is not None else None
    found = Place(site, free_port(), workers, setup=given, wall=wall)
    try:
        found.apply()
        site.env["PYTHONPATH"] = os.pathsep.join([str(_INTERPRETER), os.environ.get("PYTHONPATH", "")])
        site.env["SERVESTATE_TEST_LIMITS"] = control
        if wall is not None:
            wall.step(0)
            site.env |= wall.env
        found.serve()
        yield found
    finally:
        site.clean_up()
        for process in site.started:  # killed, it leaves behind what libfaketime has made for it
            for path in Path("/dev/shm").glob(f"*faketime_*_{process.pid}"):
                path.unlink()
