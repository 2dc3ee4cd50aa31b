"""A site of its own for every test: run directory, port registry, lineage. Nothing outlives the test."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import LaunchSpec
from servestate.providers import census
from servestate.providers.census import Tree
from servestate.providers.engine_keys import EngineKeys
from servestate.providers.ports import Ports
from servestate.providers.process import ProcessProvider
from servestate.providers.protocol import Failed, Launched, Marks, Readiness, Ready
from servestate.providers.secrets import EnvSecrets

T = TypeVar("T")
ENGINE = Path(__file__).with_name("tiny_engine.py")
ADDRESS = InstanceAddress("multi-model", "current", "3f9a1c27")


def tiny(*flags: str, env: tuple[tuple[str, str], ...] = ()) -> LaunchSpec:
    """The test engine with these flags."""
    argv = (sys.executable, "-I", "-S", str(ENGINE), "--port", "{port}", *flags)
    return LaunchSpec("process", "command", "tiny", args=argv, env=env)


@dataclass
class Site:
    """One run directory and lineage, with as many provider objects on it as a test likes."""

    folder: Path
    lineage: str = field(default_factory=lambda: str(uuid.uuid4()))
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.folder / "run"

    @property
    def ports(self) -> Ports:
        return Ports(registry=self.folder / "ports" / "registry")

    def provider(self, ports: Ports | None = None) -> ProcessProvider:
        """A provider as a new command would make it."""
        return ProcessProvider(
            self.root,
            self.folder,
            EngineKeys(self.folder / "engine.key", EnvSecrets(self.secrets)),
            ports or self.ports,
        )

    def marks(self, address: InstanceAddress = ADDRESS) -> Marks:
        return Marks(self.lineage, address, generation=7, op=uuid.uuid4().hex)

    def trees(self) -> list[Tree]:
        """What runs and wears the marks of this site."""
        return [tree for tree in census.trees() if tree.worn.marks.lineage == self.lineage]

    def pids(self) -> set[int]:
        heads = {tree.head.pid for tree in self.trees()}
        return heads | {member.pid for tree in self.trees() for member in tree.members}

    def kill_everything(self) -> None:
        for _ in range(200):
            pids = self.pids()
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)
        raise AssertionError(f"still running: {self.pids()}")


async def settled(
    provider: ProcessProvider, handle: str, spec: LaunchSpec, within_s: float = 10
) -> Readiness:
    """The first probe that is Ready or Failed."""
    async with asyncio.timeout(within_s):
        while True:
            seen = await provider.probe(handle, spec)
            if isinstance(seen, Ready | Failed):
                return seen
            await asyncio.sleep(0.01)


async def launched_ready(site: Site, *flags: str) -> tuple[ProcessProvider, Launched, LaunchSpec]:
    """A ready instance of the test engine."""
    provider, spec = site.provider(), tiny(*flags)
    launched = await provider.launch(spec, site.marks())
    assert await settled(provider, launched.handle, spec) == Ready()
    return provider, launched, spec


async def until(holds: Callable[[], bool], within_s: float = 5) -> None:
    """Wait for the thing itself."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Kit:
    """What the tests of this folder share."""

    tiny: Callable[..., LaunchSpec] = tiny
    settled: Callable[..., Coroutine[Any, Any, Readiness]] = settled
    ready: Callable[..., Coroutine[Any, Any, tuple[ProcessProvider, Launched, LaunchSpec]]] = launched_ready
    until: Callable[..., Coroutine[Any, Any, None]] = until
    address: InstanceAddress = ADDRESS


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        yield made
    finally:
        made.kill_everything()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Pseudo-random numbers that are the same in every run of the same test."""
    return random.Random(request.node.nodeid)
