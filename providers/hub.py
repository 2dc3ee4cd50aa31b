"""Models of the Hugging Face hub: its cache on disk, and its HTTPS interface, asked for heads only.

Sources: the hub's API description, and huggingface_hub's description of its cache and of its variables.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from servestate.providers.model_files import MAX_FILES, MAX_JSON, Folder, parse_object, unreadable
from servestate.providers.protocol import PermanentError, TransientError
from servestate.providers.secrets import Secret

if TYPE_CHECKING:
    import httpx

ENDPOINT = "https://huggingface.co"
REQUEST_TIMEOUT_S = 10.0
_REDIRECTS = 4  # one to the renamed repository, one to the content network, and two more
_SHORT = 200  # characters of a stranger's text in a message
_REDIRECTED = (301, 302, 303, 307, 308)
_TRUE = {"1", "ON", "YES", "TRUE"}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub. `revision` is a branch, tag or commit."""

    organisation: str
    name: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.organisation}/{self.name}"


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    return environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def endpoint(environ: Mapping[str, str]) -> str:
    """The hub's address: HF_ENDPOINT, else the public one."""
    return (environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def cached(model: HubModel, environ: Mapping[str, str]) -> Folder | None:
    """The model's snapshot in the cache on disk, None where there is none."""
    root = _cache(environ) / f"models--{model.organisation}--{model.name}"
    commit = model.revision if _COMMIT.fullmatch(model.revision) else _ref(root, model.revision)
    snapshot = root / "snapshots" / commit
    return Folder(snapshot) if commit and snapshot.is_dir() else None


def _cache(environ: Mapping[str, str]) -> Path:
    if place := environ.get("HF_HUB_CACHE"):
        return Path(place).expanduser()
    if home := environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "~").expanduser() / ".cache"
    return Path(base) / "huggingface" / "hub"


def _ref(root: Path, revision: str) -> str:
    """The commit that the cache knows under `revision`, "" where it knows none."""
    path = root / "refs" / revision
    try:
        commit = path.read_text().strip() if path.is_file() else ""
    except OSError as error:
        raise unreadable(path, error) from error
    return commit if _COMMIT.fullmatch(commit) else ""


