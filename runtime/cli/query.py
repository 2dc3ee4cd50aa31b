"""`servestate query ENDPOINT TEXT`: one question through the running router, as any client would ask it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.state import State
from servestate.runtime import exit_codes
from servestate.runtime.cli.common import token, workspace_of
from servestate.runtime.cli.output import complain, say
from servestate.runtime.cli.serve import router_url
from servestate.runtime.workspace import Workspace

if TYPE_CHECKING:
    import ssl

    import httpx

_TIMEOUT_S = 120.0
_HTTP_OK = 200
_HTTP_UNAUTHORIZED = 401
_END_OF_CERTIFICATE = "-----END CERTIFICATE-----"


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    workspace = workspace_of(arguments)
    state = workspace.store.read() or State("")
    endpoint, _, entity = arguments.endpoint.partition("/")
    task = _task(state, endpoint, entity)
    body = body_for(task, arguments.text, arguments.max_tokens)
    if arguments.stream and "input" not in body:
        body["stream"] = True
    path = f"/serving-endpoints/{endpoint}" + (f"/served-models/{entity}" if entity else "") + "/invocations"
    url = router_url(workspace)
    mine = token() if workspace.site.access.tokens else ""  # one for another server is not shown around
    return _ask(url, path, body, _trusted(workspace) if url.startswith("https:") else None, mine)


def body_for(task: str, text: str, max_tokens: int) -> dict[str, Any]:
    """A request body for a task; chat where the task is not known."""
    if task.endswith("/embeddings"):
        return {"input": text}
    if task.endswith("/completions"):
        return {"prompt": text, "max_tokens": max_tokens}
    return {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}


def _task(state: State, endpoint: str, entity: str) -> str:
    record = state.endpoints.get(endpoint)
    if record is None:
        known = ", ".join(state.endpoints) or "none"
        raise InvalidInput(
            [Diagnostic("SS606", f'no endpoint "{endpoint}" here', f"applied endpoints: {known}")]
        )
    targets = [t for t in record.targets if entity in ("", t.entity)]
    if not targets:
        known = ", ".join(t.entity for t in record.targets) or "none"
        what = f'endpoint "{endpoint}" has no entity "{entity}"'
        raise InvalidInput([Diagnostic("SS606", what, f"its entities: {known}")])
    return next((state.instances[a].spec.task for t in targets for a in t.instances), "")


def _trusted(workspace: Workspace) -> ssl.SSLContext:
    """The certificate that the router of this site has to show, and no other: it is reached by the address
    that it listens on, so neither the names in it nor who signed it tell more. Raises InvalidInput."""
    import ssl

    tls = workspace.site.router.tls
    if tls is None:  # the router was started with another configuration
        return ssl.create_default_context()
    path = workspace.root / tls.cert
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=_first_certificate(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        what = f"the certificate of the router cannot be read: {tls.cert}: {reason}"
        fix = "give the PEM file that the router serves with"
        raise InvalidInput([Diagnostic("SS640", what, fix)]) from None
    return context


def _first_certificate(path: Path) -> str:
    """Without those that signed it: whatever else they have signed is not this router's."""
    return path.read_text().partition(_END_OF_CERTIFICATE)[0] + _END_OF_CERTIFICATE + "\n"


def _ask(url: str, path: str, body: dict[str, Any], trusted: ssl.SSLContext | None, mine: str) -> int:
    import httpx

    headers = {"authorization": f"Bearer {mine}"} if mine else {}
    try:
        with (
            httpx.Client(timeout=_TIMEOUT_S, trust_env=False, verify=trusted or False) as client,
            client.stream("POST", url + path, json=body, headers=headers) as answer,
        ):
            return _print_answer(answer)
    except httpx.ConnectError as error:
        raise InvalidInput([_unreached(url, error)]) from None
    except httpx.HTTPError as error:
        complain(f"SS608 the answer broke off: {error}")
        return exit_codes.ERROR


def _unreached(url: str, error: httpx.ConnectError) -> Diagnostic:
    from servestate.runtime.remote import tls_trouble

    if trouble := tls_trouble(error):
        fix = "see whether the router serves with the file that router.tls.cert names: servestate status"
        return Diagnostic("SS613", f"no TLS with {url}: {trouble}", fix)
    return Diagnostic("SS607", f"no router answers at {url}", "start it: servestate serve")


def _print_answer(answer: httpx.Response) -> int:
    if answer.status_code != _HTTP_OK:
        answer.read()
        complain(f"{answer.status_code} {answer.reason_phrase}: {answer.text}")
        if answer.status_code == _HTTP_UNAUTHORIZED:
            complain("  fix: set SERVESTATE_TOKEN to a token that may query this endpoint")
        return exit_codes.ERROR
    complain(f"[{answer.headers.get('served-model-name', '?')}]")
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        for piece in _streamed(answer.iter_lines()):
            sys.stdout.write(piece)
            sys.stdout.flush()
        say("")
    else:
        answer.read()
        say(_text_of(answer.text))
    return exit_codes.OK


def _streamed(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        chunk = _loads(line.removeprefix("data:")) if line.startswith("data:") else None
        if isinstance(chunk, dict) and "error" in chunk:
            raise SystemExit(f"SS608 the answer broke off: {_member(chunk['error'], 'message')}")
        choice = _first_choice(chunk)
        yield str(_member(_member(choice, "delta"), "content") or _member(choice, "text") or "")


def _text_of(answer: str) -> str:
    """The words of an OpenAI-shaped answer; any other JSON indented, anything else as it is."""
    found = _loads(answer)
    choice = _first_choice(found)
    for text in (_member(_member(choice, "message"), "content"), _member(choice, "text")):
        if isinstance(text, str):
            return text
    return answer if found is None else json.dumps(found, indent=2, ensure_ascii=False)


def _loads(text: str) -> Any:
    """The JSON value in `text`, None where there is none: models answer whatever they please."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _first_choice(answer: Any) -> Any:
    choices = _member(answer, "choices")
    return choices[0] if isinstance(choices, list) and choices else None


def _member(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None
