"""The site that asks for tokens, as `servestate serve` runs it: with endpoints of every kind of owner."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from servestate.planner.spec.site import Site as SiteBlock
from servestate.runtime.api.ledger import Status
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.workspace import Workspace, is_gone, open_workspace, owner_of_this_process
from tests.api.callers import ADMIN, GRANTS, HIDDEN, MAKER, OWN, SHARED, STRANGERS, Who, declared
from tests.api.wire import Answer, connected
from tests.cli.harness import until
from tests.clients.harness import Server, endpoint, external, serving, upstream

API = "/api/2.0/serving-endpoints"
REVOKED = next(who for who in STRANGERS if who.name == "revoked")
ENTITY = "far"


@dataclass
class Guarded:
    """The running site. `far` is the URL of the model that its endpoints stand for."""

    server: Server
    far: str

    @property
    def folder(self) -> Path:
        """Where the site keeps what it writes."""
        return self.server.site.folder / ".servestate"

    @property
    def log(self) -> str:
        """What `serve` and all beside it have written."""
        return (self.server.site.folder / "serve.log").read_text(errors="replace")

    def audit(self) -> list[dict[str, Any]]:
        """All lines of the audit log."""
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]

    def query(self, listener: str, path: str, body: bytes, who: Who = ADMIN) -> Answer:
        """One request of the data plane, on a connection of its own to that listener."""
        url = self.server.url if listener == "management" else self.server.router
        with connected(url) as connection:
            return connection.ask("POST", path, body, *who.lines)

    def ask(self, verb: str, target: str, who: Who = ADMIN, body: bytes = b"", *fields: str) -> Answer:
        """One request on a connection of its own."""
        with connected(self.server.url) as connection:
            return connection.ask(verb, target, body, *who.lines, *fields)

    def say(self, verb: str, path: str, body: Any, who: Who = ADMIN) -> Answer:
        """One JSON request to the serving API; `path` is what follows its base."""
        content = b"" if body is None else json.dumps(body).encode()
        return self.ask(verb, API + path, who, content, "Content-Type: application/json")

    def id_of(self, name: str) -> str:
        """The endpoint's id."""
        return str(self.say("GET", f"/{name}", None).json["id"])

    @property
    def workspace(self) -> Workspace:
        """The site as servestate opens it."""
        document = yaml.safe_load((self.server.site.folder / "endpoints.yaml").read_text())
        return open_workspace(self.server.site.folder, SiteBlock.model_validate(document["servestate"]))

    def effects(self) -> tuple[int, bytes]:
        """What any effect would change: the state's serial, and what the API has promised. What a deletion
        has left is still being cleared away after its answer, so this waits until nobody is at work."""
        until(self._is_quiet, "what was begun is done")
        files = (path for path in sorted(self.folder.glob("api.db*")) if not path.name.endswith("-shm"))
        return self.server.site.state().serial, b"".join(path.read_bytes() for path in files)

    def _is_quiet(self) -> bool:
        """Whether no update is under way, nothing that serves nothing is left, and nobody holds the lock."""
        with closing(sqlite3.connect(f"file:{self.folder}/api.db?mode=ro", uri=True)) as ledger:
            updates = [json.loads(body) for (body,) in ledger.execute("SELECT body FROM updates")]
        if any(update["status"] == Status.IN_PROGRESS for update in updates):
            return False
        state = self.server.site.state()
        targets = [target for record in state.endpoints.values() for target in record.targets]
        if state.instances.keys() - {address for target in targets for address in target.instances}:
            return False
        return SqliteStore(self.server.site.database, is_gone).held() is None

    def declare(self, *more: Who) -> float:
        """Have the site know these tokens beside its own; the moment when that was written."""
        return self.configure(declared(*more))

    def configure(self, tokens: list[dict[str, Any]]) -> float:
        """Have the site know these tokens; the moment when that was written."""
        path = self.server.site.folder / "endpoints.yaml"
        document = yaml.safe_load(path.read_text())
        document["servestate"]["access"]["tokens"] = tokens
        draft = path.with_name("draft")
        draft.write_text(yaml.safe_dump(document, sort_keys=False))
        draft.replace(path)
        return time.monotonic()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the state, as an apply does while its models load."""
        self.effects()  # what a deletion has left is cleared away under the same lock
        store = SqliteStore(self.server.site.database, is_gone)
        lock, _ = store.acquire(owner_of_this_process("apply"), time.time())
        try:
            yield
        finally:
            store.release(lock)
            store.close()

    def far_entity(self, name: str = ENTITY) -> dict[str, Any]:
        """A served entity that starts no process."""
        return external(name, self.far)

    def make(self, name: str, who: Who = ADMIN) -> None:
        """An endpoint that `who` owns."""
        made = self.say("POST", "", endpoint(name, self.far_entity()), who)
        assert made.status == 200, made.body


@contextmanager
def guarded_site(folder: Path) -> Iterator[Guarded]:
    """The site, with its endpoints, and the revoked token revoked."""
    with upstream() as far:
        shared = {**endpoint(SHARED, external(ENTITY, far.url)), "permissions": GRANTS}
        hidden = endpoint(HIDDEN, external(ENTITY, far.url))
        blocks = tuple({**one, "lifecycle": {"prevent_destroy": True}} for one in (shared, hidden))
        access = {"tokens": declared(REVOKED), "secret_scopes": ["demo"]}
        egress = {"egress": {"allow": ["127.0.0.1"]}}
        with serving(folder, blocks, access=access, router=egress) as server:
            site = Guarded(server, far.url)
            site.make(OWN, MAKER)
            assert site.ask("GET", API, REVOKED).status == 200
            site.declare()
            until(lambda: site.ask("GET", API, REVOKED).status == 401, "the token is revoked", 5)
            yield site
