"""The Engine API of one Docker host. The only file that imports the SDK, and only once a host is spoken to.

Nothing here decides: a method is a call, with the SDK's many exceptions turned into two.
"""

from __future__ import annotations

import io
import math
import tarfile
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from servestate.planner.spec.site import DockerHost
from servestate.providers.docker import threads
from servestate.providers.protocol import PermanentError, TransientError

T = TypeVar("T")
Json = dict[str, Any]

CONNECT_S = 10
CALL_S = 60
"""How long the daemon may take to begin an answer."""

KILL_S = 60
"""How long the daemon may take over a container's grace to have it ended."""

_AT_ONCE = 8
"""Connections used to inspect many containers."""


class Unreachable(TransientError):
    """The host gave no answer. What was asked of it may have been done all the same."""


class Refused(TransientError):
    """The daemon answered with an error. `status` is that of HTTP, `message` its own words."""

    def __init__(self, where: str, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(f"{where} answers {status}: {message}")


@dataclass(frozen=True, slots=True)
class Directory:
    """A folder to make in a container. `owner` is (uid, gid), None where its user has no known number."""

    path: str
    owner: tuple[int, int] | None


class Api:
    """One host. `base_dir` is where relative paths of its TLS files start. Making one touches nothing."""

    def __init__(self, name: str, settings: DockerHost, base_dir: Path) -> None:
        self.where = f'Docker on host "{name}" ({settings.url})'
        self._settings = settings
        self._base_dir = base_dir
        # What the SDK's stubs leave untyped, or type too narrowly, is most of what is used of it.
        self._opened: Any = None
        self._opening = threading.Lock()
        self._calls = threads.Calls()

    async def ping(self) -> None:
        """Raise Unreachable unless the daemon answers."""
        await self._call(lambda client: client.ping(), CONNECT_S)

    async def info(self) -> Json:
        """`docker info`."""
        return await self._call(lambda client: client.info())

    async def containers(self, labels: Mapping[str, str], running: bool = False) -> list[Json]:
        """The containers that wear all these labels, in short; those that do not run too."""
        wanted = {"label": [f"{name}={value}" for name, value in labels.items()]}
        return await self._call(lambda client: client.containers(all=not running, filters=wanted))

    async def inspect(self, container: str) -> Json | None:
        """All about a container, by id or name; None where there is none."""
        return await self._call(lambda client: _there(lambda: client.inspect_container(container)))

    async def inspect_all(self, containers: Sequence[str]) -> list[Json]:
        """All about many containers; those that have gone are left out."""

        def work(client: Any) -> list[Json]:
            shares = [containers[start::_AT_ONCE] for start in range(min(_AT_ONCE, len(containers)))]
            found: list[Json] = []
            failed: list[Exception] = []

            def inspect(share: Sequence[str]) -> None:
                try:
                    looks = (_there(partial(client.inspect_container, one)) for one in share)
                    found.extend(look for look in looks if look is not None)
                except Exception as error:  # raised below, in the thread that is waited for
                    failed.append(error)

            workers = [threading.Thread(target=inspect, args=(share,), daemon=True) for share in shares]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            if failed:
                raise failed[0]
            return found

        return await self._call(work)

    async def create(self, name: str, config: Json) -> str:
        """The id of a new container with that Engine API configuration."""
        made = await self._call(lambda client: client.create_container_from_config(config, name))
        return str(made["Id"])

    async def start(self, container: str, stdin: bytes | None = None) -> None:
        """Start it; `stdin` is written to its standard input, which is then closed."""

        def work(client: Any) -> None:
            if stdin is None:
                client.start(container)
                return
            # Attached before the start, so that nothing of its input is lost.
            stream = client.attach_socket(container, params={"stdin": 1, "stream": 1})
            try:
                try:
                    client.start(container)
                finally:
                    _send(stream, stdin)  # also where only the answer was lost: then it runs, and waits
            finally:
                _end(stream)

        await self._call(work)

    async def stop(self, container: str, grace_s: float) -> None:
        """Ask it to end, and kill it after so many seconds. Gone or ended before is fine."""
        grace = max(0, math.ceil(grace_s))
        await self._call(lambda client: _there(lambda: client.stop(container, timeout=grace)), CALL_S + grace)

    async def unpause(self, container: str) -> None:
        """Let it run on. One that is gone or was not paused is fine."""
        await self._call(lambda client: _settled(lambda: client.unpause(container)))

    async def remove(self, container: str) -> None:
        """Kill and remove it with its anonymous volumes. Gone, or about to be, is fine."""
        await self._call(
            lambda client: _settled(lambda: client.remove_container(container, v=True, force=True))
        )

    async def logs(self, container: str, tail: int) -> list[str]:
        """Its last lines of output, of both streams; [] where it is gone or its log cannot be read."""

        def work(client: Any) -> bytes:
            said = _settled(lambda: client.logs(container, tail=tail))
            return said if isinstance(said, bytes) else b""

        return (await self._call(work)).decode(errors="replace").splitlines()

    async def holds(self, container: str, path: str) -> bool:
        """Whether there is something at the path, in its file system or volumes; it need not run."""

        def work(client: Any) -> bool:
            # The SDK only knows how to fetch what is there, however much that is; HEAD just looks.
            url = client._url("/containers/{0}/archive", container)
            answer = client.head(url, params={"path": path}, timeout=CALL_S)
            client._raise_for_status(answer)
            return True

        return bool(await self._call(lambda client: _there(lambda: work(client))))

    async def make(self, container: str, root: str, folders: Sequence[Directory]) -> None:
        """Make folders below `root`, which is in a volume of the container; it need not run."""
        archive = _folders(root, folders)
        await self._call(lambda client: client.put_archive(container, root, archive))

    async def image(self, reference: str) -> Json | None:
        """All about an image that is on the host; None where it is not."""
        return await self._call(lambda client: _there(lambda: client.inspect_image(reference)))

    async def in_registry(self, image: str) -> Json:
        """What the image's registry says of that name now, asked by the host with the credentials of the
        Docker configuration here. Raises Refused with the registry's words."""
        return await self._call(lambda client: client.inspect_distribution(image))

    async def tag(self, image: str, name: str) -> None:
        """Give an image of the host another name."""
        repository, tag = _split(name)
        await self._call(lambda client: client.tag(image, repository, tag))

    async def pull(self, reference: str) -> AsyncGenerator[Json, None]:
        """The messages of a pull. An error in the midst of it is one of them."""
        async for message in self._stream(lambda client: client.pull(reference, stream=True, decode=True)):
            yield message

    async def events(self, filters: Json, since: str) -> AsyncGenerator[Json, None]:
        """Events from a time of the host's clock on, as they happen. To be closed with `aclosing`."""
        stream = self._stream(lambda client: client.events(since=since, filters=filters, decode=True))
        async with aclosing(stream) as events:
            async for event in events:
                yield event

    async def wait(self, container: str, limit_s: int) -> int:
        """Wait until it has ended: its exit code."""
        ended = await self._call(lambda client: client.wait(container, timeout=limit_s), limit_s)
        return int(ended["StatusCode"])

    async def _call(self, work: Callable[[Any], T], limit_s: float = CALL_S) -> T:
        try:
            # The client's own time-outs come first; this one is for what has none, such as ssh.
            return await self._calls.call(lambda: self._translated(work), CONNECT_S + limit_s + KILL_S)
        except TimeoutError as error:
            raise self._unreachable(str(error) or "no answer in time") from None

    async def _stream(self, open_: Callable[[Any], Iterator[Json]]) -> AsyncGenerator[Json, None]:
        _require_sdk()

        def steps() -> Iterator[Json]:
            return iter(self._translated(open_))

        async with aclosing(threads.Stream(steps, _close).items()) as items:
            try:
                async for item in items:
                    yield item
            except _failures() as error:
                raise self._translation(error) from error

    def _translated(self, work: Callable[[Any], T]) -> T:
        _require_sdk()
        try:
            return work(self._client())
        except _failures() as error:
            raise self._translation(error) from error

    def _translation(self, error: Exception) -> TransientError:
        from docker.errors import APIError

        if isinstance(error, APIError) and error.response is not None:
            return Refused(self.where, error.response.status_code, str(error.explanation or error))
        return self._unreachable(_innermost(error))

    def _unreachable(self, why: str) -> Unreachable:
        return Unreachable(
            f"{self.where} does not answer: {why}; start it, or correct servestate.providers.docker"
        )

    def _client(self) -> Any:
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> Any:
        from docker import APIClient
        from docker.constants import DEFAULT_DOCKER_API_VERSION
        from docker.tls import TLSConfig

        tls: TLSConfig | bool = False
        if (files := self._settings.tls) is not None:
            ca, cert, key = (str(self._base_dir / path) for path in (files.ca, files.cert, files.key))
            tls = TLSConfig(client_cert=(cert, key), ca_cert=ca, verify=True)
        client: Any = APIClient(
            self._settings.url,
            version=DEFAULT_DOCKER_API_VERSION,
            timeout=CONNECT_S,
            tls=tls,
            use_ssh_client=True,
            max_pool_size=_AT_ONCE + 2,
        )
        # A host is reached as the site says: through no proxy and with no .netrc, and REQUESTS_CA_BUNDLE does
        # not stand in for its own authority. Hence the daemon's version is asked for only now.
        client.trust_env = False
        client._version = client.version(api_version=False)["ApiVersion"]
        client.timeout = CALL_S
        return client


def _require_sdk() -> None:
    if find_spec("docker") is None:
        raise PermanentError(
            "SS505",
            "the Python package docker is not installed, which speaks to Docker hosts",
            "install it: pip install 'servestate[docker]'",
        )


def _failures() -> tuple[type[Exception], ...]:
    import subprocess

    import docker.errors
    import requests
    import urllib3

    sdk = (docker.errors.DockerException, requests.RequestException, urllib3.exceptions.HTTPError)
    return (*sdk, subprocess.SubprocessError, OSError)


def _there(work: Callable[[], T]) -> T | None:
    """What `work` gives, None where the daemon knows no such thing."""
    from docker.errors import NotFound

    try:
        return work()
    except NotFound:
        return None


def _settled(work: Callable[[], T]) -> T | None:
    """The same, None also where the thing is in no state for it: what was asked for is so already."""
    from docker.errors import APIError

    try:
        return work()
    except APIError as error:
        if error.response is None or error.response.status_code not in (404, 409, 501):
            raise
        return None


def _send(stream: Any, data: bytes) -> None:
    """Write all to an attached container: the SDK gives a socket, a file over one, or an ssh client."""
    socket = getattr(stream, "_sock", stream)
    socket.settimeout(CALL_S)
    socket.sendall(data)


def _end(stream: Any) -> None:
    """Leave an attached container, which closes its standard input."""
    if (ssh := getattr(stream, "proc", None)) is not None:
        # Closing the SDK's own socket kills the ssh client, with what it has yet to pass on.
        ssh.stdin.close()
        ssh.wait(CALL_S)
        ssh.stdout.close()
        return
    holder = getattr(stream, "_sock", None) or stream._response  # of TLS: the reply holds the connection too
    stream.close()
    holder.close()


def _close(stream: Any) -> None:
    """End a stream that another thread reads."""
    with suppress(OSError, ValueError, AttributeError):  # it has ended by itself, or its thread is busy
        if (ssh := getattr(stream._response.raw._fp.fp, "channel", None)) is not None:
            ssh.proc.terminate()
        else:
            stream.close()


def _folders(root: str, folders: Sequence[Directory]) -> bytes:
    """A tar archive of empty folders, to be unpacked at `root`."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for folder in folders:
            entry = tarfile.TarInfo(folder.path.removeprefix(f"{root}/"))
            entry.type = tarfile.DIRTYPE
            # Where the owner's number is known to the image only, everybody may write.
            entry.mode = 0o1777 if folder.owner is None else 0o755
            entry.uid, entry.gid = folder.owner or (0, 0)
            archive.addfile(entry)
    return packed.getvalue()


def _split(name: str) -> tuple[str, str]:
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(name)
    return repository, tag or "latest"


def _innermost(error: BaseException) -> str:
    """The words of the error that caused it all; the outer ones repeat them at length."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
