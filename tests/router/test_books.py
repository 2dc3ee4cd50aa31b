"""The books as a whole: one door, whose parts fail by themselves."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.table import Backend, Credential, RoutingTable
from servestate.providers.secrets import EnvSecrets, Secrets
from servestate.runtime.router.records.books import Books
from servestate.runtime.router.records.exposition import expose
from servestate.runtime.router.records.keeping import AccessLogConfig, BooksConfig
from servestate.runtime.router.records.record import Usage
from servestate.runtime.router.routing import LiveTable
from tests.router.records import PAYLOADS, live, recorded, registry, routes

NONE = EnvSecrets({})


def keeping(folder: Path, table: LiveTable, secrets: Secrets = NONE) -> Books:
    config = BooksConfig(AccessLogConfig(folder / "log" / "access.log"), folder)
    books = Books(config, secrets)
    books.check(table.source)
    books.adopt(table)
    return books


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_request_is_in_all_of_them(tmp_path: Path) -> None:
    table = live(routes(usage=True, payloads=PAYLOADS), routes("other"))
    books = keeping(tmp_path, table)
    books.ended(recorded(table, usage=Usage(1, 2), request=b"{}", answer=b"{}"))
    books.ended(recorded(table, "other"))
    books.refused("chat-ep", 429, "REQUEST_LIMIT_EXCEEDED", b"1")
    books.close()
    assert [one["endpoint"] for one in lines(tmp_path / "log/access.log")] == ["chat-ep", "other", "chat-ep"]
    assert [one["endpoint_name"] for one in lines(tmp_path / "usage/usage.jsonl")] == ["chat-ep"]
    assert len(lines(tmp_path / f"inference/{PAYLOADS.table}/payload.jsonl")) == 1
    text = expose(books.snapshot(table, connections=1)).decode()
    assert 'servestate_requests_total{endpoint="chat-ep",entity="a",code="200",how="split"} 1\n' in text
    assert 'servestate_requests_total{endpoint="chat-ep",entity="",code="429",how="refused"} 1\n' in text
    assert 'servestate_log_dropped_total{log="access_log"} 0\n' in text
    report = books.report()
    assert report["access_log_error"] is report["usage_error"] is report["inference_tables_error"] is None
    assert report["usage"][0]["requester"] == "ann@example.com"
    assert json.loads(json.dumps(report)) == report


def test_metrics_alone_start_no_thread_and_write_nothing(tmp_path: Path) -> None:
    table = live(routes(usage=True))
    before = threading.active_count()
    books = Books(BooksConfig(), NONE)
    books.adopt(table)
    books.ended(recorded(table, usage=Usage(1, 2)))
    books.refused("", 404, "ENDPOINT_NOT_FOUND", b"1")
    assert threading.active_count() == before
    assert books.report()["usage"][0]["output_tokens"] == 2
    books.close()


def test_a_table_whose_payloads_cannot_be_kept_is_refused() -> None:
    books = Books(BooksConfig(), NONE)
    with pytest.raises(ValueError, match="no folder for its inference table"):
        books.check(live(routes(payloads=PAYLOADS)).source)


def test_what_cannot_be_written_is_said_and_harms_no_request(tmp_path: Path) -> None:
    for name in ("log", "usage", "inference"):
        (tmp_path / name).write_text("in the way")
    table = live(routes(usage=True, payloads=PAYLOADS))
    books = keeping(tmp_path, table)
    books.ended(recorded(table, request=b"{}", answer=b"{}"))
    until = time.monotonic() + 10
    while None in (report := books.report()).values() and time.monotonic() < until:
        if all(report[f"{name}_error"] for name in ("access_log", "usage", "inference_tables")):
            break
        time.sleep(0.01)
    assert "in the way" not in str(report)
    assert str(tmp_path / "log") in report["access_log_error"]
    assert report["inference_tables_error"].startswith(f"inference table {PAYLOADS.table}: ")
    for name in ("log", "usage", "inference"):
        (tmp_path / name).unlink()
    books.close()
    assert len(lines(tmp_path / "log/access.log")) == len(lines(tmp_path / "usage/usage.jsonl")) == 1
    assert books.dropped() == {"access_log": 0, "usage": 0, "inference_tables": 0}


def test_secrets_of_the_table_are_in_no_row(tmp_path: Path) -> None:
    plain = routes(payloads=PAYLOADS)
    entity = replace(
        plain.entities[0],
        weight=100,
        credential=Credential("Authorization", "Bearer ", "{{secrets/s/k}}"),
        backends=(Backend("chat-ep/a@rev#0", "http://127.0.0.1:9", key="{{secrets/s/engine}}"),),
    )
    secrets = EnvSecrets(
        {"SERVESTATE_SECRET_S__K": "the-provider-key", "SERVESTATE_SECRET_S__ENGINE": "the-engine-key"}
    )
    made = replace(plain, entities=(entity,))
    table = registry(secrets).admit(RoutingTable(1, "lineage", (made,)))
    books = keeping(tmp_path, table, secrets)
    books.ended(recorded(table, request=b'{"a":"the-provider-key"}', answer=b'{"b":"x the-engine-key"}'))
    books.close()
    (line,) = lines(tmp_path / f"inference/{PAYLOADS.table}/payload.jsonl")
    assert (line["request"], line["response"]) == ('{"a":"***"}', '{"b":"x ***"}')


def test_reloads_end_what_is_no_longer_kept(tmp_path: Path) -> None:
    kept = registry()
    before = threading.active_count()
    books = keeping(tmp_path, live(within=kept))
    for number in range(20):
        table = live(routes(payloads=replace(PAYLOADS, percent=1 + number)), within=kept)
        books.adopt(table)
        books.ended(recorded(table, request=b"{}", answer=b"{}"))
    until = time.monotonic() + 10
    while threading.active_count() > before + 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before + 2, "the access log's and one inference table's"
    books.close()
    assert threading.active_count() == before
    assert len(lines(tmp_path / f"inference/{PAYLOADS.table}/payload.jsonl")) == 20
    assert len(lines(tmp_path / "log/access.log")) == 20


def test_the_end_takes_no_longer_than_a_second(tmp_path: Path) -> None:
    table = live(routes(usage=True, payloads=PAYLOADS))
    books = keeping(tmp_path, table)
    for _ in range(2000):
        books.ended(recorded(table, request=b"{}" * 500, answer=b"{}" * 500, usage=Usage(1, 1)))
    began = time.monotonic()
    books.close()
    assert time.monotonic() - began < 1.2
    assert len(lines(tmp_path / "log/access.log")) == 2000
    assert len(lines(tmp_path / f"inference/{PAYLOADS.table}/payload.jsonl")) == 2000
