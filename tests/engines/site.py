"""A site in a folder of its own, run by the real command line, and the environments of real engines."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import yaml

from servestate.providers import census
from servestate.providers.census import Tree
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CLI = str(Path(sys.executable).with_name("servestate"))
READY_TIMEOUT_S = 400
"""Two cores import PyTorch for several engines at once."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment that has an engine, beside servestate's own."""

    name: str
    python: Path

    @classmethod
    def of(cls, name: str) -> Environment:
        """The one that `make test-NAME` installs."""
        python = ROOT / f".venv-{name}" / "bin" / "python"
        assert python.exists(), f"{python} is not there: run make test-{name}"
        return cls(name, python)

    def make(self, script: str, *arguments: str) -> None:
        """Run a script beside this file with it. Fails the test if it fails."""
        argv = [str(self.python), str(Path(__file__).with_name(script)), *arguments]
        made = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr


@dataclass(frozen=True, slots=True)
class Line:
    """A line of output and when it came, in seconds of `time.monotonic`."""

    text: str
    at: float


@dataclass(slots=True)
class Site:
    """`write` and `run` as a person would; `serve` starts the router, `clean_up` ends everything."""

    folder: Path
    port: int = field(default_factory=lambda: free_port())
    management: int = field(default_factory=lambda: free_port())
    router: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the router listens."""
        return f"http://127.0.0.1:{self.port}"

    def write(self, models: Mapping[str, Any], endpoints: Mapping[str, Any]) -> None:
        """The configuration: models of the site block, endpoints in the bundle's shape."""
        site = {
            "router": {"listen": f"127.0.0.1:{self.port}"},
            "management": {"listen": f"127.0.0.1:{self.management}"},
            "models": dict(models),
        }
        bundle = {"servestate": site, "resources": {"model_serving_endpoints": dict(endpoints)}}
        (self.folder / "endpoints.yaml").write_text(yaml.safe_dump(bundle))

    def run(self, *arguments: str) -> str:
        """Run a verb; its output. Fails the test if it fails."""
        done = self.attempt(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a verb, whatever comes of it."""
        argv = [CLI, *arguments]
        return subprocess.run(argv, cwd=self.folder, capture_output=True, text=True, check=False)

    def watch(self, *arguments: str) -> list[Line]:
        """Run a verb; its lines with the time of each. Fails the test if it fails."""
        argv = [CLI, *arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            argv,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as verb:
            assert verb.stdout is not None
            lines = [Line(text.rstrip("\n"), time.monotonic()) for text in verb.stdout]
        assert verb.returncode == 0, "\n".join(line.text for line in lines)
        return lines

    def serve(self) -> None:
        """Start the router, and wait until it listens."""
        self.router = subprocess.Popen([CLI, "serve"], cwd=self.folder)
        until(lambda: listens(self.port), f"the router listens on {self.port}", within_s=30)

    def client(self) -> openai.OpenAI:
        """OpenAI's client on the router, without retries that would hide a failure."""
        return openai.OpenAI(api_key="any", base_url=f"{self.url}/v1", max_retries=0, timeout=120)

    @property
    def lineage(self) -> str:
        """The lineage of the state."""
        return self.run("status").split("lineage ")[1].split()[0]

    def trees(self, entity: str | None = None) -> list[Tree]:
        """The processes that wear the marks of this site, of one entity or of all."""
        lineage = self.lineage
        ours = [tree for tree in census.trees() if tree.worn.marks.lineage == lineage]
        return [t for t in ours if entity is None or t.worn.marks.address.entity == entity]

    def engine_url(self, entity: str) -> str:
        """Where the only instance of an entity listens."""
        (tree,) = self.trees(entity)
        return f"http://127.0.0.1:{tree.worn.port}"

    def log(self, entity: str) -> str:
        """The whole log of the newest instance of an entity that has one."""
        logs = sorted((self.folder / ".servestate" / "run").glob(f"*_{entity}_*/log"), key=_written)
        return logs[-1].read_text()

    def clean_up(self) -> None:
        """Destroy what is applied and end the router."""
        try:
            if (self.folder / ".servestate").exists():
                self.run("destroy", "--auto-approve")
        finally:
            if self.router is not None:
                self.router.terminate()
                self.router.wait(30)


def endpoint(name: str, entities: Sequence[Mapping[str, Any]], traffic: Mapping[str, int]) -> dict[str, Any]:
    """One endpoint in the bundle's shape."""
    routes = [{"served_model_name": to, "traffic_percentage": share} for to, share in traffic.items()]
    return {
        "name": name,
        "config": {"served_entities": list(entities), "traffic_config": {"routes": routes}},
    }


def entity(name: str, model: str, version: str = "1") -> dict[str, Any]:
    """A served entity of that model version."""
    return {"name": name, "entity_name": model, "entity_version": version}


def listens(port: int) -> bool:
    """Whether somebody answers on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(holds: Callable[[], object], what: str, within_s: float) -> None:
    """Wait for the thing itself."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)


def _written(path: Path) -> float:
    return path.stat().st_mtime
