"""The client's side of `--server`: plans made, carried out and looked at by a servestate that runs elsewhere.

Whoever calls needs the configuration and a token; state, models, images and GPUs are the server's.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from servestate.planner.codec import FormatError, decode_plan
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.plan import Plan
from servestate.planner.spec.access_rules import is_loopback
from servestate.planner.steps import Node
from servestate.planner.version import VERSION
from servestate.runtime import signals
from servestate.runtime.apply import Finished, Stale
from servestate.runtime.reporter import Reporter
from servestate.runtime.store.protocol import LockHeld
from servestate.runtime.wire import (
    PREFIX,
    FormError,
    diagnostics_from_json,
    ending_from_json,
    lock_from_json,
    replay,
)

if TYPE_CHECKING:
    import httpx

CONNECT_S = 5.0
ANSWER_S = 30.0
PLAN_S = 600.0
"""How long a plan may take: the server asks every host and looks into the files of models."""

LOST_S = 30.0
"""How long the server may be out of reach while it is watched. It goes on meanwhile."""

_FIRST_S = 0.05
_RETRY_S = 0.5
_HOST = re.compile(r"[A-Za-z0-9._-]+\Z|[0-9A-Fa-f:.]+\Z")
_OK, _UNAUTHENTICATED, _DENIED, _NOT_FOUND, _SERVER_ERROR = 200, 401, 403, 404, 500
_NO_PATH = "ENDPOINT_NOT_FOUND"
"""The code of an answer to a path that the server does not have."""

_CONFLICT = "RESOURCE_CONFLICT"

Json = dict[str, Any]


class Left(Exception):
    """The client has been told twice to end: the server finishes alone. `signal` is the first one."""

    def __init__(self, signal: int) -> None:
        self.signal = signal
        super().__init__("the server stops once what is in flight is done; nobody watches any more")


class Refused(InvalidInput):
    """The server has understood and will not. `code` is the serving API's word for why."""

    def __init__(self, code: str, found: Diagnostic) -> None:
        self.code = code
        super().__init__([found])


class OutOfReach(InvalidInput):
    """The server does not answer, or not now; the same call may succeed a little later."""


@dataclass(frozen=True, slots=True)
class Made:
    """A plan that the server has made. `text` is the plan as it knows it, `settled` whether nothing that a
    crash left unrecorded lies under it."""

    plan: Plan
    text: str
    settled: bool
    warnings: tuple[Diagnostic, ...]


