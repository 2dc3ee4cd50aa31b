"""The provider `external`: models that somebody else runs. Nothing is started, so nothing is ever stopped."""

from __future__ import annotations

from urllib.parse import urlsplit

from servestate.planner.launch import ExternalSpec, Spec
from servestate.planner.live import Observation
from servestate.providers.protocol import Failed, Launched, Marks, PermanentError, Readiness, Ready
from servestate.providers.secrets import Secrets, fill

_HANDLE = "external:"


class ExternalProvider:
    """A URL and a key reference. Whether it answers is seen by the requests that go there, not here."""

    name = "external"

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    async def observe(self, lineage: str) -> list[Observation]:
        """See `Provider.observe`. There is no world to look at: nothing out there wears our marks."""
        return []

    async def launch(self, spec: Spec, marks: Marks) -> Launched:
        """See `Provider.launch`. Only checks that the entity can be called: the URL, and that its key is
        there. Raises PermanentError SS509 for the URL and SS501 for the key."""
        if not isinstance(spec, ExternalSpec):
            raise PermanentError("SS503", f'provider external cannot start engine "{spec.engine}"')
        host = _host(spec)
        for text in (spec.secret, *(value for _, value in spec.headers)):
            fill(text, self._secrets)
        return Launched(f"{_HANDLE}{host}", spec.url)

    async def probe(self, handle: str, spec: Spec) -> Readiness:
        """See `Provider.probe`. Always ready: a call would cost money and prove little."""
        if not isinstance(spec, ExternalSpec) or not handle.startswith(_HANDLE):
            return Failed("SS503", f"{handle} is not an external entity")
        return Ready()

    async def stop(self, handle: str, grace_s: float) -> None:
        """See `Provider.stop`. A no-op: it is not ours to stop."""

    async def logs(self, handle: str, tail: int) -> str:
        """See `Provider.logs`. There are none."""
        return ""


def _host(spec: ExternalSpec) -> str:
    """Host and port of the URL. The URL itself is left out of error texts: it may hold a password."""
    try:
        parts = urlsplit(spec.url)
        port = parts.port
    except ValueError as error:
        raise _bad_url(spec, str(error)) from None
    if parts.scheme not in ("http", "https"):
        raise _bad_url(spec, f'its scheme is "{parts.scheme}"')
    if not parts.hostname:
        raise _bad_url(spec, "it names no host")
    if parts.username or parts.password:
        raise _bad_url(spec, "it holds a user name or password")
    return parts.hostname if port is None else f"{parts.hostname}:{port}"


def _bad_url(spec: ExternalSpec, why: str) -> PermanentError:
    return PermanentError(
        "SS509",
        f'the URL of external model "{spec.model}" ({spec.kind}) cannot be called: {why}',
        "write http://HOST/… or https://HOST/…, and put keys in secrets",
    )
