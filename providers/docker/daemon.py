"""One Docker host by its name: which of its containers are ours, and what of it a launch needs to know."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from servestate.planner.spec.site import DockerHost
from servestate.providers.docker import facts, marks
from servestate.providers.docker.api import Api, Json
from servestate.providers.docker.facts import Found
from servestate.providers.protocol import Marks

_USUAL_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")
_UNIX = "unix://"


class Daemon:
    """A host of the site's. Making one touches nothing."""

    def __init__(self, name: str, settings: DockerHost, base_dir: Path) -> None:
        self.name = name
        self.settings = settings
        self.api = Api(name, settings, base_dir)
        self._known: Json = {}

    @property
    def local(self) -> bool:
        """Whether it is this machine's, as far as its URL tells."""
        return self.settings.url.startswith(_UNIX)

    @property
    def sockets(self) -> tuple[str, ...]:
        """Where its socket is for those on the host."""
        if not self.local:
            return _USUAL_SOCKETS
        own = self.settings.url.removeprefix(_UNIX)
        return (*_USUAL_SOCKETS, own, os.path.realpath(own))

    async def memory(self) -> int:
        """All of its memory, bytes."""
        return int((await self._info())["MemTotal"])

    async def engine(self) -> str:
        """What tells its Docker Engine from all others, by whatever URL it is reached; "" where it does not
        say. The ID alone does not: up to 20.10 it comes from a key file of the machine, which engines beside
        each other and machines made from one image share."""
        info = await self._info()
        facts = [str(info.get(name) or "") for name in ("ID", "Name", "DockerRootDir")]
        return " ".join(facts) if facts[0] else ""

    async def _info(self) -> Json:
        """`docker info` as of the first time it was asked: for what stays."""
        self._known = self._known or await self.api.info()
        return self._known

    async def look(self, container: str) -> Found | None:
        """The container with this id now; None where there is none of ours."""
        raw = await self.api.inspect(container)
        return None if raw is None else self._read(raw)

    async def of_lineage(self, lineage: str) -> list[Found]:
        """All that wears readable marks of a lineage."""
        return await self._wearing({marks.LINEAGE: lineage})

    async def of_address(self, worn: Marks) -> list[Found]:
        """All that wears the marks of that lineage and address, the oldest first."""
        found = await self._wearing({marks.LINEAGE: worn.lineage, marks.ADDRESS: str(worn.address)})
        return sorted(found, key=lambda one: one.started)

    async def of_launch(self, nonce: str) -> Found | None:
        """What one launch created."""
        return next(iter(await self._wearing({marks.NONCE: nonce})), None)

    async def _wearing(self, labels: Mapping[str, str]) -> list[Found]:
        listed = await self.api.containers(labels)
        looks = [self._read(raw) for raw in await self.api.inspect_all([one["Id"] for one in listed])]
        return [found for found in looks if found is not None]

    def _read(self, raw: Json) -> Found | None:
        return facts.read(self.name, self.settings.address, raw)