@dataclass(frozen=True, slots=True)
class Server:
    """A management listener. `url` has no slash at its end; `socket` is the unix socket to go through, ""
    for the network. Methods raise InvalidInput for all that comes between: no answer (OutOfReach), a refusal,
    an answer of another version."""

    url: str
    token: str = field(default="", repr=False)
    socket: str = ""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return "the API of this site" if self.socket else self.url

    def plan(self, order: Json, patience_s: float, tell: Callable[[str], None]) -> Made:
        """A plan for the documents of the order (`POST /plans`). Waits so long for a lock that somebody
        holds; `tell` hears once whom it waits for. Raises LockHeld."""
        reply = asyncio.run(self._plan(order, patience_s, tell))
        try:
            text = str(reply["plan"])
            return Made(decode_plan(text), text, reply["settled"], diagnostics_from_json(reply["warnings"]))
        except (FormatError, FormError, KeyError) as error:
            raise self._another_version(str(error)) from error

    def apply(self, order: Json, plan: Plan, reporter: Reporter) -> Stale | Finished:
        """Have the plan of the order (`POST /applies`) carried out, and watch it. The first signal calls it
        off, as an apply of this process. Raises LockHeld, Left, KeyboardInterrupt."""
        nodes = {node.id: node for node in plan.nodes}
        try:
            return asyncio.run(self._apply(order, nodes, reporter))
        except FormError as error:
            raise self._another_version(str(error)) from error

    def status(self) -> Json:
        """What `status --json` prints there."""
        found: Json = asyncio.run(self._once("GET", f"{PREFIX}/status"))
        return found

    def cancel_update(self, endpoint: str) -> None:
        """Cancel the update of an endpoint that the API has under way."""
        path = f"/api/2.0/serving-endpoints/{quote(endpoint, safe='')}/cancel-update"
        try:
            asyncio.run(self._once("POST", path))
        except Refused as error:
            if error.code == _CONFLICT:
                what = f'no update of "{endpoint}" is under way: it is done, has failed or was never begun'
                raise InvalidInput(
                    [Diagnostic("SS628", what, "see what it serves: servestate status")]
                ) from error
            raise

    async def _once(self, verb: str, path: str) -> Any:
        async with self._client(ANSWER_S) as client:
            return await self._call(client, verb, path)

    async def _plan(self, order: Json, patience_s: float, tell: Callable[[str], None]) -> Json:
        deadline = time.monotonic() + patience_s
        told = False
        async with self._client(PLAN_S) as client:
            while True:
                left = max(0.0, deadline - time.monotonic())
                # First only to hear whom it waits for: whoever watches wants to know at once.
                wait_s = left if told else min(left, _FIRST_S)
                reply: Json = await self._call(client, "POST", f"{PREFIX}/plans", {**order, "wait_s": wait_s})
                if "locked" not in reply:
                    return reply
                held = lock_from_json(reply["locked"])
                if time.monotonic() >= deadline:
                    raise LockHeld(held)
                if not told:
                    who = f"{held.owner.person}@{held.owner.host} ({held.owner.verb})"
                    tell(f"servestate: waiting up to {patience_s:g} s for the lock of {who}")
                    told = True

    async def _apply(self, order: Json, nodes: Mapping[str, Node], reporter: Reporter) -> Stale | Finished:
        called_off = asyncio.Event()
        got: list[int] = []

        def on_signal(number: int) -> None:
            got.append(number)
            if len(got) == 1:
                reporter.notice("stopping once what is in flight is done; a second signal leaves it alone")
                called_off.set()
            else:
                run.cancel()

        async with self._client(ANSWER_S) as client:
            run = asyncio.ensure_future(self._watched(client, order, nodes, reporter, called_off))
            with signals.handled(on_signal):
                try:
                    ending = await run
                except asyncio.CancelledError:
                    if not got:
                        raise
                    raise Left(got[0]) from None
        return ending_from_json(ending, got[0] if got else 0)

    async def _watched(
        self,
        client: httpx.AsyncClient,
        order: Json,
        nodes: Mapping[str, Node],
        reporter: Reporter,
        called_off: asyncio.Event,
    ) -> Any:
        """How it has ended, as the server says."""
        begun = await self._call(client, "POST", f"{PREFIX}/applies", order)
        path = f"{PREFIX}/operations/{begun['operation']}"
        calling_off = asyncio.create_task(self._call_off(client, path, called_off))
        try:
            after = 0
            while True:
                try:
                    page = await self._insist(client, "GET", f"{path}?after={after}", reporter.notice)
                except Refused as error:  # it was started anew meanwhile, and stopped what it was doing
                    raise InvalidInput([self._lost(error)]) from error
                for event in page["events"]:
                    replay(event, nodes, reporter)
                after += len(page["events"])
                if page["result"] is not None:
                    return page["result"]
        finally:
            calling_off.cancel()
            # Where it could not be called off, the server is out of reach, and watching it ends with that.
            await asyncio.gather(calling_off, return_exceptions=True)

    async def _call_off(self, client: httpx.AsyncClient, path: str, called_off: asyncio.Event) -> None:
        await called_off.wait()
        await self._insist(client, "POST", f"{path}/cancel", Reporter().notice)

    async def _insist(
        self, client: httpx.AsyncClient, verb: str, path: str, tell: Callable[[str], None]
    ) -> Any:
        """The same call again while the server is out of reach: it does no harm twice. `tell` hears of it."""
        deadline = time.monotonic() + LOST_S
        told = False
        while True:
            try:
                return await self._call(client, verb, path)
            except OutOfReach as error:
                if time.monotonic() >= deadline:
                    raise InvalidInput([self._lost(error)]) from error
            if not told:
                tell(f"{self.name} is out of reach; asking again for {LOST_S:g} s")
                told = True
            await asyncio.sleep(_RETRY_S)

    async def _call(self, client: httpx.AsyncClient, verb: str, path: str, body: Any = None) -> Any:
        import httpx

        try:
            answer = await client.request(verb, path, json=body)
        except httpx.HTTPError as error:
            raise OutOfReach([self._trouble(error)]) from error
        try:
            found = answer.json()
        except ValueError:
            found = None
        if answer.status_code == _OK and isinstance(found, dict):
            return found
        raise self._refusal(answer.status_code, found if isinstance(found, dict) else {})

    @asynccontextmanager
    async def _client(self, answer_s: float) -> AsyncIterator[httpx.AsyncClient]:
        import ssl

        import httpx

        url = urlsplit(self.url)
        headers = {"user-agent": f"servestate/{VERSION}"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        # The certificates that this machine trusts, not those that came with a library.
        verify = ssl.create_default_context() if url.scheme == "https" else False
        here = self.socket or is_loopback(url.hostname or "")
        async with httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(answer_s, connect=CONNECT_S),
            verify=verify,
            trust_env=not here,  # a proxy is not asked for what is on this machine
            transport=httpx.AsyncHTTPTransport(uds=self.socket) if self.socket else None,
        ) as client:
            yield client

    # What may come between.

    def _trouble(self, error: httpx.HTTPError) -> Diagnostic:
        import httpx

        if certificate := tls_trouble(error):
            fix = "check the URL; a private authority is named by the environment variable SSL_CERT_FILE"
            return Diagnostic("SS613", f"no TLS with {self.name}: {certificate}", fix)
        if self.socket:
            what = f"{self.name} does not answer: {error}"
            return Diagnostic("SS627", what, "start it: servestate serve")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            what = f"no servestate answers at {self.name}"
            fix = "give the URL of its management listener, and see that servestate serve runs there"
            return Diagnostic("SS612", what, fix, detail=str(error))
        what = f"{self.name} does not answer: {str(error) or type(error).__name__}"
        return Diagnostic("SS612", what, "look at what servestate serve says there, then try again")

    def _lost(self, error: InvalidInput) -> Diagnostic:
        what = f"{self.name} is out of reach, or was started anew; what it was doing is not watched any more"
        fix = f"see how far it is: servestate status --server {self.name}"
        return Diagnostic("SS617", what, fix, detail="\n".join(one.what for one in error.diagnostics))

    def _refusal(self, status: int, body: Json) -> InvalidInput:
        code, message = str(body.get("error_code", "")), str(body.get("message", ""))
        if status == _UNAUTHENTICATED:
            what = f"{self.name} does not know this token" if self.token else f"{self.name} asks for a token"
            fix = "set SERVESTATE_TOKEN to one that stands in its servestate.access.tokens"
            return InvalidInput([Diagnostic("SS614", what, fix)])
        if status == _DENIED:
            what = f"{self.name} does not allow that: {message}"
            return InvalidInput([Diagnostic("SS615", what, "ask whoever keeps its servestate.access.tokens")])
        if not code or (status == _NOT_FOUND and code == _NO_PATH):
            if status >= _SERVER_ERROR:
                what, fix = f"{self.name} answers with {status}", "try again in a moment"
                return OutOfReach([Diagnostic("SS612", what, fix)])
            return self._another_version(f"it answers with {status}")
        if "details" in body:
            try:
                return InvalidInput(diagnostics_from_json(body["details"]))
            except FormError as error:
                return self._another_version(str(error))
        if status >= _SERVER_ERROR:
            what, fix = f"{self.name} cannot do that now: {message}", "try again in a moment"
            return OutOfReach([Diagnostic("SS620", what, fix)])
        return Refused(
            code, Diagnostic("SS620", f"{self.name} refuses: {message}", "mend that, then try again")
        )

    def _another_version(self, why: str) -> InvalidInput:
        what = f"what answers at {self.name} is no servestate {VERSION}: {why}"
        fix = "give the URL of a management listener, and use the version of servestate that runs there"
        return InvalidInput([Diagnostic("SS616", what, fix)])


