"""A site with containers on the machine's Docker Engine: what the tests of the provider stand on."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import docker
from docker.errors import NotFound

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import Container, LaunchSpec, Placement
from servestate.planner.spec.site import DockerProvider as Settings
from servestate.providers.docker import DockerProvider, marks
from servestate.providers.engine_keys import EngineKeys
from servestate.providers.protocol import Failed, Marks, Readiness, Ready
from servestate.providers.secrets import EnvSecrets
from tests.docker.engine import DEFAULT_HOST, connect

ADDRESS = InstanceAddress("multi-model", "current", "3f9a1c27")


@dataclass
class DockerSite:
    """One lineage and cache volume, with as many provider objects as a test likes."""

    folder: Path
    client: docker.DockerClient
    lineage: str = field(default_factory=lambda: str(uuid.uuid4()))
    secrets: dict[str, str] = field(default_factory=dict)
    url: str = DEFAULT_HOST

    @property
    def cache(self) -> str:
        return f"servestate-test-{self.lineage[:8]}"

    def provider(self, **settings: object) -> DockerProvider:
        """A provider as a new command would make it."""
        given = Settings.model_validate({"url": self.url, "cache": self.cache, **settings})
        keys = EngineKeys(self.folder / "engine.key", EnvSecrets(self.secrets))
        return DockerProvider(given, self.folder, keys)

    def recalling(self, spec: LaunchSpec) -> DockerProvider:
        """The provider of another command, which finds this spec in the state."""
        made = self.provider()
        made.consult(lambda: {ADDRESS: spec})
        return made

    def marks(self, address: InstanceAddress = ADDRESS, placement: Placement | None = None) -> Marks:
        where = placement or Placement()
        return Marks(self.lineage, address, generation=7, op=uuid.uuid4().hex, placement=where)

    def spec(
        self, image: str, *args: str, env: dict[str, str] | None = None, **container: object
    ) -> LaunchSpec:
        """The image under the engine `command`, by the id that it has now."""
        digest = str(self.client.images.get(image).id)
        made = Container(image, digest, **container)  # type: ignore[arg-type]
        return LaunchSpec(
            "docker", "command", "m", args=args, env=tuple(sorted((env or {}).items())), container=made
        )

    def all(self) -> list[docker.models.containers.Container]:
        """Every container of the lineage, dead ones too."""
        return self.client.containers.list(all=True, filters={"label": f"{marks.LINEAGE}={self.lineage}"})

    def only(self) -> docker.models.containers.Container:
        (one,) = self.all()
        return one

    def clear(self) -> None:
        for one in self.all():
            with suppress(NotFound):
                one.remove(force=True, v=True)
        with suppress(NotFound):
            self.client.volumes.get(self.cache).remove()


async def settled(provider: DockerProvider, handle: str, spec: LaunchSpec, within_s: float = 20) -> Readiness:
    """The first probe that is Ready or Failed."""
    async with asyncio.timeout(within_s):
        while True:
            seen = await provider.probe(handle, spec)
            if isinstance(seen, Ready | Failed):
                return seen
            await asyncio.sleep(0.02)


@contextmanager
def opened(folder: Path) -> Iterator[DockerSite]:
    """A site of its own, whose containers and volume do not outlive it."""
    client = connect()
    made = DockerSite(folder, client)
    try:
        yield made
    finally:
        made.clear()
        client.close()
