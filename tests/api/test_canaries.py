"""Where secrets go: planted in every place that takes one, and looked for afterwards in all that was said or
written. They may be where they must be to be of use, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.api.canaries import Canary, Search, descendants, encodings, files, processes
from tests.api.wire import connected
from tests.cli.harness import PYTHON, Result, Site, until
from tests.clients.harness import Server, Upstream, endpoint, routes, start, stop, upstream
from tests.ports import free_port

FAR_KEY, ENV, SITE_ENV, SAID, FATAL = map(Canary, ("far-key", "env", "site-env", "said", "fatal"))
"""References: an external model's key, variables of an engine from an entity and from the site, one that the
engine writes to its output, and one that it dies of."""
TOKEN, HASHED, STRANGE = (Canary(name, token=True) for name in ("token", "hashed", "strange"))
"""Tokens of callers: by reference, by hash, and one that nobody knows."""
CREATED, UPDATED, HEADER, INVALID, REPEATED, MISPLACED = map(
    Canary, ("created", "updated", "header", "invalid", "repeated", "misplaced")
)
"""In requests, as `K_plaintext`: taken, taken by an update, as a header's value; refused as invalid, as a
repetition; and where a reference should stand."""
REQUESTED = Canary("requested")
"""A reference in a request."""
PARAMETER = Canary("parameter", token=True)
"""In a query string, where no secret belongs."""

REFERENCED = (FAR_KEY, ENV, SITE_ENV, SAID, FATAL, TOKEN, REQUESTED)
KEPT = (CREATED, UPDATED, HEADER)
ALL = (*REFERENCED, *KEPT, HASHED, STRANGE, INVALID, REPEATED, MISPLACED, PARAMETER)
API = "/api/2.0/serving-endpoints"
CHAT = b'{"messages": [{"role": "user", "content": "x"}]}'


def reference(canary: Canary) -> str:
    """How YAML and requests name it."""
    return f"{{{{secrets/canary/{canary.name}}}}}"


def environment() -> dict[str, str]:
    """What the backend `env` resolves references from."""
    return {
        f"SERVESTATE_SECRET_CANARY__{canary.name.upper().replace('-', '_')}": canary.value
        for canary in REFERENCED
    }


def openai(url: str, **key: str) -> dict[str, Any]:
    """A served entity behind an OpenAI-style URL, with that key."""
    model = {"provider": "openai", "name": "m", "task": "llm/v1/chat"}
    return {
        "name": "far",
        "external_model": {**model, "openai_config": {"openai_api_base": f"{url}/v1", **key}},
    }


def custom(url: str, **auth: Any) -> dict[str, Any]:
    """One behind a custom provider."""
    model = {"provider": "custom", "name": "m", "task": "llm/v1/chat"}
    config = {"custom_provider_url": f"{url}/v1", **auth}
    return {"name": "far", "external_model": {**model, "custom_provider_config": config}}


def engine(shell: str, **env: str) -> dict[str, Any]:
    """A model version that says something before it serves."""
    run = " ".join((*PYTHON, "engine.py", '"$1"', "one"))
    argv = ["sh", "-c", shell.replace("RUN", f"exec {run}"), "sh", "{port}"]
    return {"engine": "command", "argv": argv, "env": env}


def bundle(far: Upstream, management: str, router: str) -> str:
    """YAML with every kind of reference."""
    versions = {
        "1": engine("RUN", SITE_KEY=reference(SITE_ENV)),
        "2": engine('echo "the key is $K" >&2; RUN'),
        "3": engine('echo "cannot log in as $K" >&2; exit 7'),
    }
    tokens = [
        {"user_name": "admin@example.com", "secret": reference(TOKEN), "rights": ["admin"]},
        {"user_name": "other@example.com", "sha256": hashlib.sha256(HASHED.value.encode()).hexdigest()},
    ]
    hosted = {"entity_name": "demo.m", "entity_version": "1", "workload_size": "Small"}
    chatty = {**hosted, "name": "chatty", "entity_version": "2", "environment_vars": {"K": reference(SAID)}}
    quiet = {**hosted, "name": "quiet", "environment_vars": {"KEY": reference(ENV)}}
    blocks = {
        "far": endpoint("far", openai(far.url, openai_api_key=reference(FAR_KEY))),
        "near": {**endpoint("near", quiet, chatty, quiet=50, chatty=50)},
    }
    site = {
        "management": {"listen": management},
        "router": {"listen": router},
        "models": {"demo.m": {"task": "llm/v1/chat", "versions": versions}},
        "access": {"tokens": tokens, "secret_scopes": ["canary"]},
    }
    document = {"servestate": site, "resources": {"model_serving_endpoints": blocks}}
    return yaml.safe_dump(document, sort_keys=False)


class Said:
    """All that anybody was told, by what it was told for."""

    def __init__(self) -> None:
        self.by: list[tuple[str, bytes]] = []

    def ran(self, result: Result) -> Result:
        """Keep what a verb said."""
        self.by.append((" ".join(result.argv), f"{result.out}\n{result.err}".encode()))
        return result


class Caller:
    """Calls the site, and keeps each answer."""

    def __init__(self, server: Server, said: Said) -> None:
        self._server = server
        self._said = said

    def __call__(
        self, verb: str, path: str, body: Any = None, status: int | None = 200, token: Canary = TOKEN
    ) -> Any:
        """One request; the answer's JSON, or its text."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        with connected(self._server.url) as connection:
            got = connection.ask(verb, path, content, token=token.value)
        heads = "\n".join(f"{name}: {value}" for name, value in got.headers.items())
        self._said.by.append((f"{verb} {path}", heads.encode() + got.body))
        assert status is None or got.status == status, (verb, path, got.body)
        return json.loads(got.body) if got.body[:1] == b"{" else got.body.decode()

    def settled(self, name: str) -> str:
        """How the update of an endpoint has ended."""

        def state() -> str:
            return str(self("GET", f"{API}/{name}")["state"]["config_update"])

        until(lambda: state() != "IN_PROGRESS", f"the update of {name} ends", 30)
        return state()