def server_at(url: str, token: str, *, insecure: bool) -> Server:
    """The server of that URL. Raises InvalidInput SS611 for what is no URL of one, and where the token would
    cross a network readable by others, unless `insecure` says that this is meant."""
    fix = "write http://HOST:PORT or https://HOST[:PORT], of a management listener"
    try:
        found = urlsplit(url)
        host, _ = found.hostname or "", found.port
    except ValueError as error:
        raise InvalidInput([Diagnostic("SS611", f"--server is no URL: {error}", fix)]) from error
    if found.scheme not in ("http", "https") or not _HOST.match(host):
        raise InvalidInput([Diagnostic("SS611", "--server is no URL of http or https", fix)])
    if found.username is not None or found.query or found.fragment:
        what = "--server has more than a host, a port and a path"
        raise InvalidInput([Diagnostic("SS611", what, f"{fix}; the token is SERVESTATE_TOKEN's")])
    if token and found.scheme == "http" and not (insecure or is_loopback(host)):
        what = f"the token would cross the network to {host} readable by others"
        fix = "use https://, through what ends TLS there, or a tunnel; --insecure sends it all the same"
        raise InvalidInput([Diagnostic("SS611", what, fix)])
    return Server(url.rstrip("/"), token)


def tls_trouble(error: BaseException) -> str:
    """What is wrong with certificates or protocol, "" where it is something else."""
    import ssl

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, ssl.SSLError):
            return cause.reason or str(cause)
        cause = cause.__cause__ or cause.__context__
    return ""
