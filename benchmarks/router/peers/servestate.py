"""Our router, with what a production has switched on: tokens, an exact split, limits, metrics, access log.

    python -m benchmarks.router.peers.servestate FOLDER PORT ENGINE ENGINE [OPTIONS]

runs one. The compiled one is that of a copy of the tree, which `peers.sh compiled` makes; the other refuses
to be taken for what it is not where `make compile` was run in this tree. All that this benchmark knows of the
router's set-up is here.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from benchmarks.router.peer import MODEL, Launch, Place
from servestate.planner.spec.site import Access
from servestate.planner.table import Backend, EndpointRoutes, EntityRoute, Limit, RoutingTable
from servestate.providers.site_secrets import SiteSecrets
from servestate.runtime.keyring import keyring_of, write_keyring
from servestate.runtime.router import RouterConfig, proxy, run
from servestate.runtime.router.records.keeping import AccessLogConfig, BooksConfig
from servestate.runtime.table_file import write_table

ENDPOINT, TOKEN, USER = "multi-model", "bench-token", "bench"
PLENTY = 1_000_000_000
"""Calls or tokens a minute: a limit that is counted and never refuses."""


class Servestate:
    """`tokens`: tokens are limited too, for which requests and answers are read. `compiled`: as machine code.
    `cores`: where it runs, "" as every target."""

    def __init__(
        self, *, workers: int = 1, tokens: bool = False, compiled: bool = False, cores: str = ""
    ) -> None:
        self.name = "servestate"
        self.about = "access tokens, exact split, metrics, access log, limits of calls"
        self._cores = cores
        self._more: tuple[str, ...] = ()
        self._compiled = compiled
        if compiled:
            self.name += " compiled"
            self._more += ("--compiled",)
        if tokens:
            self.name += " + token limits"
            self.about += " and tokens"
            self._more += ("--tokens",)
        if workers > 1:
            self.name += f" x {workers}"
            self._more += ("--workers", str(workers))
        if cores:
            self.name += f" on cores {cores}"

    def program(self, installed: Path) -> Path | None:
        if self._compiled and not _tree(installed).is_dir():
            return None
        return Path(sys.executable)

    def launch(self, place: Place) -> Launch:
        engines = tuple(str(port) for port in place.engines)
        command = (sys.executable, "-m", __name__, str(place.folder), str(place.port), *engines, *self._more)
        fields = (f"Authorization: Bearer {TOKEN}",)
        tree = _tree(place.installed)
        environment = {"PYTHONPATH": f"{tree / '.typing'}:{tree}"} if self._compiled else {}
        return Launch(command, environment, fields, model=ENDPOINT, cores=self._cores)


def _tree(installed: Path) -> Path:
    """The copy whose router is compiled."""
    return installed / "compiled" / "tree"


def table(engines: tuple[int, int], tokens: bool) -> RoutingTable:
    """Two entities at 90/10, limits for everybody together and for each user."""
    entities = tuple(
        EntityRoute(name, weight, MODEL, "", False, (Backend(name, f"http://127.0.0.1:{port}"),))
        for name, weight, port in (("current", 90, engines[0]), ("challenger", 10, engines[1]))
    )
    limits = tuple(Limit(key, "", PLENTY, PLENTY if tokens else 0) for key in ("endpoint", "user"))
    return RoutingTable(1, "bench", (EndpointRoutes(ENDPOINT, 1, entities, limits=limits),))


def access() -> Access:
    """One user, who may query everything."""
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    return Access.model_validate({"tokens": [{"user_name": USER, "sha256": digest, "rights": ["query"]}]})


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("port", type=int)
    options.add_argument("engines", type=int, nargs=2)
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--tokens", action="store_true")
    options.add_argument("--compiled", action="store_true")
    chosen = options.parse_args()
    if chosen.compiled != (not proxy.__file__.endswith(".py")):
        sys.exit(f"this is not what was to be measured: {proxy.__file__}")
    folder = chosen.folder
    secrets = SiteSecrets(folder / "engine.key", folder / "kept.json")
    write_table(folder / "table.json", table(tuple(chosen.engines), chosen.tokens))
    write_keyring(folder / "keyring.json", keyring_of(access(), secrets))
    return run(
        RouterConfig(
            folder / "table.json",
            folder / "control.sock",
            "127.0.0.1",
            chosen.port,
            secrets,
            keyring_path=folder / "keyring.json",
            workers=chosen.workers,
            books=BooksConfig(AccessLogConfig(folder / "access.log"), folder),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