@dataclass(frozen=True, slots=True)
class _Answer:
    """Status, headers with small names, and as much of the body as was wanted."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Hub:
    """The hub over HTTP. The token goes to the hub's own scheme, host and port, not to where it redirects."""

    def __init__(
        self, client: httpx.Client, base: str, token: Secret | None, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        self._client = client
        self._base = base
        self._token = token
        self._timeout_s = timeout_s

    def get(self, path: str, start: int, size: int) -> _Answer:
        """At most `size` bytes of `path` from `start`. Raises TransientError when the hub cannot be reached
        or asks to come back, PermanentError when it refuses."""
        url = self._base + path
        for _ in range(_REDIRECTS + 1):
            answer = self._once(url, start, size)
            if answer.status not in _REDIRECTED:
                return answer
            url = self._next(url, answer)
        raise TransientError(f"the hub redirects {path} more than {_REDIRECTS} times")

    def _next(self, url: str, answer: _Answer) -> str:
        """Where it redirects to; never from https to plain http."""
        location = answer.headers.get("location", "")
        try:
            target = urljoin(url, location)
        except ValueError as error:
            raise _bad_address(location) from error
        if _origin(target)[0] not in ("https", _origin(self._base)[0]):
            raise _bad_address(target)
        return target

    def _once(self, url: str, start: int, size: int) -> _Answer:
        import httpx

        origin = _origin(url)
        headers = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
        if self._token is not None and origin == _origin(self._base):
            headers["Authorization"] = f"Bearer {self._token.reveal()}"
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._client.stream("GET", url, headers=headers, timeout=self._timeout_s) as reply:
                wanted = size if reply.status_code in (200, 206) else 0
                body = self._body(reply, wanted, deadline)
        except httpx.HTTPError as error:
            raise TransientError(f"no answer from {origin[1]}: {type(error).__name__}") from error
        except httpx.InvalidURL as error:
            raise _bad_address(url) from error
        return _Answer(reply.status_code, {k.lower(): v for k, v in reply.headers.items()}, body)

    def _body(self, reply: httpx.Response, wanted: int, deadline: float) -> bytes:
        """The first `wanted` bytes, however many more there are and however slowly they come."""
        found = bytearray()
        if not wanted:
            return b""
        for chunk in reply.iter_raw():
            found += chunk
            if len(found) >= wanted:
                break
            if time.monotonic() > deadline:
                raise TransientError(f"{reply.url.host} took more than {self._timeout_s:g} s to answer")
        return bytes(found[:wanted])


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port. Raises PermanentError SS522 for an address that is not HTTP."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError as error:
        raise _bad_address(url) from error
    if scheme not in ("http", "https") or not host:
        raise _bad_address(url)
    return scheme, host, port


def _bad_address(url: str) -> PermanentError:
    """Names it without its query, which may be a signature that opens the file, and without a password."""
    shown = url.partition("?")[0].rpartition("@")[2][:_SHORT]
    what = f"the hub cannot be asked at {shown}"
    return PermanentError("SS522", what, "set HF_ENDPOINT to https://HOST, or leave it out")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file on the hub."""

    repository: HubRepository
    path: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.repository.name}/{self.path}"

    def read(self, start: int, size: int) -> bytes:
        """See `Span.read`."""
        size = min(size, self.size - start)
        if size <= 0:
            return b""
        answer = self.repository.get(self.path, start, size)
        if answer.status == 200 and start:
            raise TransientError(f"the hub sends all of {self.name}, not the part that was asked for")
        if len(answer.body) < size:
            raise TransientError(f"the hub sent {len(answer.body):,} of {size:,} bytes of {self.name}")
        return answer.body


@dataclass(frozen=True, slots=True)
class HubRepository:
    """The files of one model on the hub."""

    hub: Hub
    model: HubModel
    is_local: bool = False

    @property
    def name(self) -> str:
        return f"hf://{self.model}@{self.model.revision}"

    def names(self) -> list[str]:
        """See `Repository.names`."""
        path = f"/api/models/{self.model}/revision/{quote(self.model.revision, safe='')}"
        answer = self._checked(self.hub.get(path, 0, MAX_JSON), path)
        listed = parse_object(answer.body, self.name).get("siblings") if answer is not None else None
        files = listed if isinstance(listed, list) else []
        names = (entry.get("rfilename") for entry in files[: 10 * MAX_FILES] if isinstance(entry, dict))
        return sorted(name for name in names if isinstance(name, str))

    def open(self, name: str) -> HubFile | None:
        """See `Repository.open`. Asks for one byte, of which the answer tells the size of the file."""
        answer = self.get(name, 0, 1, may_be_missing=True)
        return None if answer.status == 404 else HubFile(self, name, self._size(answer, name))

    def get(self, name: str, start: int, size: int, *, may_be_missing: bool = False) -> _Answer:
        """A part of a file. Raises PermanentError SS521 for a missing one, unless it may be."""
        path = f"/{self.model}/resolve/{quote(self.model.revision, safe='')}/{quote(name)}"
        answer = self.hub.get(path, start, size)
        checked = self._checked(answer, name)
        if checked is None and not may_be_missing:
            raise self._missing(f"it has no file {name}")
        return answer

    def _size(self, answer: _Answer, name: str) -> int:
        if answer.status == 416:
            return 0
        header = "content-length" if answer.status == 200 else "content-range"
        total = answer.headers.get(header, "").rpartition("/")[2]
        if not total.isascii() or not total.isdigit() or len(total) > 18:
            raise TransientError(f"the hub does not say how large {self.name}/{name} is")
        return int(total)

    def _checked(self, answer: _Answer, what: str) -> _Answer | None:
        """None for a file that is not there."""
        code = answer.headers.get("x-error-code", "")
        if code == "RevisionNotFound":
            raise self._missing(f'it has no revision "{self.model.revision}"')
        if code == "RepoNotFound" and answer.status != 401:
            raise self._missing("the hub does not know it")
        if answer.status == 404:
            return None
        if answer.status in (401, 403):
            raise self._refused(answer.status)
        if answer.status in (408, 425, 429) or answer.status >= 500:
            raise TransientError(f"the hub answers {answer.status} for {what} of {self.name}")
        if answer.status not in (200, 206, 416):
            raise PermanentError("SS522", f"the hub answers {answer.status} for {what} of {self.name}")
        return answer

    def _missing(self, why: str) -> PermanentError:
        fix = "check the spelling: hf://ORGANISATION/NAME@REVISION"
        return PermanentError("SS521", f"no such model, {self.name}: {why}", fix)

    def _refused(self, status: int) -> PermanentError:
        """The hub answers 401 also for names that do not exist, to hide private ones."""
        what = f"the hub refuses {self.name} ({status}): it is private, gated, or does not exist"
        fix = "check the spelling; accept the model's terms on its page; set a token that may read it"
        return PermanentError("SS522", what, fix)


@contextmanager
def open_hub(
    model: HubModel,
    environ: Mapping[str, str],
    token: Secret | None,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Iterator[HubRepository]:
    """The model on the hub, as long as the context lasts. Nothing is asked before a file is."""
    import httpx  # here: importing any module must stay cheap

    with httpx.Client(follow_redirects=False) as client:
        yield HubRepository(Hub(client, endpoint(environ), token, timeout_s), model)
