"""Images: what a name means on a host and in its registry, and bringing one there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from servestate.planner.launch import Container
from servestate.planner.surroundings import ImageFacts
from servestate.providers.docker import create, facts
from servestate.providers.docker.api import Json, Refused
from servestate.providers.docker.daemon import Daemon
from servestate.providers.protocol import PermanentError, TransientError

_GIB = float(2**30)
_DENIED = ("unauthorized", "denied", "no basic auth credentials", "authentication required")
_UNKNOWN = ("not found", "manifest unknown", "name unknown", "no such image", "no such manifest")


async def resolve(daemon: Daemon, container: Container) -> create.Image:
    """The image on the host by its digest, or by its id where none was planned: the name alone may mean
    another image by the time of the create call. Raises PermanentError SS530 where it is not there."""
    for reference in _references(container):
        if (raw := await daemon.api.image(reference)) is not None:
            return facts.image(reference if container.digest else raw["Id"], raw)
    digest = f" ({container.digest})" if container.digest else ""
    raise PermanentError(
        "SS530",
        f'image {container.image}{digest} is not on host "{daemon.name}"',
        "pull it there, or plan again: the name may mean another image by now",
    )


async def survey(daemon: Daemon, image: str, pull: str) -> ImageFacts:
    """See `ImageKeeper.image`."""
    local = await daemon.api.image(image)
    if local is not None and (pull != "always" or _digest_in(image)):
        return _local(image, local)
    if pull == "never":
        return ImageFacts(trouble=f'image {image} is not on host "{daemon.name}", and pull is never')
    try:
        said = await daemon.api.in_registry(image)
    except Refused as refused:
        return ImageFacts(trouble=_registry_error(daemon, image, refused.status, refused.message)[1])
    digest = str(said["Descriptor"]["digest"])
    there = await daemon.api.image(f"{repository(image)}@{digest}")
    size = int(there["Size"]) if there else 0
    return ImageFacts(digest, present=there is not None, portable=True, size=size)


async def fetch(daemon: Daemon, image: str, digest: str, report: Callable[[str], None]) -> None:
    """See `ImageKeeper.pull`."""
    pinned = f"{repository(image)}@{digest}"
    there = await daemon.api.image(pinned) or await daemon.api.image(digest)
    if there is None:
        await _pull(daemon, image, pinned, report)
        there = await daemon.api.image(pinned)
    if there is None:
        raise TransientError(f'image {pinned} was pulled to host "{daemon.name}" and is gone again')
    if not _digest_in(image):
        named = await daemon.api.image(image)
        if named is None or named["Id"] != there["Id"]:
            await daemon.api.tag(there["Id"], image)


async def _pull(daemon: Daemon, image: str, pinned: str, report: Callable[[str], None]) -> None:
    progress = Progress()
    try:
        async with aclosing(daemon.api.pull(pinned)) as messages:
            async for message in messages:
                if "error" in message:
                    raise _pull_error(daemon, image, 500, str(message["error"]))
                if line := progress.take(message):
                    report(line)
    except Refused as refused:
        raise _pull_error(daemon, image, refused.status, refused.message) from refused


@dataclass
class Progress:
    """What a pull has done so far, of all that it said. Layers that were there already count as done."""

    done: set[str] = field(default_factory=set)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    _last: str = ""

    def take(self, message: Json) -> str:
        """The line that tells of it; "" where it would be the same as before."""
        layer, status = message.get("id", ""), message.get("status", "")
        if status.startswith(("Pulling from", "Digest:", "Status:")) or not layer:
            return ""
        detail = message.get("progressDetail") or {}
        if status == "Downloading" and "total" in detail:
            self.sizes[layer] = (int(detail["current"]), int(detail["total"]))
        else:
            self.sizes.setdefault(layer, (0, 0))
        if status == "Download complete":
            total = self.sizes[layer][1]
            self.sizes[layer] = (total, total)
        if status in ("Pull complete", "Already exists"):
            self.done.add(layer)
        line = self._line()
        if line == self._last:
            return ""
        self._last = line
        return line

    def _line(self) -> str:
        have, of = (sum(pair[i] for pair in self.sizes.values()) / _GIB for i in (0, 1))
        return f"pulling {len(self.done)} of {len(self.sizes)} layers, {have:.1f} of {of:.1f} GiB"


def repository(image: str) -> str:
    """The name without tag and digest. A colon before a slash is that of a registry's port."""
    name = image.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


def _digest_in(image: str) -> str:
    """The digest that the name itself holds, "" for one that may mean something else tomorrow."""
    return image if image.startswith("sha256:") else image.partition("@")[2]


def _references(container: Container) -> tuple[str, ...]:
    if not container.digest:
        return (container.image,)
    # A digest of a registry is known together with its repository only, the id of a local image only alone.
    return (f"{repository(container.image)}@{container.digest}", container.digest)


def _local(image: str, raw: Json) -> ImageFacts:
    """What a name means that is on the host: the registry's digest of it, else the image's id."""
    size = int(raw["Size"])
    if own := _digest_in(image):
        portable = "@" in image
        return ImageFacts(own if portable else str(raw["Id"]), present=True, portable=portable, size=size)
    named = dict(reversed(pair.split("@", 1)) for pair in raw.get("RepoDigests") or ())
    ours = [digest for digest, name in named.items() if _same_repository(name, image)]
    if ours:
        return ImageFacts(ours[0], present=True, portable=True, size=size)
    return ImageFacts(str(raw["Id"]), present=True, size=size)


def _same_repository(name: str, image: str) -> bool:
    """Docker shortens the names of its own registry."""

    def short(text: str) -> str:
        return repository(text).removeprefix("docker.io/").removeprefix("library/")

    return short(name) == short(image)


def _pull_error(daemon: Daemon, image: str, status: int, message: str) -> PermanentError | TransientError:
    code, what = _registry_error(daemon, image, status, message)
    if not code:
        return TransientError(what)
    fixes = {
        "SS530": "correct the image's name in servestate.models",
        "SS533": "log in where servestate runs: docker login REGISTRY",
        "SS534": "free space on that host",
    }
    return PermanentError(code, what, fixes[code])


def _registry_error(daemon: Daemon, image: str, status: int, message: str) -> tuple[str, str]:
    """The diagnostic code ("" for what may pass) and the words. A registry that wants a login says so even of
    what it does not have."""
    words = message.lower()
    if "no space left on device" in words:
        return "SS534", f'the disk of host "{daemon.name}" is full: {message}'
    if any(word in words for word in _DENIED) or status in (401, 403):
        return "SS533", f"the registry of {image} refuses this user: {message}"
    if any(word in words for word in _UNKNOWN) or status == 404:
        return "SS530", f"image {image} is not in its registry: {message}"
    return "", f'the registry of {image} cannot be reached from host "{daemon.name}": {message}'
