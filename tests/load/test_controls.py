"""Negative controls: with a defence taken away, the ledger says so. One router, in this process."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from servestate.planner.table import Traffic
from servestate.providers.secrets import EnvSecrets
from servestate.runtime.router import RouterConfig
from servestate.runtime.router.proxy import Exchange
from servestate.runtime.router.records.access_log import AccessLog
from servestate.runtime.router.records.keeping import AccessLogConfig, BooksConfig
from servestate.runtime.router.records.record import Record
from tests.cli.harness import until
from tests.load.book import Book
from tests.load.clients import Crowd
from tests.load.faults import Happened
from tests.load.judgement import Evidence, findings
from tests.load.place import HERE, Scrape, Tail
from tests.ports import free_port
from tests.router import rig
from tests.router.upstreams import entity, table

ENOUGH = 200
ORDERS = 10


@contextmanager
def upstreams(folder: Path) -> Iterator[list[str]]:
    """Two, by their URLs."""
    ports = [free_port(), free_port()]
    program = [sys.executable, "-I", "-S", str(HERE / "upstream.py")]
    running = [subprocess.Popen([*program, str(port), str(folder)]) for port in ports]
    try:
        until(lambda: len(list(folder.iterdir())) == len(ports), "the upstreams are there")
        yield [f"http://127.0.0.1:{port}" for port in ports]
    finally:
        for process in running:
            process.kill()
            process.wait()


async def load(folder: Path, urls: list[str], traffic: Traffic, order: str) -> Evidence:
    """A short run in which some answers go wrong by order."""
    routed = table(
        *(entity(name, 50, url) for name, url in zip("ab", urls, strict=True)), name="ledger", traffic=traffic
    )
    rig.write_table(folder / "table.json", routed)
    books = BooksConfig(AccessLogConfig(folder / "logs" / "access.log"))
    config = RouterConfig(
        folder / "table.json", folder / "control.sock", "127.0.0.1", 0, EnvSecrets({}), books=books
    )
    book = Book()
    began = time.monotonic()
    async with rig.running(config) as router:
        port = int(router.url.rpartition(":")[2])
        async with Crowd("127.0.0.1", port, book, "t", "t", random.Random(1), count=8, spares=0) as crowd:
            crowd.mood.orders += [order] * ORDERS
            await rig.until(lambda: len(book.outcomes) >= ENOUGH and not crowd.mood.orders, within=30)
        counted = sum(sample[1] for sample in router.snapshot()["servestate_requests_total"])
    Tail(folder / "logs").into(book)
    executed = Counter(
        int(line) for path in (folder / "records").iterdir() for line in path.read_text().splitlines()
    )
    told = [Scrape(time.monotonic(), counted, 0)]
    ordered = [Happened("answers reset", began, time.monotonic())]
    return Evidence(book, executed, told, ordered, [])


def found(tmp_path: Path, traffic: Traffic | None = None, order: str = "reset") -> list[str]:
    """What the ledger has to say, but for how many went well: too few for a share."""
    (tmp_path / "records").mkdir()
    seen: list[str] = []

    async def body() -> None:
        seen.extend(findings(await load(tmp_path, urls, traffic or Traffic(), order)))

    with upstreams(tmp_path / "records") as urls:
        rig.run(body())
    return [finding for finding in seen if not finding.startswith("only ")]


@pytest.mark.parametrize("order", ["reset", "truncate"])
def test_with_all_defences_nothing_is_found(tmp_path: Path, order: str) -> None:
    assert found(tmp_path, Traffic(fallback=True), order) == []


def test_a_request_that_runs_twice_is_found(tmp_path: Path) -> None:
    """Where the operator says that it may."""
    (finding,) = found(tmp_path, Traffic(fallback=True, after_send=True), "drop")
    assert "requests executed twice" in finding


def test_a_truncated_answer_that_passes_for_whole_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = Exchange.lost

    def whole(self: Exchange, why: str, *, bad: bool) -> None:
        if self._chunked:
            self._upstream = None
            self._relay(b"", True)
        else:  # its length says that it is not
            checked(self, why, bad=bad)

    monkeypatch.setattr(Exchange, "lost", whole)
    assert any("ended as TRUNCATED" in finding for finding in found(tmp_path, order="truncate"))


def test_an_access_log_that_loses_lines_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = AccessLog.ended
    count = iter(range(10**6))

    def careless(self: AccessLog, record: Record) -> None:
        if next(count) % 10:
            written(self, record)

    monkeypatch.setattr(AccessLog, "ended", careless)
    assert any("without a line in the access log, which dropped 0" in f for f in found(tmp_path))
