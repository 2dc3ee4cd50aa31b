"""A served site for real clients: the command line, the engines of `engine.py`, and an upstream to script."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import requests
import yaml

from tests.cli.harness import PYTHON, Site, until
from tests.clients.engine import Engine
from tests.ports import free_port

HERE = Path(__file__).parent
TOKEN = "any-token"
"""What clients say where the site asks for no token."""

ADMIN, READER, STRANGER = "token-of-the-admin", "token-of-a-reader", "token-of-a-stranger"
"""Tokens of the site that asks for some: for everything, for queries of one endpoint, for nothing."""

SECRETS = {
    "SERVESTATE_SECRET_DEMO__KEY": "s3cret-of-the-upstream",
    "SERVESTATE_SECRET_MY_SCOPE__MY_OPENAI_API_KEY": "s3cret-of-the-first-scope",
    "SERVESTATE_SECRET_MY_OPENAI_SECRET_SCOPE__OPENAI_API_KEY": "s3cret-of-the-second-scope",
    "SERVESTATE_SECRET_MY_ANTHROPIC_SECRET_SCOPE__ANTHROPIC_API_KEY": "s3cret-of-the-third-scope",
}
CHAT, TEXT, EMBEDDER, TABLE = (
    "demo.models.chat",
    "demo.models.text",
    "demo.models.embedder",
    "demo.models.table",
)
TOKENS, UNITS = "demo.models.by-tokens", "demo.models.by-units"
"""Models whose throughput is provisioned, in steps of TOKENS_STEP and UNITS_STEP."""
TOKENS_STEP, UNITS_STEP = 100, 50
GATED, BROKEN = "8", "9"
"""Versions of CHAT: not ready before there is a file `gate-8`; and one that exits at once."""


def engine(label: str, *flags: str) -> dict[str, Any]:
    """A model version that `engine.py` serves."""
    return {"engine": "command", "argv": [*PYTHON, "engine.py", "{port}", label, *flags]}


def catalogue() -> dict[str, Any]:
    """The models of the site, those of the nine requests among them."""
    plain = {"1": engine("one"), "2": engine("two")}
    odd = {GATED: engine("eight", "--gate", f"gate-{GATED}"), BROKEN: engine("nine", "--die")}
    own = {
        CHAT: {"task": "llm/v1/chat", "versions": {**plain, **odd}},
        TEXT: {"task": "llm/v1/completions", "versions": plain},
        EMBEDDER: {"task": "llm/v1/embeddings", "versions": plain},
        TABLE: {"versions": plain},
        TOKENS: _provisioned(plain, throughput_chunk_size=TOKENS_STEP),
        UNITS: _provisioned(plain, model_unit_chunk_size=UNITS_STEP),
    }
    asked_for = {
        "catalog.schema.model-A": {"versions": {"1": engine("A")}},
        "catalog.schema.model-B": {"versions": {"1": engine("B")}},
        "system.ai.mistral_7b_instruct_v0_1": {"task": "llm/v1/chat", "versions": {"2": engine("mistral")}},
        "system.ai.mixtral_8x7b_instruct_v0_1": {"task": "llm/v1/chat", "versions": {"3": engine("mixtral")}},
        "ml.llm-catalog.foundation-model": _provisioned({"3": engine("llama")}, throughput_chunk_size=1580),
    }
    return {**own, **asked_for}


def _provisioned(versions: Mapping[str, Any], **step: int) -> dict[str, Any]:
    optimization = {"model_type": "llama", **step}
    return {"task": "llm/v1/chat", "optimization": optimization, "versions": dict(versions)}


def hosted(name: str, model: str, version: str = "1") -> dict[str, Any]:
    """A served entity of the catalogue."""
    return {"name": name, "entity_name": model, "entity_version": version, "workload_size": "Small"}


def external(name: str, url: str, task: str = "llm/v1/chat", model: str = "far-model") -> dict[str, Any]:
    """A served entity that is an OpenAI-style server at `url`, which asks for a key."""
    config = {"openai_api_base": f"{url}/v1", "openai_api_key": "{{secrets/demo/key}}"}
    external_model = {"provider": "openai", "name": model, "task": task, "openai_config": config}
    return {"name": name, "external_model": external_model}


def routes(**shares: int) -> dict[str, Any]:
    """A traffic config."""
    return {"routes": [{"served_model_name": n, "traffic_percentage": s} for n, s in shares.items()]}


def endpoint(name: str, *entities: dict[str, Any], **shares: int) -> dict[str, Any]:
    """The body of a create call."""
    config: dict[str, Any] = {"served_entities": list(entities)}
    if shares:
        config["traffic_config"] = routes(**shares)
    return {"name": name, "config": config}


STANDING = (
    endpoint("chat", hosted("current", CHAT), hosted("idle", CHAT, "2"), current=100, idle=0),
    endpoint("text", hosted("current", TEXT)),
    endpoint("embeddings", hosted("current", EMBEDDER)),
    endpoint("table", hosted("current", TABLE)),
)
"""What a bundle has put there before anybody calls; no test changes it."""


@dataclass
class Server:
    """A site that `servestate serve` serves. `url` is its management listener, `router` the other one."""

    site: Site
    url: str
    router: str
    process: subprocess.Popen[str]

    @property
    def api(self) -> str:
        """The root of the control plane."""
        return f"{self.url}/api/2.0/serving-endpoints"

    def call(
        self, verb: str, path: str, body: Any = None, token: str = TOKEN, **more: Any
    ) -> requests.Response:
        """One request of the control plane, as any HTTP client makes it."""
        headers = {"Authorization": f"Bearer {token}"}
        return requests.request(verb, f"{self.api}{path}", json=body, headers=headers, timeout=60, **more)

    def ask(self, path: str, body: Any, token: str = TOKEN) -> requests.Response:
        """One request of the data plane: `path` is what follows /serving-endpoints."""
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{self.url}/serving-endpoints{path}"
        return requests.post(url, json=body, headers=headers, timeout=60)

    def get(self, name: str) -> dict[str, Any]:
        """The endpoint as the API shows it."""
        return ok(self.call("GET", f"/{name}"))

    def settled(self, name: str, within_s: float = 30) -> dict[str, Any]:
        """The endpoint once nothing is being updated."""
        until(lambda: self._state(name) != "IN_PROGRESS", f"the update of {name} ends", within_s)
        return self.get(name)

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an endpoint and wait for it."""
        ok(self.call("POST", "", body))
        made = self.settled(body["name"])
        assert made["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}, made
        return made

    def names(self) -> set[str]:
        """What the API lists."""
        return {one["name"] for one in ok(self.call("GET", ""))["endpoints"]}

    def declare(self, *endpoints: dict[str, Any]) -> None:
        """Have the bundle say those endpoints, and no others."""
        path = self.site.folder / "endpoints.yaml"
        document = {**yaml.safe_load(path.read_text()), "resources": resources(endpoints)}
        path.write_text(yaml.safe_dump(document, sort_keys=False))

    def kill_api(self) -> None:
        """Kill the process behind the API; the router goes on."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = [int(pid) for thread in threads for pid in thread.read_text().split()]
        (pid,) = (pid for pid in children if b"api.process" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(pid, signal.SIGKILL)

    def open_gate(self) -> None:
        """Let the engines of version GATED become ready."""
        (self.site.folder / f"gate-{GATED}").touch()

    def close_gate(self) -> None:
        """Engines of version GATED that start from now on do not become ready."""
        (self.site.folder / f"gate-{GATED}").unlink(missing_ok=True)

    def _state(self, name: str) -> str:
        return str(self.get(name)["state"]["config_update"])


def ok(response: requests.Response) -> Any:
    """The JSON of an answer, which must be a success."""
    assert response.status_code == 200, f"{response.status_code} {response.text}"
    return response.json()


def write_site(site: Site, endpoints: tuple[dict[str, Any], ...], **settings: Any) -> tuple[str, str]:
    """Write a bundle of those endpoints; the addresses of management and router."""
    site.folder.mkdir(parents=True, exist_ok=True)
    program = site.folder / "engine.py"
    if not program.exists():
        program.symlink_to(HERE / "engine.py")
    management, router = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    listeners = {
        "management": {"listen": management},
        "router": {"listen": router, **settings.pop("router", {})},
    }
    block = {**listeners, "models": catalogue()}
    document: dict[str, Any] = {"servestate": {**block, **settings}}
    if endpoints:
        document["resources"] = resources(endpoints)
    site.write(yaml.safe_dump(document, sort_keys=False))
    return f"http://{management}", f"http://{router}"


def resources(endpoints: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Those endpoints as a bundle has them: what a create call takes, under a key."""
    return {"model_serving_endpoints": {one["name"].replace("-", "_"): one for one in endpoints}}


@contextmanager
def serving(folder: Path, endpoints: tuple[dict[str, Any], ...] = (), **settings: Any) -> Iterator[Server]:
    """A site of its own, applied and served; nothing of it outlives the block. `settings` are further keys of
    the site block."""
    site = Site(folder, env=dict(SECRETS))
    try:
        url, router = write_site(site, endpoints, **settings)
        site.apply()
        yield start(site, url, router)
    finally:
        _stop(site)


def start(site: Site, url: str, router: str) -> Server:
    """Serve a site, and wait until the API answers."""
    log = site.folder / "serve.log"
    process = site.start("serve", prefix=("sh", "-c", f'exec "$@" >>{log} 2>&1', "sh"))

    def answers() -> bool:
        assert process.poll() is None, f"serve ended with {process.returncode}:\n{log.read_text()}"
        try:
            found = requests.get(f"{url}/.well-known/databricks-config", timeout=10)
        except requests.ConnectionError:
            return False
        return found.status_code == 200

    until(answers, f"the API answers at {url}", within_s=60)
    return Server(site, url, router, process)


def stop(server: Server) -> None:
    """End `serve` as an operator does; what it serves keeps running."""
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)


def _stop(site: Site) -> None:
    for process in site.started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    site.clean_up()


@dataclass
class Asked:
    """A request that came to an upstream."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class Upstream(Engine):
    """Somebody else's model server, in the test's process. `asked` is all it got; `statuses` are those of its
    next answers, 200 when none is left."""

    def __init__(self, label: str = "far") -> None:
        super().__init__(0, label)
        self.asked: list[Asked] = []
        self.statuses: deque[int] = deque()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def note(self, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> None:
        self.asked.append(Asked(path, {key.lower(): value for key, value in headers.items()}, body))

    def status_for(self, body: dict[str, Any]) -> int:
        return self.statuses.popleft() if self.statuses else int(super().status_for(body))


@contextmanager
def upstream(label: str = "far") -> Iterator[Upstream]:
    """An upstream for as long as the block runs."""
    with Upstream(label) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