@pytest.fixture
def far() -> Iterator[Upstream]:
    """Somebody else's model."""
    with upstream() as running:
        yield running


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "site", env=environment())
    try:
        yield made
    finally:
        made.clean_up()


def use(call: Caller, far: Upstream) -> None:
    """Plant what requests bring, and use all of it: taken, refused, failed and deleted."""
    url = far.url
    call("POST", API, endpoint("plain", openai(url, openai_api_key_plaintext=CREATED.value)))
    call("POST", API, endpoint("plain", openai(url, openai_api_key_plaintext=REPEATED.value)), 409)
    call("POST", API, endpoint("no name", openai(url, openai_api_key_plaintext=INVALID.value)), 400)
    call("POST", API, endpoint("wrong", openai(url, openai_api_key=MISPLACED.value)), 400)
    call("POST", API, endpoint("wrong", custom(url, bearer_token_auth={"token": MISPLACED.value})), 400)
    call("POST", API, json.dumps({"name": "x"}).encode() + MISPLACED.value.encode(), 400)
    bearer = {"bearer_token_auth": {"token_plaintext": UPDATED.value}}
    keyed = {"api_key_auth": {"key": "x-key", "value_plaintext": HEADER.value}}
    call("POST", API, endpoint("header", custom(url, **keyed)))
    assert call.settled("header") == "NOT_UPDATING", call("GET", f"{API}/header")
    call("PUT", f"{API}/plain/config", {"served_entities": [custom(url, **bearer)]})
    assert call.settled("plain") == "NOT_UPDATING", call("GET", f"{API}/plain")
    for version, canary in (("1", REQUESTED), ("3", FATAL)):
        env = {"environment_vars": {"K": reference(canary)}}
        entity = {"name": "it", "entity_name": "demo.m", "entity_version": version, "workload_size": "Small"}
        name = f"asked-{version}"
        call("POST", API, endpoint(name, {**entity, **env}))
        wanted = "UPDATE_FAILED" if version == "3" else "NOT_UPDATING"
        assert call.settled(name) == wanted
    call("GET", f"{API}?token={PARAMETER.value}&page_token={PARAMETER.value}")
    call("DELETE", f"{API}/nothing?token={PARAMETER.value}", status=404)
    for verb, path in (("GET", API), ("DELETE", f"{API}/plain"), ("POST", "/v1/chat/completions")):
        call(verb, path, CHAT if verb == "POST" else None, 401, STRANGE)
    call("GET", f"{API}/plain", status=404, token=HASHED)


def look_at_everything(call: Caller, names: tuple[str, ...]) -> None:
    """Whatever can be asked about these endpoints."""
    call("GET", API)
    call("GET", "/api/servestate/v1/openapi.json")
    for name in names:
        shown = call("GET", f"{API}/{name}")
        for part in ("metrics", "openapi"):
            call("GET", f"{API}/{name}/{part}", status=None)
        for config in (shown.get("config", {}), shown.get("pending_config", {})):
            for entity in config.get("served_entities", []):
                call("GET", f"{API}/{name}/served-models/{entity['name']}/logs")
        call("GET", f"/api/2.0/permissions/serving-endpoints/{shown['id']}")
        call("PATCH", f"{API}/{name}/tags", {"add_tags": [{"key": "seen"}]})
        call("POST", f"/serving-endpoints/{name}/invocations", CHAT, status=None)


VERBS = (
    ("validate",),
    ("plan",),
    ("plan", "--out", "saved.plan"),
    ("show", "saved.plan"),
    ("show", "saved.plan", "--json"),
    ("status",),
    ("status", "--json"),
    ("state", "list"),
    ("state", "show", "near"),
    ("logs", "near/chatty"),
    ("logs", "near/quiet"),
    ("logs", "asked-3/it"),
    ("lock", "list"),
    ("export",),
    ("query", "far", "hello"),
)


def kill_the_api(site: Site, server: Server) -> None:
    """kill -9, in the middle of what it does."""
    (api,) = (
        p for p, line in processes(descendants(server.process.pid), "cmdline") if b"api.process" in line
    )
    os.kill(api, signal.SIGKILL)


@pytest.mark.slow
def test_secrets_are_where_they_must_be_and_nowhere_else(site: Site, far: Upstream) -> None:
    said, search = Said(), Search(ALL)
    management, router = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    site.write(bundle(far, management, router))
    engine_file = site.folder / "engine.py"
    engine_file.unlink()
    engine_file.symlink_to(Path(__file__).parents[1] / "clients" / "engine.py")
    for verb in (("plan",), ("plan", "--out", "first.plan"), ("apply", "--auto-approve"), ("plan", "--json")):
        said.ran(site.run(*verb))
    missing = f"SERVESTATE_SECRET_CANARY__{TOKEN.name.upper()}"
    said.ran(site.run("serve", **{missing: ""}))  # fails: the token cannot be had
    server = start(site, f"http://{management}", f"http://{router}")
    call = Caller(server, said)
    until(lambda: call("GET", API, status=None).get("endpoints"), "the API answers", 20)
    use(call, far)
    names = ("far", "near", "plain", "header", "asked-1", "asked-3")
    look_at_everything(call, names)
    call("PUT", f"{API}/asked-1/config", {"traffic_config": routes(it=100)}, status=None)
    kill_the_api(site, server)
    until(lambda: "endpoints" in call("GET", API, status=None), "the API is back", 30)
    look_at_everything(call, names)
    for verb in VERBS:
        said.ran(site.run(*verb))
    used = {one.headers.get("authorization", "") for one in far.asked}
    assert {f"Bearer {FAR_KEY.value}", f"Bearer {UPDATED.value}"} <= used  # they were there to be found
    assert {one.headers.get("x-key") for one in far.asked} >= {HEADER.value}

    check_processes(site, server, search)
    check_files(site, search)
    for name in names[2:]:
        call("DELETE", f"{API}/{name}")
    until(lambda: not {"asked-1", "plain"} & {a.endpoint for a in site.state().instances}, "all is gone", 30)
    said.ran(site.run("destroy", "--auto-approve"))
    check_files(site, search)
    stop(server)
    check_files(site, search)
    assert {what: found for what, text in said.by if (found := search(text))} == {}


def check_processes(site: Site, server: Server, search: Search) -> None:
    """No secret in any argument; in environments, those that the process is there to use."""
    ours = descendants(server.process.pid) - {server.process.pid}
    engines = set(site.engines().values())
    everybody = ours | engines | site.processes()
    assert len(ours) >= 2  # the controller and the API
    for pid, line in processes(everybody, "cmdline"):
        assert search(line) == set(), f"{pid} {line!r}"
    references = {canary.name for canary in REFERENCED}
    allowed = {"near/quiet": {ENV, SITE_ENV}, "near/chatty": {SAID}, "asked-1/it": {REQUESTED, SITE_ENV}}
    of_engine = {pid: allowed[name] for name, pid in site.engines().items()}
    assert {*allowed} == {*site.engines()}
    for pid, text in processes(everybody, "environ"):
        if pid in of_engine:
            assert search(text) == {canary.name for canary in of_engine[pid]}
        elif pid in ours or pid == server.process.pid:  # they resolve references
            assert search(text) == references
        else:
            assert search(text) == set(), f"{pid}"


def check_files(site: Site, search: Search) -> None:
    """No secret in any file but the one of those that came with requests, and the engine's own output."""
    for path, content in files(site.folder):
        found = search(content)
        if path.name == "api-secrets.json":
            assert found <= {canary.name for canary in (*KEPT, REPEATED, INVALID)}
        elif found == {SAID.name} or found == {FATAL.name}:
            assert path.name == "log", path  # what an engine writes is its own
        else:
            assert found == set(), path
        if found or path.name in ("access.json", "engine.key", "audit.jsonl"):
            assert path.stat().st_mode & 0o077 == 0, f"{path} is {path.stat().st_mode:o}"


@pytest.mark.parametrize("canary", ALL, ids=lambda canary: canary.name)
def test_the_search_finds_what_is_there(canary: Canary) -> None:
    search = Search(ALL)
    noise = hashlib.sha256(b"noise").hexdigest().encode() * 10
    for text in encodings(canary.value):
        width = max(12, 12 * len(text) // len(canary.value))
        for at in range(0, len(text) - width + 1, 5):
            assert search(noise + text[at : at + width].encode() + noise) == {canary.name}, text
    assert search(noise) == set()
